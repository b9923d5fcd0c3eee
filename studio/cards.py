"""The studio's own markup: players, variant cards, the side-by-side chart, notes and the list of takes.

Pure functions from records to HTML. Everything that a person typed is escaped; every link goes to the output folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from studio import plots, wording
from studio.store import ClipRow, Take
from studio.takes import Card

PLAY = '<svg class="i-play" viewBox="0 0 24 24" aria-hidden="true"><path d="M8 5.2v13.6L19 12z"/></svg>'
PAUSE = (
    '<svg class="i-pause" viewBox="0 0 24 24" aria-hidden="true"><path d="M7 5h3.6v14H7zM13.4 5H17v14h-3.6z"/></svg>'
)
DOWN = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 4v11m0 0-4.5-4.5M12 15l4.5-4.5M5 19.5h14"/></svg>'
MARK = (
    '<svg class="tm-mark" viewBox="0 0 40 40" aria-hidden="true"><rect x="3" y="15" width="5" height="10" rx="2.5"/>'
    '<rect x="12.7" y="4" width="5" height="32" rx="2.5"/><rect x="22.3" y="10" width="5" height="20" rx="2.5"/>'
    '<circle cx="34.5" cy="20" r="3.5"/></svg>'
)
MAX_LISTED = 60
CHART = (("x_realtime", "more is better"), ("peak_memory_bytes", "less is better"), ("disk_bytes", "less is better"))


def file_url(path: Path) -> str:
    """The address under which Gradio serves a file of the output folder."""
    return "gradio_api/file=" + quote(path.as_posix(), safe="/:")


def tone(model: str) -> str:
    """The name of a model's colour."""
    return model if model in wording.MODELS else "own"


def header() -> str:
    return (
        f'<header class="tm-header"><div class="tm-brand">{MARK}<h1>TinyMusician</h1></div>'
        "<p>Text to music on the machine in front of you. "
        "<span>Three models, one prompt, honest figures.</span></p></header>"
    )


def footer(folder: Path) -> str:
    return (
        '<footer class="tm-footer"><span>Everything runs on this machine; nothing is sent anywhere.</span>'
        f"<span>Clips are kept in <code>{escape(str(folder))}</code></span></footer>"
    )


def note(text: str, kind: str = "info") -> str:
    """One line above the cards: kind is info, busy or problem; an empty text leaves nothing."""
    if not text:
        return ""
    role = "alert" if kind == "problem" else "status"
    return f'<div class="tm-note is-{kind}" role="{role}">{escape(text[:1].upper() + text[1:])}</div>'


def heading(title: str, aside: str = "") -> str:
    return f'<div class="tm-heading"><h2>{escape(title)}</h2><span>{escape(aside)}</span></div>'


def player(url: str, label: str, seconds: float, picture: str = "", side: str = "", extra: str = "") -> str:
    """A play button, a position bar, the time and `extra`; without `picture`, a spectrogram mask, the bar is plain."""
    length = wording.clock(seconds)
    marks = (
        "".join(f'<i style="bottom:{100 * at:.1f}%">{name}</i>' for at, name in plots.axis_marks()) if picture else ""
    )
    image = (
        f'<div class="tm-spectrum" style="--mask:url({picture})"></div><div class="tm-axis">{marks}</div>'
        if picture
        else ""
    )
    return (
        f'<div class="tm-player{"" if picture else " is-plain"}" data-label="{escape(label)}" data-side="{side}"'
        f' data-seconds="{seconds:.3f}"><audio preload="auto" src="{escape(url)}"></audio>'
        f'<div class="tm-bar" role="slider" tabindex="0" aria-label="Position in {escape(label)}" aria-valuemin="0"'
        f' aria-valuemax="{seconds:.1f}" aria-valuenow="0">{image}<div class="tm-line"></div></div>'
        f'<div class="tm-transport"><button type="button" class="tm-play" aria-label="Play {escape(label)}">'
        f"{PLAY}{PAUSE}</button>"
        f'<span class="tm-time"><b class="tm-at">0:00</b> / {length}</span>'
        f'<span class="tm-lost">This clip cannot be played; its file may be gone.</span>{extra}</div></div>'
    )


def card(state: Card, folder: Path) -> str:
    """One model's card in whatever state it is."""
    body = {"working": _working, "done": _done, "failed": _failed}.get(state.state, _quiet)(state, folder)
    return (
        f'<article class="tm-card tone-{tone(state.model)} is-{state.state}" data-state="{state.state}"'
        f' data-model="{escape(state.model)}"><header><h3>{escape(wording.model_title(state.model))}</h3>'
        f"<p>{escape(wording.model_line(state.model))}</p></header>{body}</article>"
    )


def figures(values: dict | None) -> str:
    """The measured figures of one clip, each with its unit and meaning; without any, the empty places for them."""
    cells = [_figure(words.name, words.label, words.meaning, *_shown(words, values)) for words in wording.FIGURES]
    ran_on = wording.ran_on(values) if values is not None else "–"
    cells.append(_figure("device", "Ran on", "The device that computed, and its threads", "", ran_on))
    return f'<dl class="tm-figures{"" if values else " is-blank"}">{"".join(cells)}</dl>'


def chart(states: Sequence[Card]) -> str:
    """Speed, memory and size of the finished models side by side; empty until two of them are there."""
    made = [state for state in states if state.clip is not None]
    if len(made) < 2:
        return ""
    groups = "".join(_bars(name, hint, made) for name, hint in CHART)
    title = heading("Side by side")
    return f'<section class="tm-chart" aria-label="Side by side">{title}<div class="tm-groups">{groups}</div></section>'


