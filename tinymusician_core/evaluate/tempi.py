"""Beats a minute and the tempo classes of the demo family.

A beat is a quarter note, and in compound time (6/8, 9/8, 12/8, 3/8) a dotted quarter, three eighths: there music feels
fast at fewer beats a minute.
"""

from __future__ import annotations

from ..domain import TEMPI

SLOW_BELOW_BPM = {False: 90, True: 75}
"""Compound time or not -> the beats a minute at which slow ends."""
FAST_FROM_BPM = {False: 140, True: 115}
FAMILY_BPM = {False: (75, 94, 125, 150, 188), True: (50, 62, 83, 100, 125)}
"""The tempi that the family's music has: those that put a whole number of codec frames into a note."""
GUESS = 0.1
"""How far off people are, at most, when they write a tempo down; captions are written so."""
COMPOUND_METERS = ("6/8", "9/8", "12/8", "3/8")


def tempo_class(bpm: float, compound: bool) -> str:
    """slow, moderate or fast.

    Raises:
        ValueError: a tempo that is not above 0.
    """
    if not bpm > 0:
        raise ValueError(f"a tempo must be above 0 beats a minute, got {bpm}")
    slow, moderate, fast = TEMPI
    return slow if bpm < SLOW_BELOW_BPM[compound] else fast if bpm >= FAST_FROM_BPM[compound] else moderate


def classes_meant(bpm: float, metres: tuple[bool, ...]) -> frozenset[str]:
    """The classes that somebody may mean who writes `bpm` for music in one of `metres` (compound or not).

    Those are the class of the figure itself and of each tempo of the family that is within a guess of it.
    """
    near = [(tempo, m) for m in metres for tempo in FAMILY_BPM[m] if abs(bpm - tempo) <= GUESS * tempo + 0.5]
    return frozenset(tempo_class(tempo, m) for tempo, m in [*near, *((bpm, m) for m in metres)])
