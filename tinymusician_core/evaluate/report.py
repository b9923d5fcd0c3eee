"""An evaluation as files: report.json, report.md, quality-size.png and quality-speed.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..measure.plots import Point, scatter
from ..measure.report import cell, document, table, write_files
from .limits import LEAST
from .listener import HEADS
from .summary import Evaluation

FILES = ("report.json", "report.md", "quality-size.png", "quality-speed.png")
QUALITY = (
    ("perplexity", "perplexity", "{:.1f}"),
    ("KL to teacher", "kl_to_teacher", "{:.3f}"),
    ("FAD∞", "fad_infinity", "{:.2f}"),
    ("FAD", "fad", "{:.2f}"),
    ("KAD", "kad", "{:.2f}"),
    ("kappa", "kappa", "{:.2f}"),
    ("CLAP score", "clap_score", "{:.3f}"),
)
SPEED = (
    ("x real time", "x_realtime", 1.0, "{:.2f}"),
    ("first sound ms", "first_sound_ms", 1.0, "{:,.0f}"),
    ("ms a step", "ms_per_step", 1.0, "{:.2f}"),
    ("peak memory MB", "peak_memory_bytes", 1e-6, "{:,.1f}"),
    ("on disk MB", "disk_bytes", 1e-6, "{:,.1f}"),
)
DEFINITIONS = """
How to read it:

- Every figure has a 95% interval in brackets, from random halves of the clips, the held-out windows and the reference
  windows, the same halves for all variants.
- Retention: the geometric mean of likelihood, sound and prompt, each variant over teacher. Likelihood: the ratio of
  perplexities on held-out music. Sound: 1 - FAD∞ / total variance of the reference, a share that is 1 for music spread
  as the reference is and 0 for a model that always plays the average clip. Prompt: mean kappa.
- Perplexity: of a token of held-out music, all codebooks together. KL to teacher: forward, in nats a token, on the same
  tokens.
- FAD: Fréchet distance of the clips' embeddings from the reference's; FAD∞: extrapolated to endlessly many clips. KAD:
  kernel distance, times 100. For all three, 0 is as like the reference as can be.
- Kappa: (accuracy - chance) / (1 - chance), averaged over the attributes that 20 prompts or more ask for. Chance is the
  accuracy if clips were dealt to prompts at random.
- Real audio: held-out windows of other tunes than the reference's, the same whose captions are the prompts: the best
  that can be expected. Codec round trip: the same windows encoded and decoded, the best that these tokens allow.
"""


def write_report(made: Evaluation, folder: Path) -> list[Path]:
    """Write the four files into a folder, which is made where there is none; returns their paths.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    record = made.as_dict()
    write_files(folder, {FILES[0]: record, FILES[1]: markdown(record)})
    label = "retention of " + record["settings"]["models"][0]
    for name, axis, key, factor in (
        (FILES[2], "on disk (MB)", "disk_bytes", 1e-6),
        (FILES[3], "x real time", "x_realtime", 1.0),
    ):
        scatter(_points(record, key, factor), axis, label, folder / name)
    return [folder / name for name in FILES]


def _points(record: Mapping, key: str, factor: float) -> list[Point]:
    """Retention against a figure, one point a variant; the teacher keeps all of itself."""
    points, teacher = [], record["settings"]["models"][0]
    for variant in record["variants"]:
        model, x = variant["model"], variant["figures"][key]
        kept = record["retention"].get(f"{model}/{teacher}", {"retention": _WHOLE})["retention"]
        ends = variant["spread"].get(key)
        spread = None if ends is None else (ends[0] * factor, ends[1] * factor)
        points.append(Point(model, None if x is None else x * factor, spread, kept["value"], _range(kept)))
    return points


_WHOLE = {"value": 1.0, "low": None, "high": None, "n": 0}


def _range(figure: Mapping) -> tuple[float, float] | None:
    return None if figure["low"] is None else (figure["low"], figure["high"])


def interval_cell(figure: Mapping | None, form: str) -> str:
    """A figure with its interval; a dash where it was not measured."""
    return cell(None, form) if figure is None else cell(figure["value"], form, _range(figure))


def markdown(record: Mapping) -> str:
    """The report as Markdown, from `Evaluation.as_dict`."""
    settings, teacher = record["settings"], record["settings"]["models"][0]
    return document(
        f"How good the variants are, and what they keep of {teacher}",
        _notes(record),
        "## Retention",
        _retention(record["retention"]),
        "## Quality",
        _quality(record),
        "## What the prompts asked for",
        f"Share of clips in which the judge hears what was asked for, out of {settings['clips']} clips.",
        _adherence(record),
        *_steadiness(record),
        "## Speed and size",
        _speed(record["variants"]),
        "## The judges",
        _judges(record["judges"]),
        DEFINITIONS,
    )


def _rows(record: Mapping) -> list[tuple[str, Mapping]]:
    """Name and quality of variants and baselines."""
    variants = [(variant["model"], variant["quality"]) for variant in record["variants"]]
    return variants + [(each["name"], each["quality"]) for each in record["baselines"]]


