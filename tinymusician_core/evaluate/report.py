"""An evaluation as files: report.json, report.md, quality-size.png and quality-speed.png."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..measure.plots import Point, scatter
from ..measure.report import document, made_with, write_files
from . import tables
from .summary import Evaluation

FILES = ("report.json", "report.md", "quality-size.png", "quality-speed.png")
DEFINITIONS = """
How to read it:

- Every figure of quality has a 95% interval in brackets, from random halves of the clips, the held-out windows and the
  reference windows, the same halves for all variants. Figures of speed have the lowest and the highest run there, and
  their ratios the least and the most that these allow.
- Retention: the geometric mean of likelihood, sound and prompt, each variant over teacher. Likelihood: the ratio of
  perplexities on held-out music. Sound: 1 - FAD∞ / total variance of the reference, a share that is 1 for music spread
  as the reference is and 0 for a model that always plays the average clip. Prompt: mean kappa.
- NLL: negative log-likelihood of held-out music, in nats a token. Perplexity: exp of it, all codebooks together. KL to
  teacher: forward, in nats a token, on the same tokens. Of one pass of each model: without guidance, but for what a
  model has built in.
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
        spread = tables.scaled(variant["spread"].get(key), factor)
        points.append(Point(model, None if x is None else x * factor, spread, kept["value"], tables.ends(kept)))
    return points


_WHOLE = {"value": 1.0, "low": None, "high": None, "n": 0}


def markdown(record: Mapping) -> str:
    """The report as Markdown, from `Evaluation.as_dict`."""
    settings, teacher = record["settings"], record["settings"]["models"][0]
    return document(
        f"How good the variants are, and what they keep of {teacher}",
        notes(record),
        "## Retention",
        tables.retention(record["retention"]),
        *tables.ratios(record["retention"]),
        "## Quality",
        tables.quality(record),
        *tables.codebooks(record),
        *tables.codec(record["codec"]),
        "## What the prompts asked for",
        f"Share of clips in which the judge hears what was asked for, out of {settings['clips']} clips.",
        tables.adherence(record),
        *tables.heard(record["retention"]),
        *tables.steadiness(record),
        "## Speed and size",
        *tables.speed(record),
        *(f"![retention against {axis}]({name})" for axis, name in zip(("size", "speed"), FILES[2:], strict=True)),
        "## The judges",
        tables.judges(record["judges"]),
        DEFINITIONS,
    )


def notes(record: Mapping) -> list[str]:
    """What the tables do not say: by which command, how clips were drawn, and with which judges."""
    settings, context = record["settings"], record["context"]
    prompts = "captions of held-out music" if settings["prompts"] is None else f"prompts {settings['prompts']}"
    threads = context["threads"]
    return [
        *made_with(context["command"]),
        f"{settings['clips']} clips of {settings['seconds']:g} s a variant, the same prompts ({prompts}) and seeds "
        f"({settings['seed']} and up) for all; {drawn(record['variants'])}",
        f"embedder {context['embedder']}; reference {context['reference']}, total variance "
        f"{context['total_variance']:.1f}; judge of prompts {context['listener']}",
        f"TinyMusician {context['version']}, torch {context['torch']}, {threads} thread{'s' * (threads != 1)}",
    ]


def drawn(variants: list[Mapping]) -> str:
    """How clips were drawn, in words: each variant's guidance, and what is the same for all."""
    said = {variant["model"]: _guidance(variant["guidance"]) for variant in variants}
    if len(set(said.values())) == 1:
        guidance = next(iter(said.values()))
    else:
        guidance = ", ".join(f"{model} {each}" for model, each in said.items())
    sampling = variants[0]["sampling"]
    if sampling["greedy"]:
        return f"guidance {guidance}; always the likeliest token"
    top_p = f", top-p {sampling['top_p']:g}" if sampling["top_p"] else ""
    return f"guidance {guidance}; temperature {sampling['temperature']:g}, top-k {sampling['top_k']}{top_p}"


def _guidance(found: Mapping) -> str:
    scale, built_in = f"{found['cfg']:g}", found["built_in"]
    if isinstance(built_in, Mapping):
        return f"{scale} (an input, {built_in['low']:g} to {built_in['high']:g}: one pass)"
    if built_in is not None:
        return f"{scale} (built in: one pass)"
    return f"{scale} (two passes)" if found["passes"] == 2 else f"{scale} (off: one pass)"


def listening_notes(record: Mapping) -> list[str]:
    """Sentences on how the clips were made, for those who listen to them."""
    settings, listener = record["settings"], record["context"]["listener"]
    return [
        f"All {settings['clips']} clips of {settings['seconds']:g} s of each variant, none left out or made twice, the",
        f"same prompts and seeds for all; {drawn(record['variants'])}.",
        f"Under each clip: what {listener} hears and how sure it is, ✓ or ✗ where the prompt asked for it; then tempo",
        "and key as librosa finds them, and in long clips whether they stay one piece of music.",
    ]
