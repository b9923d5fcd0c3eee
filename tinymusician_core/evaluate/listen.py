"""Clips for a person to judge: listen.html, with every clip of every variant to hear and to see, and spectrograms.jpg.

Nothing is chosen: all prompts of the evaluation are there, in their order, each with the seed that it was given. The
page holds its own pictures and finds the sound files beside it, so it works from a disk, without a server.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from ..files import whole_file
from .adherence import ATTRIBUTES
from .asked import Asked, asked
from .jury import Judged
from .limits import failures
from .pictures import MAX_ROWS, Sheet, jpeg, picture

PAGE, SHEET = "listen.html", "spectrograms.jpg"
MAX_CLIPS = MAX_ROWS
BEYOND = {
    "key": "leaves its key",
    "tempo": "leaves its tempo",
    "silence": "falls silent",
    "noise": "turns to noise",
    "loop": "repeats one bar",
    "stuck": "is stuck on a note",
}
STYLE, SCRIPT = (Path(__file__).with_name(name) for name in ("listen.css", "listen.js"))


@dataclass(frozen=True, eq=False)
class Played:
    """The clips of a variant: as judged, and their sound files in the same order."""

    model: str
    clips: tuple[Judged, ...]
    files: tuple[Path, ...]


def write_listening(
    variants: Sequence[Played],
    notes: Sequence[str],
    seconds: float,
    seeds: Sequence[int],
    limits: Mapping[str, float] | None,
    folder: Path,
    on_row: Callable[[int, int], None],
) -> list[Path]:
    """Write the page and the sheet of spectrograms into a folder above all sound files; returns their paths.

    Args:
        variants: as many clips each, of the same prompts.
        notes: sentences for the head of the page.
        seconds, seeds: of the clips.
        limits: of steadiness; None where that is not judged.
        folder: where to.
        on_row: told how many of the prompts are done.

    Raises:
        OSError: a sound file is missing, the folder cannot be written to, or the disk is full.
        ValueError: a sound file cannot be read.
    """
    sheet, rows = Sheet([variant.model for variant in variants], len(seeds)), []
    for index, seed in enumerate(seeds):
        on_row(index, len(seeds))
        prompt = variants[0].clips[index].prompt
        pictures = [picture(variant.files[index]) for variant in variants]
        sheet.add(f"{index + 1}. {prompt}", pictures)
        wish = asked(prompt)
        cells = [
            _cell(variant.model, variant.files[index].relative_to(folder), image, seconds, clip, wish, limits)
            for variant, image in zip(variants, pictures, strict=True)
            for clip in [variant.clips[index]]
        ]
        label = f"{index + 1}. {escape(prompt)}<small>seed {seed}</small><small>asks for: {_wish(wish)}</small>"
        rows.append(f"<tr><th>{label}</th>{''.join(cells)}</tr>")
    on_row(len(seeds), len(seeds))
    with whole_file(folder / PAGE) as partial:
        partial.write_text(_page([variant.model for variant in variants], notes, rows), encoding="utf-8")
    return [folder / PAGE, sheet.save(folder / SHEET)]


def _page(models: Sequence[str], notes: Sequence[str], rows: Sequence[str]) -> str:
    heads = "".join(f"<th>{escape(model)}</th>" for model in models)
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">\n<title>Every clip of an evaluation</title>',
            f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>",
            f"<header><h1>Every clip of an evaluation</h1><p>{escape(' '.join(notes))}</p></header>",
            f"<table><thead><tr><th>prompt</th>{heads}</tr></thead><tbody>",
            *rows,
            f"</tbody></table>\n<script>\n{SCRIPT.read_text(encoding='utf-8')}</script>\n</html>\n",
        )
    )


def _wish(wish: Asked) -> str:
    found = [value for name in ATTRIBUTES if (value := getattr(wish, name)) is not None]
    return escape(", ".join(found)) or "nothing that the listener knows"


def _cell(
    model: str,
    sound: Path,
    image: Image.Image,
    seconds: float,
    clip: Judged,
    wish: Asked,
    limits: Mapping[str, float] | None,
) -> str:
    """One clip: its picture, its player, what was heard."""
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg(image)).decode()
    facts = _heard(clip, wish) + _steady(clip, limits)
    items = "".join(f'<li class="{kind}">{escape(text)}</li>' for kind, text in facts)
    return (
        f'<td data-model="{escape(model)}"><figure><img src="{uri}" alt="spectrogram"><i></i></figure>'
        f'<audio controls preload="none" data-seconds="{seconds:g}" src="{escape(sound.as_posix())}"></audio>'
        f"<ul>{items}</ul></td>"
    )


def _heard(clip: Judged, wish: Asked) -> list[tuple[str, str]]:
    """What the listener heard, by attribute, whether it was asked for or not; and librosa's tempo and key."""
    found = []
    for name in ATTRIBUTES:
        heard, wanted = clip.heard.best(name), getattr(wish, name)
        kind, mark = ("", "") if wanted is None else ("yes", "✓ ") if heard == wanted else ("no", "✗ ")
        found.append((kind, f"{mark}{heard} {100 * float(clip.heard.probabilities[name].max()):.0f}%"))
    if clip.opinion.bpm is not None:
        found.append(("", f"{clip.opinion.bpm:.0f} BPM"))
    return found + ([("", clip.opinion.key)] if clip.opinion.key is not None else [])


def _steady(clip: Judged, limits: Mapping[str, float] | None) -> list[tuple[str, str]]:
    if limits is None or clip.steadiness is None:
        return []
    beyond = failures(clip.steadiness, limits)
    return [("no", BEYOND[name]) for name in beyond] or [("yes", "steady")]
