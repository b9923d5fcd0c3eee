"""The studio's own markup: variant cards, the side-by-side chart, notes and the list of takes.

Pure functions from records to HTML. Everything that a person typed is escaped; every link goes to the output folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from studio import plots, wording
from studio.players import download, file_url, live_player, player
from studio.store import ClipRow, Take
from studio.takes import Card

MARK = (
    '<svg class="tm-mark" viewBox="0 0 40 40" aria-hidden="true"><rect x="3" y="15" width="5" height="10" rx="2.5"/>'
    '<rect x="12.7" y="4" width="5" height="32" rx="2.5"/><rect x="22.3" y="10" width="5" height="20" rx="2.5"/>'
    '<circle cx="34.5" cy="20" r="3.5"/></svg>'
)
MAX_LISTED = 60
CHART = (("x_realtime", "more is better"), ("peak_memory_bytes", "less is better"), ("disk_bytes", "less is better"))


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


def card(state: Card, folder: Path) -> str:
    """One model's card in whatever state it is."""
    body = {"working": _working, "done": _done, "failed": _failed}.get(state.state, _quiet)(state, folder)
    stopped = ' data-stopped="1"' if state.clip is not None and state.clip.stopped else ""
    return (
        f'<article class="tm-card tone-{tone(state.model)} is-{state.state}" data-state="{state.state}"{stopped}'
        f' data-model="{escape(state.model)}"><header><h3>{escape(wording.model_title(state.model))}</h3>'
        f"<p>{escape(wording.model_line(state.model))}</p></header>{body}</article>"
    )


def figures(values: dict | None) -> str:
    """The measured figures of one clip, each with its unit and meaning; without any, the empty places for them."""
    cells = [
        _figure(words.name, words.label, _meaning(words, values), *_shown(words, values)) for words in wording.FIGURES
    ]
    ran_on = wording.ran_on(values) if values is not None else "–"
    cells.append(_figure("device", "Ran on", "The device that computed, and its threads", "", ran_on))
    return f'<dl class="tm-figures{"" if values else " is-blank"}">{"".join(cells)}</dl>'


def chart(states: Sequence[Card]) -> str:
    """Speed, memory and size of the models that played to the end side by side; empty until two of them are there."""
    made = [state for state in states if state.clip is not None and not state.clip.stopped]
    if len(made) < 2:
        return ""
    groups = "".join(_bars(name, hint, made) for name, hint in CHART)
    title = heading("Side by side")
    return f'<section class="tm-chart" aria-label="Side by side">{title}<div class="tm-groups">{groups}</div></section>'


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


def _meaning(words: wording.FigureWords, values: dict | None) -> str:
    """What a figure means, and how far its runs lie apart."""
    return "; ".join(filter(None, (words.meaning, wording.apart(words, values or {}))))


def _figure(name: str, label: str, meaning: str, number: str, unit: str) -> str:
    kind = ' class="is-missing"' if number == wording.NOT_MEASURED else ""
    shown = (f"<b{kind}>{number}</b>" if number else "") + (f" <small>{escape(unit)}</small>" if unit else "")
    return f'<div data-figure="{name}" title="{escape(meaning)}"><dt>{label}</dt><dd>{shown}</dd></div>'


def _take(take: Take) -> str:
    dots = "".join(
        f'<i class="tone-{tone(clip.model)}" title="{escape(wording.model_title(clip.model))}"></i>'
        for clip in take.clips
    )
    settings = wording.setting_line(take.settings, take.form)
    mark = ' · <b class="is-stopped">stopped</b>' if any(clip.stopped for clip in take.clips) else ""
    return (
        f'<li><button type="button" data-take="{take.id}"><span class="tm-prompt">{escape(take.prompt)}</span>'
        f'<span class="tm-meta"><span class="tm-dots">{dots}</span>{escape(settings)}'
        f"{mark} · {wording.ago(take.created_at)}</span></button></li>"
    )


def _quiet(state: Card, folder: Path) -> str:
    text = {
        "idle": "Nothing played yet",
        "waiting": "Waiting for its turn",
        "missing": "Not finished",
    }.get(state.state, state.message)
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
    sound = '<div class="tm-staff" aria-hidden="true"></div>'
    if state.heard is not None:
        sound = live_player(state.heard, wording.model_title(state.model), whole=state.run > 1)
    return (
        f'{sound}<div class="tm-progress{"" if known else " is-open"}" role="progressbar" aria-label="{stage}"'
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
    export, looped = download(path, "WAV", "is-clip"), state.form.loop and not clip.stopped
    sound = player(file_url(path), title, clip.audio_s, picture, extra=export, loop=looped)
    return sound + _mark(state) + figures(clip.figures) + _split(clip)


def _mark(state: Card) -> str:
    """What is particular about a finished clip: stopped, a loop, a continuation; "" for a plain one."""
    length = wording.exact(state.clip.audio_s)
    if state.clip.stopped:
        return f'<p class="tm-mark-line is-stopped">Stopped after {length}</p>'
    words = wording.form_words(state.form.as_dict(), state.clip.audio_s)
    return f'<p class="tm-mark-line">{escape(words[:1].upper() + words[1:])} · {length}</p>' if words else ""


def _failed(state: Card, folder: Path) -> str:
    return (
        f'<div class="tm-staff" aria-hidden="true"></div><p class="tm-trouble" role="alert">{escape(state.message)}</p>'
    )


def _split(clip: ClipRow) -> str:
    """Where the time went, and how often it was measured: one quiet line under the figures."""
    runs = clip.figures.get("runs")
    apart = wording.apart(wording.FIGURE["x_realtime"], clip.figures)
    counted = [f"median of {runs} runs" if runs > 1 else "one run"] if runs else []
    counted += [f"speed {apart.rpartition(' in ')[0]}"] if apart else []
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
