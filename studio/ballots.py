"""The Listen tab's markup: the blind pair, what was behind it, and the results table.

`trial` is given two addresses and nothing else about the clips: what a page must not know cannot be written into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from studio import cards, wording
from studio.players import player
from studio.takes import Card
from studio.trial import Pair, Preference, Vote

INTRO = (
    '<p class="tm-lead">Two clips of the same prompt and settings, by different models, set to the same loudness. '
    "Listen to both, choose, and only then see which was which.</p>"
)
PREPARING = '<div class="tm-empty is-stage">Preparing the next pair …</div>'
CHOICES = (("a", "A is better"), ("same", "No difference"), ("b", "B is better"))


def status(text: str) -> str:
    return f'<p class="tm-making" role="status">{escape(text)}</p>'


FRESH_HINT = status(
    "Each model plays one of the studio's prompts; nobody has heard these clips with their names on. "
    "They join the takes once they are judged."
)


def nothing(judged: int) -> str:
    """The empty stage: no pair is waiting."""
    if judged:
        text = "Every pair has been judged. Make fresh pairs, or compare another prompt, and go on."
    else:
        text = "There is no pair to judge yet. Make fresh pairs here, or compare two or more models first."
    return f'<div class="tm-empty is-stage">{text}</div>'


def trial(pair: Pair, url_a: str, url_b: str, left: int) -> str:
    """A pair with its names off. The vote is locked until the player's script has counted enough listening."""
    seconds = min(pair.a.audio_s, pair.b.audio_s)
    sides = "".join(_side(letter, url, seconds) for letter, url in (("A", url_a), ("B", url_b)))
    buttons = "".join(f'<button type="button" data-vote="{value}" disabled>{text}</button>' for value, text in CHOICES)
    waiting = f"{left} pair{'' if left == 1 else 's'} waiting"
    return (
        f'<section class="tm-trial" data-pair="{pair.id}" data-needed="{pair.needed_s:.2f}" aria-label="Blind pair">'
        f'<div class="tm-asked"><q>{escape(pair.prompt)}</q><span>{waiting}</span></div>'
        f'<div class="tm-sides">{sides}</div>'
        f'<p class="tm-hint" role="status">Listen to at least {pair.needed_s:.0f} s of each to open the vote.</p>'
        f'<div class="tm-vote" role="group" aria-label="Your vote">{buttons}</div></section>'
    )


def reveal(pair: Pair, vote: Vote, url_a: str, url_b: str) -> str:
    """The same pair after the vote was stored, with names and figures."""
    chosen = {"a": pair.a, "b": pair.b}.get(vote.choice)
    verdict = f"You preferred the {_lower(chosen.model)}." if chosen else "You heard no difference."
    sides = "".join(
        f'<div class="tm-side tone-{cards.tone(clip.model)}{" is-chosen" if clip is chosen else ""}">'
        f'<div class="tm-letter">{letter}</div><h3>{escape(wording.model_title(clip.model))}</h3>'
        f"{player(url, f'clip {letter}', clip.audio_s)}{cards.figures(clip.figures)}</div>"
        for letter, clip, url in (("A", pair.a, url_a), ("B", pair.b, url_b))
    )
    return (
        '<section class="tm-trial is-revealed" aria-label="What was behind the pair">'
        f'<div class="tm-asked"><q>{escape(pair.prompt)}</q><span>Vote stored</span></div>'
        f'<p class="tm-hint" role="status">{escape(verdict)}</p><div class="tm-sides">{sides}</div></section>'
    )


def making(state: Card | None, ended: int, total: int, waiting: bool = False) -> str:
    """Progress of fresh clips, without a word about which model is at work."""
    if waiting:
        return status("Another take is being made on this machine; these clips are next and start by themselves.")
    text = f"Clip {min(ended + 1, total)} of {total}"
    progress = state.progress if state else None
    if progress is not None:
        text += f" · {wording.STAGES[progress.stage].lower()}"
        if progress.total > 1:
            text += f" · {100 * progress.done / progress.total:.0f}%"
    return status(text)


def results(found: Sequence[Preference]) -> str:
    """A row for each two models: counts, the share with its interval, and what may be said."""
    if not found:
        return '<div class="tm-empty">No votes yet.</div>'
    return f'<div class="tm-results">{"".join(_result(row) for row in found)}</div>'


def _side(letter: str, url: str, seconds: float) -> str:
    sound = player(url, f"clip {letter}", seconds, side=letter.lower())
    return f'<div class="tm-side"><div class="tm-letter">{letter}</div>{sound}</div>'


def _result(row: Preference) -> str:
    first, second = wording.model_title(row.first), wording.model_title(row.second)
    counts = (
        f'<span class="tone-{cards.tone(row.first)}"><b>{row.first_wins}</b> {escape(first)}</span>'
        f"<span><b>{row.same}</b> no difference</span>"
        f'<span class="tone-{cards.tone(row.second)}"><b>{row.second_wins}</b> {escape(second)}</span>'
    )
    return (
        f'<div class="tm-result" data-first="{escape(row.first)}" data-second="{escape(row.second)}">'
        f"<h3>{escape(first)} <em>against</em> {escape(second)}</h3>"
        f'<div class="tm-counts">{counts}</div>{_scale(row)}<p class="tm-verdict">{escape(_verdict(row))}</p></div>'
    )


def _scale(row: Preference) -> str:
    """From all for the first model at the left to all for the second at the right; the interval is a band."""
    if row.interval is None:
        return '<div class="tm-scale"></div>'
    low, high = row.interval
    return (
        f'<div class="tm-scale" role="img" aria-label="{escape(_verdict(row))}">'
        f'<i class="tm-band" style="left:{100 * (1 - high):.1f}%;width:{100 * (high - low):.1f}%"></i>'
        f'<i class="tm-dot" style="left:{100 * (1 - row.share):.1f}%"></i></div>'
    )


def _verdict(row: Preference) -> str:
    if row.interval is None:
        return "No vote has chosen a side yet."
    first, (low, high) = wording.model_title(row.first), row.interval
    counted = f"{row.first_wins} of {row.decided} vote{'' if row.decided == 1 else 's'} that chose a side"
    text = (
        f"{first}: {counted}, {wording.share(row.share)} (95% interval {wording.share(low)} to {wording.share(high)}). "
    )
    if row.leader is None:
        return text + "No clear preference so far."
    return text + f"{wording.model_title(row.leader)} is preferred."


def _lower(model: str) -> str:
    return wording.model_title(model).lower() if model in wording.MODELS else wording.model_title(model)