def download(path: Path, text: str, kind: str = "") -> str:
    return (
        f'<a class="tm-download {kind}" href="{escape(file_url(path))}" download="{escape(path.name)}"'
        f' title="{escape(path.name)}">{DOWN}<span>{escape(text)}</span></a>'
    )


def history(takes: Sequence[Take]) -> str:
    """The takes so far, newest first; each is a button that brings it back."""
    if not takes:
        return (
            '<div class="tm-empty">No takes yet. What you generate is kept here, also after the page is closed.</div>'
        )
    rest = len(takes) - MAX_LISTED
    more = f'<div class="tm-empty">{rest} older ones are in the output folder.</div>' if rest > 0 else ""
    return f'<ol class="tm-takes">{"".join(_take(take) for take in takes[:MAX_LISTED])}</ol>{more}'


def _shown(words: wording.FigureWords, values: dict | None) -> tuple[str, str]:
    return ("–", "") if values is None else wording.figure_parts(words, values)


def _figure(name: str, label: str, meaning: str, number: str, unit: str) -> str:
    kind = ' class="is-missing"' if number == wording.NOT_MEASURED else ""
    shown = (f"<b{kind}>{number}</b>" if number else "") + (f" <small>{escape(unit)}</small>" if unit else "")
    return f'<div data-figure="{name}" title="{escape(meaning)}"><dt>{label}</dt><dd>{shown}</dd></div>'


def _take(take: Take) -> str:
    dots = "".join(
        f'<i class="tone-{tone(clip.model)}" title="{escape(wording.model_title(clip.model))}"></i>'
        for clip in take.clips
    )
    return (
        f'<li><button type="button" data-take="{take.id}"><span class="tm-prompt">{escape(take.prompt)}</span>'
        f'<span class="tm-meta"><span class="tm-dots">{dots}</span>{escape(wording.setting_line(take.settings))}'
        f" · {wording.ago(take.created_at)}</span></button></li>"
    )


def _quiet(state: Card, folder: Path) -> str:
    text = {
        "idle": "Nothing played yet",
        "waiting": "Waiting for its turn",
        "cancelled": "Cancelled",
        "missing": "Not finished",
    }.get(state.state, "")
    staff = '<div class="tm-staff" aria-hidden="true"></div>'
    return f'{staff}<p class="tm-state">{text}</p>{figures(None)}'


def _working(state: Card, folder: Path) -> str:
    progress = state.progress
    stage = wording.STAGES[progress.stage] if progress else "Starting its process"
    if state.runs > 1 and state.run > 0:
        stage += f", run {state.run} of {state.runs}"
    known = progress is not None and progress.total > 1
    percent = 100 * progress.done / progress.total if known else 0
    parts = [f"{percent:.0f}%"] if known else []
    if known and progress.eta_s is not None and progress.done < progress.total:
        parts.append(f"about {wording.duration(progress.eta_s)} left")
    parts.append(f"{wording.duration(state.waited_s)} so far")
    value = f' aria-valuenow="{percent:.0f}"' if known else ""
    return (
        '<div class="tm-staff" aria-hidden="true"></div>'
        f'<div class="tm-progress{"" if known else " is-open"}" role="progressbar" aria-label="{stage}"'
        f' aria-valuemin="0" aria-valuemax="100"{value}><i style="width:{percent:.1f}%"></i></div>'
        f'<p class="tm-state"><b>{stage}</b><span>{" · ".join(parts)}</span></p>{figures(None)}'
    )


def _done(state: Card, folder: Path) -> str:
    clip, title = state.clip, wording.model_title(state.model)
    path = folder / clip.file
    try:
        picture = plots.mask_uri(path)
    except (OSError, ValueError):
        gone = f'<p class="tm-state">Its file {escape(clip.file)} is gone or cannot be read.</p>'
        return f'<div class="tm-staff"></div>{gone}{figures(clip.figures)}'
    sound = player(file_url(path), title, clip.audio_s, picture, extra=download(path, "WAV", "is-clip"))
    return sound + figures(clip.figures) + _split(clip)


def _failed(state: Card, folder: Path) -> str:
    return (
        f'<div class="tm-staff" aria-hidden="true"></div><p class="tm-trouble" role="alert">{escape(state.message)}</p>'
    )


def _split(clip: ClipRow) -> str:
    """Where the time went, and how often it was measured: one quiet line under the figures."""
    runs = clip.figures.get("runs")
    counted = [f"median of {runs} runs" if runs > 1 else "one run"] if runs else []
    stages = clip.figures.get("stages_ms") or {}
    names = (("text", "text"), ("lm", "composing"), ("codec", "sound"))
    parts = [f"{word} {wording.spell_ms(stages[key])}" for key, word in names if stages.get(key) is not None]
    return f'<p class="tm-split">{escape(" · ".join(counted + parts))}</p>' if counted + parts else ""


def _bars(name: str, hint: str, made: Sequence[Card]) -> str:
    words = wording.FIGURE[name]
    values = [state.clip.figures.get(name) for state in made]
    most = max((value for value in values if value), default=1)
    rows = "".join(
        f'<li class="tone-{tone(state.model)}"><span>{escape(wording.model_title(state.model))}</span>'
        f'<div class="tm-track"><i style="width:{100 * (value or 0) / most:.1f}%"></i></div>'
        f"<b>{wording.figure_parts(words, state.clip.figures)[0]}</b></li>"
        for state, value in zip(made, values, strict=True)
    )
    return f'<div class="tm-group"><h4>{words.label}<small>{words.unit}, {hint}</small></h4><ul>{rows}</ul></div>'
