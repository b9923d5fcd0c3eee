"""Players and downloads of clips, whole or as far as they are made. Pure functions from records to HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from studio import plots, wording
from studio.preview import Heard

PLAY = '<svg class="i-play" viewBox="0 0 24 24" aria-hidden="true"><path d="M8 5.2v13.6L19 12z"/></svg>'
PAUSE = (
    '<svg class="i-pause" viewBox="0 0 24 24" aria-hidden="true"><path d="M7 5h3.6v14H7zM13.4 5H17v14h-3.6z"/></svg>'
)
DOWN = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 4v11m0 0-4.5-4.5M12 15l4.5-4.5M5 19.5h14"/></svg>'


def file_url(path: Path) -> str:
    """The address under which Gradio serves a file of the output folder."""
    return "gradio_api/file=" + quote(path.as_posix(), safe="/:")


def player(
    url: str, label: str, seconds: float, picture: str = "", side: str = "", extra: str = "", loop: bool = False
) -> str:
    """A play button, a position bar, the time and `extra`; without `picture`, a spectrogram mask, the bar is plain.

    A loop is played by sound.js, for the gap that an audio element leaves.
    """
    image = ""
    if picture:
        marks = "".join(f'<i style="bottom:{100 * at:.1f}%">{name}</i>' for at, name in plots.axis_marks())
        image = f'<div class="tm-spectrum" style="--mask:url({picture})"></div><div class="tm-axis">{marks}</div>'
    sound = "" if loop else f'preload="auto" src="{escape(url)}"'
    data = f'data-loop="{escape(url)}"' if loop else f'data-side="{side}"'
    return _player(label, seconds, "" if picture else "is-plain", data, sound, image, extra)


def live_player(heard: Heard, label: str, whole: bool) -> str:
    """The player of a clip that is still being made: sound.js fetches the sound; `whole` says that no more comes."""
    data = (
        f'data-live="{escape(file_url(heard.path))}" data-rate="{heard.sample_rate_hz}"'
        f' data-channels="{heard.channels}" data-made="{heard.samples}" data-whole="{int(whole)}"'
    )
    made = wording.clock(heard.samples / heard.sample_rate_hz)
    extra = f'<span class="tm-far">Preview{"" if whole else f", {made} made"}</span>'
    return _player(label, heard.expected_s, "is-live", data, "", _shape(heard.levels), extra)


def download(path: Path, text: str, kind: str = "") -> str:
    return (
        f'<a class="tm-download {kind}" href="{escape(file_url(path))}" download="{escape(path.name)}"'
        f' title="{escape(path.name)}">{DOWN}<span>{escape(text)}</span></a>'
    )


def _player(label: str, seconds: float, kind: str, data: str, sound: str, image: str, extra: str) -> str:
    return (
        f'<div class="tm-player {kind}" data-label="{escape(label)}" data-seconds="{seconds:.3f}" {data}>'
        f"<audio {sound}></audio>"
        f'<div class="tm-bar" role="slider" tabindex="0" aria-label="Position in {escape(label)}" aria-valuemin="0"'
        f' aria-valuemax="{seconds:.1f}" aria-valuenow="0">{image}<div class="tm-line"></div></div>'
        f'<div class="tm-transport"><button type="button" class="tm-play" aria-label="Play {escape(label)}">'
        f'{PLAY}{PAUSE}</button><span class="tm-time"><b class="tm-at">0:00</b> / {wording.clock(seconds)}</span>'
        f'<span class="tm-lost">This clip cannot be played; its file may be gone.</span>{extra}</div></div>'
    )


def _shape(levels: Sequence[float]) -> str:
    """The loudness of what is made, as bars around a middle line; what is to come is empty."""
    bars = "".join(f"M{x + 0.5} {50 - 46 * level:.0f}V{50 + 46 * level:.0f}" for x, level in enumerate(levels) if level)
    return (
        f'<svg class="tm-shape" viewBox="0 0 {len(levels)} 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{bars}"/></svg>'
    )
