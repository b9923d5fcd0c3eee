"""Every word and unit the studio shows more than once: labels, explanations, and how a figure is written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinymusician_core.looping import BEATS_A_BAR

NOT_MEASURED = "not measured"
LONG_WAIT_S = 20.0  # a shorter wait is not worth a word
UNSURE_S = 30.0  # a clip that may take long where nothing was measured
LENGTHS = ((5, "5 s"), (15, "15 s"), (60, "1 min"), (180, "3 min"), (600, "10 min"))
MODELS = ("teacher", "student", "quantized")
MODEL_TITLES = {"teacher": "Teacher", "student": "Student", "quantized": "Quantized"}
MODEL_LINES = {
    "teacher": "The full model, all of its layers",
    "student": "Distilled: fewer layers, taught by the teacher",
    "quantized": "The student in mixed, lower precision",
}
OWN_MODEL_LINE = "A model of your own"
STAGES = {
    "loading": "Loading the model",
    "warm-up": "Warming up",
    "text": "Reading the prompt",
    "lm": "Composing",
    "codec": "Turning codes into sound",
}
EXAMPLES = (
    "a calm piano waltz in G major",
    "a lively fiddle reel",
    "a slow, sad cello air in D minor",
    "a bright flute jig with guitar chords",
    "a gentle church organ melody",
    "a happy trumpet march with bass and drums",
    "a dreamy harp song",
    "a playful marimba jig",
)
SETTINGS = {
    "cfg": (
        "Guidance (cfg)",
        "How closely to follow the prompt; 1 turns it off, empty is what each model was made for",
    ),
    "temperature": ("Temperature", "Higher is more surprising"),
    "top_k": ("Top-k", "Draw from the k likeliest tokens; 0 allows all"),
    "top_p": ("Top-p", "Draw from this share of probability; 0 allows all, empty is what each model was made for"),
    "greedy": ("Greedy", "Always take the likeliest token"),
}


@dataclass(frozen=True)
class FigureWords:
    """How one measured figure is shown: `scale` turns the stored unit into `unit`, `places` digits follow the point."""

    name: str
    label: str
    unit: str
    scale: float
    places: int
    meaning: str


FIGURES = (
    FigureWords(
        "first_sound_ms", "First sound", "s", 1e-3, 2, "From the request to the first sound that could be played"
    ),
    FigureWords("ms_per_step", "Per step", "ms", 1.0, 1, "Mean time of one decoder step"),
    FigureWords("x_realtime", "Speed", "× real time", 1.0, 2, "Seconds of music made in a second; more is better"),
    FigureWords(
        "peak_memory_bytes",
        "Peak memory",
        "MB",
        1e-6,
        0,
        "The most memory the model's process took above its idle size",
    ),
    FigureWords("disk_bytes", "Size on disk", "MB", 1e-6, 1, "Every file the model reads to make music"),
)
FIGURE = {words.name: words for words in FIGURES}


def model_title(model: str) -> str:
    """A variant's name as a title; a folder or a hub id keeps its last part."""
    return MODEL_TITLES.get(model, model.replace("\\", "/").rstrip("/").rpartition("/")[2] or model)


def model_line(model: str) -> str:
    return MODEL_LINES.get(model, OWN_MODEL_LINE)


def figure_parts(words: FigureWords, figures: Mapping[str, Any]) -> tuple[str, str]:
    """A figure as (number, unit); ("not measured", "") when there is none."""
    value = figures.get(words.name)
    if value is None:
        return NOT_MEASURED, ""
    return f"{value * words.scale:,.{words.places}f}", words.unit


def apart(words: FigureWords, figures: Mapping[str, Any]) -> str:
    """How far the runs lie apart in a figure, such as "11.9 to 13.2 ms in 3 runs"; "" for one run, or none measured."""
    ends = (figures.get("spread") or {}).get(words.name)
    runs = figures.get("runs") or 0
    if ends is None or runs < 2:
        return ""
    low, high = (f"{end * words.scale:,.{words.places}f}" for end in ends)
    return f"{low} to {high} {words.unit} in {runs} runs"


