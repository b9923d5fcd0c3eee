"""Facts of a piece -> captions, as different people would write them: synonyms, any order, parts left out.

Nothing is said that is not true of the piece, but for the beats a minute, which people guess.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tinymusician_core.domain import (
    BACKGROUND,
    BAND,
    CHORDS,
    COMPANY,
    DRONE,
    ENSEMBLE,
    GENERIC,
    HARMONY,
    KIND,
    MODE,
    MOOD,
    OCTAVES,
    PACE,
    PATTERN,
    PLAYED_BY,
    REGISTER,
    SOLO,
    TEMPO,
    TONICS,
    USE,
)
from tinymusician_core.pretrain.arrange import Facts

TOGETHER = {"chords": CHORDS, "band": BAND, "octaves": OCTAVES, "harmony": HARMONY, "drone": DRONE}
WISHES = ("play", "make", "write", "compose", "i want", "give me", "generate", "create", "please play", "i would like")
FORMS = (("list", 12), ("noun", 34), ("for", 22), ("playing", 14), ("short", 8), ("featuring", 6), ("labels", 4))


@dataclass(frozen=True)
class Said:
    """What one caption says of a piece: the words before the noun, the instrument, the kind of tune."""

    words: tuple[str, ...]
    instrument: str
    kind: str


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def with_article(text: str) -> str:
    return f"{article(text)} {text}"


def key_name(facts: Facts) -> str:
    return f"{TONICS[facts.tonic]} {facts.mode}"


def said_of(facts: Facts, rng: random.Random) -> Said:
    """The words of one caption: often a tempo, now and then a mood, the dance or something more general."""
    tempo = rng.choice(TEMPO[facts.tempo]) if rng.random() < 0.65 else ""
    mood = rng.choice(MOOD[facts.tempo, facts.mode]) if rng.random() < 0.4 else ""
    words = [w for w in (tempo, mood) if w]
    rng.shuffle(words)
    general = BACKGROUND if rng.random() < 0.15 else GENERIC
    kind = rng.choice(KIND[facts.style] if rng.random() < 0.75 else general)
    return Said(tuple(words), rng.choice(PLAYED_BY[facts.instrument]), kind)


def phrase(said: Said, form: str, facts: Facts, rng: random.Random) -> str:
    """The caption's core in one of FORMS."""
    words, instrument, kind = list(said.words), said.instrument, said.kind
    if form == "list":
        parts = [*words, instrument] if rng.random() < 0.4 else [*words, instrument, kind]
        rng.shuffle(parts)
        return ", ".join(parts)
    if form == "labels":
        parts = [f"instrument: {instrument}", f"style: {kind}", *(f"mood: {w}" for w in words)]
        rng.shuffle(parts)
        return ", ".join(parts)
    if form == "short":
        return " ".join([*words[:1], instrument] if rng.random() < 0.5 else [instrument, kind])
    if form == "noun":
        noun = " ".join([*words, instrument, kind])
        return with_article(noun) if rng.random() < 0.6 else noun
    if form == "playing":
        verb = rng.choice(("playing", "playing", "plays", "performing"))
        return f"{' '.join([*words, instrument])} {verb} {with_article(kind)}"
    noun = " ".join([*words, kind])
    if form == "featuring":
        return f"{with_article(noun)} {rng.choice(('featuring', 'with the melody on', 'led by'))} {instrument}"
    solo = ("for solo",) if facts.texture == "solo" else ()
    return f"{with_article(noun)} {rng.choice(('for', 'on', 'played on', 'played by', 'on the', *solo))} {instrument}"


def company(facts: Facts, rng: random.Random) -> str:
    """Who else plays, as a phrase that follows the rest."""
    if facts.texture == "ensemble":
        return rng.choice(ENSEMBLE[facts.accompanist])
    table = TOGETHER[facts.texture]
    if facts.pattern in PATTERN and facts.texture == "chords" and rng.random() < 0.25:
        table = PATTERN[facts.pattern]
    return rng.choice(table).format(a=COMPANY.get(facts.accompanist, facts.accompanist))


def extras(facts: Facts, rng: random.Random) -> list[str]:
    """Key, tempo, metre, register and use, each now and then, in any order."""
    found = []
    if rng.random() < 0.4:
        key = key_name(facts)
        found.append(rng.choice((f"in {key}", f"in the key of {key}", key, *MODE[facts.mode])))
    if rng.random() < 0.2:
        bpm = round(facts.bpm * rng.uniform(0.92, 1.08))
        found.append(rng.choice((f"at {bpm} bpm", f"{bpm} bpm", f"tempo {bpm}", f"around {bpm} beats per minute")))
    elif rng.random() < 0.12:
        found.append(rng.choice(PACE[facts.tempo]))
    if rng.random() < 0.08:
        found.append(f"in {facts.meter.replace('/', ' ')} time")
    if rng.random() < 0.08:
        found.append(rng.choice(REGISTER[facts.register]))
    if rng.random() < 0.1:
        found.append(rng.choice(USE[facts.tempo]))
    rng.shuffle(found)
    return found


def caption(facts: Facts, rng: random.Random) -> str:
    """One caption in lower case. Tempo in BPM is said as a person would guess it, within 8% of the truth."""
    said = said_of(facts, rng)
    form = rng.choices([f for f, _ in FORMS], [w for _, w in FORMS])[0]
    text = phrase(said, form, facts, rng)
    if form in ("noun", "for", "featuring") and text.startswith(("a ", "an ")) and rng.random() < 0.12:
        text = f"{rng.choice(WISHES)} {text}"
    if facts.texture == "solo":
        if rng.random() < 0.3:
            plain = form in ("noun", "short") and not text.startswith(("a ", "an ")) and not text.startswith(WISHES)
            text = f"{rng.choice(SOLO[:2])} {text}" if plain else f"{text}, {rng.choice(SOLO)}"
    elif rng.random() < (0.4 if form == "short" else 0.85):
        text = f"{text} {company(facts, rng)}"
    if form == "short" and rng.random() < 0.6:
        return text
    for extra in extras(facts, rng):
        text = f"{text} {extra}" if rng.random() < 0.5 else f"{text}, {extra}"
    return text


def captions(facts: Facts, seed: str, count: int = 12) -> list[str]:
    """`count` captions of one piece, the same for the same seed."""
    rng = random.Random(seed)
    return [caption(facts, rng) for _ in range(count)]
