"""Facts of a piece -> captions, as different people would write them: synonyms, any order, parts left out."""

from __future__ import annotations

import random

from tinymusician_core.domain import (
    BAND,
    CHORDS,
    GENERIC,
    KIND,
    MOOD,
    PLAYED_BY,
    REGISTER,
    SOLO,
    TEMPO,
    TONICS,
)
from tinymusician_core.pretrain.arrange import Facts


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def key_name(facts: Facts) -> str:
    return f"{TONICS[facts.tonic]} {facts.mode}"


def caption(facts: Facts, rng: random.Random) -> str:
    """One caption in lower case. Tempo in BPM is said as a person would guess it, within 10% of the truth."""
    instrument = rng.choice(PLAYED_BY[facts.instrument])
    tempo = rng.choice(TEMPO[facts.tempo]) if rng.random() < 0.7 else ""
    mood = rng.choice(MOOD[facts.tempo, facts.mode]) if rng.random() < 0.35 else ""
    kind = rng.choice(KIND[facts.style] if rng.random() < 0.75 else GENERIC)
    words = [w for w in (tempo, mood) if w]
    rng.shuffle(words)
    form = rng.random()
    if form < 0.1:
        parts = [*words, instrument] if rng.random() < 0.4 else [*words, instrument, kind]
        rng.shuffle(parts)
        text = ", ".join(parts)
    elif form < 0.55:
        lead = " ".join([*words, instrument, kind])
        text = f"{article(lead)} {lead}" if rng.random() < 0.6 else lead
    elif form < 0.8:
        lead = " ".join([*words, kind])
        joint = rng.choice(
            ("for", "on", "played on", "played by", "on the", "for solo" if facts.texture == "solo" else "for")
        )
        text = f"{article(lead)} {lead} {joint} {instrument}"
    else:
        lead = " ".join([*words, instrument])
        text = f"{lead} playing {article(kind)} {kind}"
    return decorate(text, facts, rng)


def decorate(text: str, facts: Facts, rng: random.Random) -> str:
    """Add, now and then, texture, key, tempo in BPM, metre and register."""
    if facts.texture == "solo":
        if rng.random() < 0.3:
            text = (
                f"{rng.choice(SOLO[:2])} {text}"
                if rng.random() < 0.4 and not text.startswith(("a ", "an "))
                else f"{text}, {rng.choice(SOLO)}"
            )
    elif rng.random() < 0.85:
        text = f"{text} {rng.choice(CHORDS if facts.texture == 'chords' else BAND).format(a=facts.accompanist)}"
    extras = []
    if rng.random() < 0.4:
        extras.append(
            rng.choice(
                (
                    f"in {key_name(facts)}",
                    f"in the key of {key_name(facts)}",
                    key_name(facts),
                    f"in {facts.mode}",
                    f"{facts.mode} key",
                )
            )
        )
    if rng.random() < 0.2:
        bpm = round(facts.bpm * rng.uniform(0.9, 1.1))
        extras.append(rng.choice((f"at {bpm} bpm", f"{bpm} bpm", f"tempo {bpm}")))
    if rng.random() < 0.1:
        extras.append(f"in {facts.meter.replace('/', ' ')} time")
    if rng.random() < 0.1:
        extras.append(rng.choice(REGISTER[facts.register]))
    rng.shuffle(extras)
    for extra in extras:
        text = f"{text} {extra}" if rng.random() < 0.5 else f"{text}, {extra}"
    return text


def captions(facts: Facts, seed: str, count: int = 12) -> list[str]:
    """`count` captions of one piece, the same for the same seed."""
    rng = random.Random(seed)
    return [caption(facts, rng) for _ in range(count)]
