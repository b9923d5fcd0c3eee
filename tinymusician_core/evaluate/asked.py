"""What a prompt asks for, in the classes of the demo family: the lead instrument, the style, the tempo, the mode.

Read from the phrases by which captions name them (`domain.py`). A prompt asks for a class only where it is sure: words
that several classes share ("folk dance") and words against each other ("slow, then fast") ask nothing. What people say
outright ("fast", "in G minor") counts before what a mood or a use implies ("wistful", "for a party").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import chain, product

from .. import domain
from ..domain import MODES, STYLES, TEMPI
from ..records import check_prompt
from .phrases import INSTRUMENT, MODE, MOOD, STYLE, TEMPO, UNSURE, Mention, mentions, normalise, vocabulary
from .tempi import COMPOUND_METERS, classes_meant

METERS = {
    **dict.fromkeys(STYLES, ("2/4", "4/4", "2/2")),
    "jig": ("6/8", "12/8"),
    "slip jig": ("9/8",),
    "waltz": ("3/4", "3/8"),
}
"""Style -> the metres in which it is danced."""
BPM = re.compile(r"\b(\d{2,3}) (?:bpm|beats per minute|beats a minute)\b|\b(?:tempo|bpm)(?: of| ,)? (\d{2,3})\b")
METER = re.compile(r"(?<!\S)(?:2|3|4|6|9|12)/(?:2|4|8)(?!\S)")
MAJOR_OR_MINOR = re.compile(r"(?<!\S)(major|minor)(?!\S)")
SHORT_MODE = re.compile(r"(?<!\S)[a-g](?:b| flat| sharp)? (maj|min)(?!\S)")
SHORT_MINOR = re.compile(r"(?<!\S)(?:in|of) [a-g](?:b| flat| sharp)? ?m(?!\S)")
TOGETHER = re.compile(r"(?<!\S)(?:duet|duo|duets|duos|trio|quartet|quintet)(?! with\b)(?!\S)")
LEADS = re.compile(r" (?:melody|lead|leads|leading|solo|plays|playing the)(?!\S)")
LOOSELY = ("with {a}", "and {a}")
"""Templates of an accompaniment that are said of a lead too ("a waltz with violin"), if there is no other."""
SIDE_NOTES = ("with {a} in the background", "over {a}", "under {a}", "plus {a}", "alongside {a}", *LOOSELY)
HERE = "instrumenthere"
UP_TO_TWO_WORDS = r"(?:(?!(?:on|by|for|and|over|with|under|in)\b)\w+ ){0,2}"
AFTER_A_KEY = frozenset(
    (*("at", "in", "on", "for", "to", "with", "and", "over", "around"), *("key", "mode", "scale", "tempo", "played"))
)


@dataclass(frozen=True)
class Asked:
    """The classes that a prompt asks for; None where it leaves them open."""

    instrument: str | None = None
    style: str | None = None
    tempo: str | None = None
    mode: str | None = None


def asked(prompt: str) -> Asked:
    """What a prompt asks for.

    Raises:
        ValueError: no prompt, or a huge one.
    """
    text = normalise(check_prompt(prompt))
    found = mentions(text)
    style, metres = style_and_metres(text, found)
    tempo, mode = tempo_and_mode(text, found, metres)
    return Asked(lead_instrument(text, found), style, tempo, mode)


def only(classes: frozenset | set) -> str | None:
    return next(iter(classes)) if len(classes) == 1 else None


def shared(sets: list[frozenset], everything: tuple[str, ...]) -> frozenset:
    """What all of the sets hold; `everything` where there is no set."""
    return frozenset(everything).intersection(*sets)


def style_and_metres(text: str, found: list[Mention]) -> tuple[str | None, tuple[bool, ...]]:
    """The style, and whether the music may be in simple (False) or compound time (True).

    A metre by itself names no style, but tells those apart that share a word.
    """
    named = [m.classes for m in found if m.table == STYLE]
    styles = shared(named, STYLES)
    meters = frozenset(METER.findall(text))
    if meters:
        styles = frozenset(s for s in styles if meters & set(METERS[s]))
    possible = meters or {meter for s in styles for meter in METERS[s]}
    metres = tuple(sorted({meter in COMPOUND_METERS for meter in possible})) or (False, True)
    return (only(styles) if named else None), metres


def tempo_and_mode(text: str, found: list[Mention], metres: tuple[bool, ...]) -> tuple[str | None, str | None]:
    """Tempo and mode: as far as they are said outright, and what moods and uses imply beside that."""
    said_tempo = [m.classes for m in found if m.table == TEMPO]
    said_tempo += [classes_meant(int(a or b), metres) for a, b in BPM.findall(text) if int(a or b) > 0]
    said_mode = [m.classes for m in found if m.table == MODE] + modes_named(text)
    tempi, modes = shared(said_tempo, TEMPI), shared(said_mode, MODES)
    moods = [m.classes for m in found if m.table == MOOD]
    implied = frozenset(product(TEMPI, MODES)).intersection(*moods)
    together = {(tempo, mode) for tempo, mode in implied if tempo in tempi and mode in modes}
    if moods and together:
        return only({tempo for tempo, _ in together}), only({mode for _, mode in together})
    if not said_tempo:
        tempi = frozenset(tempo for tempo, _ in implied)
    if not said_mode:
        modes = frozenset(mode for _, mode in implied)
    return only(tempi), only(modes)


def modes_named(text: str) -> list[frozenset[str]]:
    """major and minor as musical terms: "in g major", "minor key", "f# min", "in am", but not "a major hit"."""
    found = []
    for match in MAJOR_OR_MINOR.finditer(text):
        following = text[match.end() :].split()[:1]
        is_article = text[: match.start()].endswith(" a ") or match.start() == 2 and text.startswith("a ")
        if not is_article or not following or _goes_with_a_key(following[0]):
            found.append(frozenset((match.group(1),)))
    short = {"maj": "major", "min": "minor"}
    found += [frozenset((short[name],)) for name in SHORT_MODE.findall(text)]
    return found + [frozenset(("minor",))] * bool(SHORT_MINOR.search(text))


@cache
def _words() -> frozenset[str]:
    """The words that may follow a key: all those of the domain."""
    domains = chain(vocabulary(), domain.SOLO, *domain.REGISTER.values(), domain.TONICS)
    return frozenset(word for phrase in domains for word in phrase.split())


def _goes_with_a_key(word: str) -> bool:
    return word == "," or word[0].isdigit() or word in AFTER_A_KEY or word in _words()


@cache
def _templates(loosely: bool) -> re.Pattern:
    """What stands around an instrument that plays along: templates of captions and SIDE_NOTES, `HERE` for its name."""
    tables = (domain.CHORDS, domain.BAND, domain.OCTAVES, domain.HARMONY, domain.DRONE, *domain.PATTERN.values())
    templates = {t for t in chain(SIDE_NOTES, *tables) if "{a}" in t and (t in LOOSELY) == loosely}
    spelt = (normalise(t.replace("{a}", HERE)).replace(HERE, UP_TO_TWO_WORDS + HERE) for t in sorted(templates))
    return re.compile(rf"(?<!\S)(?:{'|'.join(spelt)})(?!\S)")


def role_of(mention: Mention, text: str, first: bool) -> str:
    """What an instrument does: it "leads", plays "along", or "either" ("with a violin", which may be all there is).

    "and a violin" leads where no other instrument came first. UNSURE where it may be no instrument at all.
    """
    if mention.table == UNSURE:
        return UNSURE
    if LEADS.match(text, mention.end):
        return "leads"
    before, after = text[: mention.start], text[mention.end :]
    if _templates(loosely=False).search(f"{before}{HERE}{after}"):
        return "along"
    loose = _templates(loosely=True).search(f"{before}{HERE}")
    return "either" if loose and not (first and loose.group().startswith("and ")) else "leads"


def lead_instrument(text: str, found: list[Mention]) -> str | None:
    """The instrument that carries the melody, not one that plays along ("with guitar chords")."""
    named = [m for m in found if m.table in (INSTRUMENT, UNSURE)]
    if TOGETHER.search(text):
        return only(shared([m.classes for m in named], domain.INSTRUMENTS))
    roles = [role_of(m, text, first=m is named[0]) for m in named]
    for role in ("leads", UNSURE, "either"):
        leads = [m.classes for m, its in zip(named, roles, strict=True) if its == role]
        if leads:
            return None if role == UNSURE else only(shared(leads, domain.INSTRUMENTS))
    return None
