"""The phrases of the domain found in a prompt: what each could mean, the longest phrase first."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product

from .. import domain
from ..domain import MODES, TEMPI

INSTRUMENT, STYLE, TEMPO, MODE, MOOD = "instrument", "style", "tempo", "mode", "mood"
UNSURE, NOTHING = "unsure", "nothing"
SOMETHING_ELSE = (
    *("electric guitar", "bass guitar", "steel guitar", "slide guitar", "distorted guitar", "air guitar"),
    *("electric piano", "toy piano", "player piano", "bass clarinet", "pan flute", "mouth organ", "barrel organ"),
    *("fresh air", "open air", "hot air", "thin air", "on air", "wedding march", "month of march"),
    *("walking bass", "easy listening", "soft rock", "wild west", "highlight reel", "demo reel"),
)
"""Phrases around a word of ours that name something else: they ask for nothing that the family knows."""
SLANG = ("vibes",)
"""Instruments whose name is also a word for a mood: UNSURE, but where they stand as an instrument does."""
SPELLINGS = {"uptempo": "up tempo", "midtempo": "mid tempo", "up beat": "upbeat", "lighthearted": "light hearted"}
NOT = re.compile(
    r"(?:^| )(?:no|not|without|never|non|isn t|nothing|avoid|instead of|rather than)"
    r"(?: (?:a|an|any|the|too|so|very|really|more|much|another))* $"
)
AS_AN_INSTRUMENT = re.compile(r"(?:^|(?:^| )(?:,|on|by|for|the|solo|playing|featuring|and|a)) $")
PLAYS = re.compile(r" (?:playing|plays|performing|solo|player|chords|melody)\b")


@dataclass(frozen=True)
class Mention:
    """A phrase at `start`..`end` of a normalised prompt, and the classes of `table` that it stands for.

    The classes of MOOD are pairs of tempo and mode.
    """

    table: str
    phrase: str
    classes: frozenset
    start: int
    end: int


def normalise(prompt: str) -> str:
    """Lower case, one space between words, a comma for every stop, spelt as the domain's phrases are.

    Metres keep their stroke (6/8), accidentals become words.
    """
    text = prompt.lower().replace("&", " and ").replace("♭", " flat").replace("♯", " sharp")
    text = re.sub(r"\b([a-g])#", r"\1 sharp ", text)
    text = re.sub(r"(\d)\.\d+", r"\1", text)
    text = re.sub(r"(\d)(bpm)\b", r"\1 \2", text)
    text = re.sub(r"\b(\d{1,2})\s*/\s*(\d{1,2})\b", r"\1/\2", text)
    text = re.sub(r"\b(2|3|4|6|9|12)[ -](2|4|8)(?=[ -]time\b)", r"\1/\2", text)
    text = re.sub(r"[,.;:!?()\[\]{}\"|\n\r\t]", " , ", text)
    text = re.sub(r"(?<!\d)/|/(?!\d)|[^\w/,\s]|_", " ", text)
    text = " ".join(text.split())
    for spelling, usual in SPELLINGS.items():
        text = re.sub(rf"\b{spelling}\b", usual, text)
    return text


def plural(phrase: str) -> str:
    return phrase + ("es" if phrase.endswith(("z", "ch")) else "s")


def _of_one_table(table: str, phrases: dict[str, Iterable[str]], plurals: bool = False) -> dict:
    found = defaultdict(set)
    for name, known in phrases.items():
        for phrase in known:
            for form in (phrase, plural(phrase)) if plurals else (phrase,):
                found[form].add(name)
    return {(phrase, table): frozenset(names) for phrase, names in found.items()}


@cache
def vocabulary() -> dict[str, tuple[tuple[str, frozenset], ...]]:
    """Phrase -> what it may mean, as (table, classes). A general word ("tune") means NOTHING, whatever else it is."""
    tempo = {name: (*domain.TEMPO[name], *domain.PACE[name]) for name in TEMPI}
    use = {pair: domain.USE[pair[0]] for pair in product(TEMPI, MODES)}
    mood = {pair: (*known, *use[pair]) for pair, known in domain.MOOD.items()}
    found = {
        **_of_one_table(INSTRUMENT, domain.PLAYED_BY, plurals=True),
        **_of_one_table(STYLE, domain.KIND, plurals=True),
        **_of_one_table(TEMPO, tempo),
        **_of_one_table(MODE, domain.MODE),
        **_of_one_table(MOOD, mood),
    }
    general = (*domain.GENERIC, *domain.BACKGROUND, *SOMETHING_ELSE)
    meanings = defaultdict(list)
    for (phrase, table), classes in found.items():
        meanings[phrase].append((table, classes))
    for phrase in general:
        meanings[phrase] = meanings[plural(phrase)] = [(NOTHING, frozenset())]
    return {phrase: tuple(known) for phrase, known in meanings.items()}


@cache
def _pattern() -> re.Pattern:
    known = sorted(vocabulary(), key=len, reverse=True)
    return re.compile(rf"(?<!\S)(?:{'|'.join(map(re.escape, known))})(?!\S)")


def mentions(text: str) -> list[Mention]:
    """The phrases of a normalised prompt, from left to right; those that are said not to be wanted are left out."""
    found = []
    for match in _pattern().finditer(text):
        if NOT.search(text[: match.start()]):
            continue
        for table, classes in vocabulary()[match.group()]:
            table = UNSURE if _slang(match, text) else table
            found.append(Mention(table, match.group(), classes, match.start(), match.end()))
    return found


def _slang(match: re.Match, text: str) -> bool:
    """Whether a word of SLANG is used for a mood: "chill vibes", but not "a waltz on vibes" or "a vibes solo"."""
    if match.group() not in SLANG:
        return False
    followed = PLAYS.match(text, match.end()) or _pattern().match(text, match.end() + 1)
    return not (followed or AS_AN_INSTRUMENT.search(text[: match.start()]))