def ran_on(figures: Mapping[str, Any]) -> str:
    """The device and its threads, such as "CPU, 2 threads"."""
    device, threads = figures.get("device"), figures.get("threads")
    if not device:
        return NOT_MEASURED
    name = device.upper() if device.isalpha() else device
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}" if threads and device == "cpu" else name


def duration(seconds: float) -> str:
    """A waiting time for people: "3 s", "2 min 5 s", "1 h 4 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def exact(seconds: float) -> str:
    """How long a clip is: "3.2 s", from a minute on "2 min 5 s"."""
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def spell_ms(value: float) -> str:
    """A measured time in the unit that suits it: "4 ms", "2.05 s"."""
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.2f} s"


def clock(seconds: float) -> str:
    """A position in a clip: "0:08"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def ago(then: float, now: float | None = None) -> str:
    """How long ago a moment (seconds since the epoch) was."""
    gone = max(0.0, (time.time() if now is None else now) - then)
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if gone >= size:
            count = int(gone // size)
            return f"{count} {word}{'s' if count > 1 else ''} ago"
    return "just now"


def listed(words: list[str], most: int = 6) -> str:
    """Words as "a, b and c"; beyond `most` the rest is counted."""
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def unknown_words_hint(words: list[str]) -> str:
    """One sentence about prompt words the model has never seen; empty when it knows them all."""
    if not words:
        return ""
    quoted = listed([f"“{word}”" for word in words])
    one = len(words) == 1
    return f"The demo models have never seen {quoted}; {'it' if one else 'they'} will be passed over."


def share(value: float) -> str:
    return f"{100 * value:.0f}%"


def form_words(form: Mapping[str, Any], audio_s: float | None = None) -> str:
    """What a take is beyond a prompt: "loop at 120 BPM", "goes on from riff.wav"; "" for a plain one.

    With the length of a clip a loop tells its bars, or its beats where they fill no bar: "loop of 4 bars at 120 BPM".
    """
    if form.get("source"):
        return f"goes on from {form['source'].rpartition('/')[2]}"
    if not form.get("loop") or form.get("bpm") is None:
        return "loop" if form.get("loop") else ""
    size = ""
    if audio_s is not None:
        beats = round(audio_s * form["bpm"] / 60)
        count, unit = (beats, "beat") if beats % BEATS_A_BAR else (beats // BEATS_A_BAR, "bar")
        size = f" of {count} {unit}{'' if count == 1 else 's'}"
    return f"loop{size} at {form['bpm']:g} BPM"


def setting_line(settings: Mapping[str, Any], form: Mapping[str, Any]) -> str:
    """A take's settings and form in a line; what stands at its default is left out."""
    from tinymusician_core import SamplingSpec

    default = SamplingSpec().as_dict()
    words = form_words(form)
    parts = [f"{settings['seconds']:g} s", *([words] if words else []), f"seed {settings['seed']}"]
    if settings["greedy"]:
        return " · ".join([*parts, "greedy"])
    names = {"cfg": "cfg", "temperature": "temperature", "top_k": "top-k", "top_p": "top-p"}
    return " · ".join(
        parts + [f"{word} {settings[key]:g}" for key, word in names.items() if settings[key] != default[key]]
    )


def estimate(seconds: float, runs: Mapping[str, int], figures: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence about how long models will take, from what was last measured of each; "" where nobody has to wait.

    Args:
        seconds: the length that is asked for.
        runs: how often each model plays.
        figures: the figures of each model's last whole take on this machine, as far as there is one.
    """
    speeds = {model: (figures.get(model) or {}).get("x_realtime") for model in runs}
    known = {model: runs[model] * seconds / speed for model, speed in speeds.items() if speed}
    unknown = [model_title(model) for model in runs if model not in known]
    total = sum(known.values())
    if not runs or (total < LONG_WAIT_S and not (unknown and seconds > UNSURE_S)):
        return ""
    if not known:
        return f"{listed(unknown)} {'has' if len(unknown) == 1 else 'have'} not been measured here yet: no estimate."
    who = "" if len(known) == 1 and not unknown else f" for {listed([model_title(model) for model in known])}"
    rest = f"; {listed(unknown)} not measured here yet" if unknown else ""
    return f"About {duration(total)}{who}: an estimate from the last takes{rest}."