def _notes(record: Mapping) -> list[str]:
    settings, context = record["settings"], record["context"]
    prompts = "captions of held-out music" if settings["prompts"] is None else f"prompts {settings['prompts']}"
    return [
        f"{settings['clips']} clips of {settings['seconds']:g} s a variant, the same prompts ({prompts}) and seeds "
        f"({settings['seed']} and up) for all; guidance 3, temperature 1, top-k 250",
        f"embedder {context['embedder']}; reference {context['reference']}, total variance "
        f"{context['total_variance']:.1f}; judge of prompts {context['listener']}",
        f"TinyMusician {context['version']}, torch {context['torch']}, {context['threads']} threads",
    ]


def _retention(pairs: Mapping[str, Mapping]) -> str:
    if not pairs:
        return "One variant alone: there is nothing to compare it with."
    columns = ("", "retention", "likelihood", "sound", "prompt")
    return table(columns, [[name, *(_share(kept[part]) for part in columns[1:])] for name, kept in pairs.items()])


def _share(figure: Mapping | None) -> str:
    return interval_cell(figure, "{:.1%}")


def _quality(record: Mapping) -> str:
    rows = [[name, *(interval_cell(quality[key], form) for _, key, form in QUALITY)] for name, quality in _rows(record)]
    return table(["", *(title for title, _, _ in QUALITY)], rows)


def _adherence(record: Mapping) -> str:
    """One row a variant and judge, one column an attribute, with chance."""
    rows = []
    for name, quality in _rows(record):
        for judge, found in quality["adherence"].items():
            rows.append([name, judge, *(_asked_cell(found.get(attribute)) for attribute in HEADS)])
    return table(["", "judge", *HEADS], rows)


def _asked_cell(found: Mapping | None) -> str:
    if found is None:
        return _share(None)
    accuracy = found["accuracy"]
    return f"{_share(accuracy)}, chance {found['chance']:.0%}, n {accuracy['n']}"


STEADY = (
    ("key", "key", "{:.2f}"),
    ("tempo", "tempo", "{:.2f}"),
    ("silence", "silence", "{:.1%}"),
    ("noise dB", "noise", "{:.1f}"),
    ("loop", "loop", "{:.2f}"),
    ("stuck", "stuck", "{:.2f}"),
)
STEADINESS = """
- Key: how much better the pitch classes of the first and the last third fit as they are than transposed. Tempo: how
  much better the rhythms of the two thirds fit as they are than at any other tempo. Silence: share of the clip. Noise:
  spectral flatness of the noisiest third (white noise: -2.5). Loop: how exactly the clip repeats what it played up to
  5 s before (one bar over and over: 1). Stuck: how alike its moments are (one chord: 1).
- Within: as real music is in 95 of 100 windows, figure by figure; so real music is the measure, not 100%. All: within
  all six limits. Same scale: the nearest keys of the first and the last third are one key, or relatives.
"""


def _steadiness(record: Mapping) -> list[str]:
    """Whether clips stay one piece of music; nothing for short ones."""
    found = record["steadiness"]
    if found is None:
        return []
    shares = [*((title.split()[0], key) for title, key, _ in STEADY), ("all", "all")]
    within = [
        [name, *(_share(row["within"] and row["within"][key]) for _, key in shares), _share(row["same_scale"])]
        for name, row in found["rows"].items()
    ]
    means = [
        [name, *(interval_cell(row["mean"][key], form) for _, key, form in STEADY)]
        for name, row in found["rows"].items()
    ]
    if found["limits"] is None:
        limits = "There is too little real music as long as this to say what is within its range."
    else:
        limits = f"Limits of {found['windows']} windows of real music of {found['seconds']:g} s: " + "; ".join(
            f"{title} {'at least' if key in LEAST else 'at most'} {form.format(found['limits'][key])}"
            for title, key, form in STEADY
        )
    return [
        f"## Whether clips of {record['settings']['seconds']:g} s stay one piece of music",
        "Share of clips within the range of real music:",
        table(["", *(title for title, _ in shares), "same scale"], within),
        limits,
        "Means:",
        table(["", *(title for title, _, _ in STEADY)], means),
        STEADINESS,
    ]


def listening_notes(record: Mapping) -> list[str]:
    """Sentences on how the clips were made, for those who listen to them."""
    settings, listener = record["settings"], record["context"]["listener"]
    return [
        f"All {settings['clips']} clips of {settings['seconds']:g} s of each variant, none left out or made twice, the",
        "same prompts and seeds for all; guidance 3, temperature 1, top-k 250.",
        f"Under each clip: what {listener} hears and how sure it is, ✓ or ✗ where the prompt asked for it; then tempo",
        "and key as librosa finds them, and in long clips whether they stay one piece of music.",
    ]


def _speed(variants: Sequence[Mapping]) -> str:
    rows = []
    for variant in variants:
        figures = {key: variant["figures"][key] for _, key, _, _ in SPEED}
        scaled = [None if figures[key] is None else figures[key] * factor for _, key, factor, _ in SPEED]
        rows.append([variant["model"], *(cell(x, form) for x, (_, _, _, form) in zip(scaled, SPEED, strict=True))])
    return table(["", *(title for title, _, _, _ in SPEED)], rows)


def _judges(judges: Mapping) -> str:
    """How often the judges are right about held-out music, as sound and after the codec."""
    rows = []
    for judge, found in judges.items():
        for attribute, kinds in found.items():
            rows.append([judge, attribute, *(_share(kinds.get(kind)) for kind in ("real", "codec"))])
    return table(["judge", "attribute", "right about real audio", "right after the codec"], rows)
