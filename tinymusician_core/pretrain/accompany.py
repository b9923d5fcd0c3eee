"""What plays under a melody: chords, a band, a second voice, a drone, an ensemble. Times are in codec frames."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

LEAD, CHORDS, BASS, DRUMS, SECOND = "lead", "chords", "bass", "drums", "second"


@dataclass(frozen=True)
class Instrument:
    """A General MIDI program, the range in which it carries a melody (MIDI pitches), and whether its notes last."""

    name: str
    program: int
    low: int
    high: int
    sustained: bool = False


INSTRUMENTS = {
    i.name: i
    for i in (
        Instrument("piano", 0, 57, 86),
        Instrument("guitar", 24, 50, 79),
        Instrument("harp", 46, 55, 84),
        Instrument("violin", 40, 57, 88, sustained=True),
        Instrument("cello", 42, 40, 69, sustained=True),
        Instrument("flute", 73, 62, 91, sustained=True),
        Instrument("clarinet", 71, 55, 84, sustained=True),
        Instrument("trumpet", 56, 56, 82, sustained=True),
        Instrument("organ", 19, 52, 82, sustained=True),
        Instrument("marimba", 12, 53, 84),
        Instrument("banjo", 105, 50, 79),
        Instrument("accordion", 21, 55, 86, sustained=True),
        Instrument("oboe", 68, 60, 86, sustained=True),
        Instrument("vibraphone", 11, 55, 86),
    )
}
ACCOMPANISTS = {"piano": 0, "guitar": 24, "organ": 19, "accordion": 21, "harp": 46, "strings": 48}
PATTERNS = {
    "piano": ("struck", "struck", "broken"),
    "guitar": ("struck", "struck", "broken"),
    "organ": ("struck", "held"),
    "accordion": ("struck", "held"),
    "harp": ("broken", "struck"),
    "strings": ("held",),
}
DRONES = ("cello", "organ", "accordion")
ENSEMBLES = {"strings": ("violin",), "winds": ("flute", "oboe", "clarinet"), "brass": ("trumpet",)}
INNER_AND_BASS = {"strings": (41, 42), "winds": (71, 70), "brass": (60, 57)}
BASS_PROGRAM = 32
TEXTURES = (
    ("solo", 50),
    ("chords", 18),
    ("band", 14),
    ("octaves", 4),
    ("harmony", 5),
    ("drone", 3),
    ("ensemble", 6),
)
SCALE = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
SCALE_TRIADS = {
    "major": ((0, "M", 0.35), (5, "M", 0.2), (7, "M", 0.25), (9, "m", 0.0), (2, "m", 0.0)),
    "minor": ((0, "m", 0.35), (5, "m", 0.15), (7, "M", 0.15), (10, "M", 0.2), (3, "M", 0.1), (8, "M", 0.0)),
}
TRIAD = {"M": (0, 4, 7), "m": (0, 3, 7)}


@dataclass(frozen=True)
class Note:
    """One note: first frame, frame after its last, MIDI pitch, MIDI velocity."""

    start: int
    end: int
    pitch: int
    velocity: int


@dataclass(frozen=True)
class Track:
    """The notes of one part; `program` is a General MIDI program, ignored for drums."""

    role: str
    program: int
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Company:
    """Who plays with the lead: the texture, an accompanist ("" for a solo) and the pattern of its chords ("" for
    none)."""

    texture: str
    accompanist: str = ""
    pattern: str = ""


@dataclass(frozen=True)
class Ground:
    """What an accompaniment stands on: bars as (first frame, frame after the last), metre, key, frames a quarter."""

    bars: tuple[tuple[int, int], ...]
    meter: str
    tonic: int
    mode: str
    quarter: int


def harmonise(notes: Sequence[Note], bars: Sequence[tuple[int, int]], tonic: int, mode: str) -> list[tuple[int, str]]:
    """The triad (root pitch class, quality) under each bar that shares most sounding time with the melody;
    tonic at both ends."""
    weights = [[0.0] * 12 for _ in bars]
    index = 0
    for note in notes:
        while index < len(bars) - 1 and note.start >= bars[index][1]:
            index += 1
        for at in range(index, len(bars)):
            start, end = bars[at]
            if start >= note.end:
                break
            weights[at][note.pitch % 12] += max(0, min(end, note.end) - max(start, note.start)) / (end - start)
    chords = []
    for index, heard in enumerate(weights):
        home = 0.5 if index in (0, len(bars) - 1) else 0.0
        best = max(
            SCALE_TRIADS[mode],
            key=lambda t, heard=heard, home=home: (
                sum(heard[(tonic + t[0] + i) % 12] for i in TRIAD[t[1]]) + t[2] + (home if t[0] == 0 else 0)
            ),
        )
        chords.append(((tonic + best[0]) % 12, best[1]))
    return chords


def place(pitch_class: int, low: int) -> int:
    """The lowest pitch of that class at or above `low`."""
    return low + (pitch_class - low) % 12


def beats_of(meter: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Where in a bar (quarters) the bass and the chord play."""
    return {
        "3/4": ((0.0,), (1.0, 2.0)),
        "3/8": ((0.0,), (0.5, 1.0)),
        "2/4": ((0.0,), (1.0,)),
        "6/8": ((0.0, 1.5), (1.0, 2.5)),
        "9/8": ((0.0, 1.5, 3.0), (1.0, 2.5, 4.0)),
        "12/8": ((0.0, 1.5, 3.0, 4.5), (1.0, 2.5, 4.0, 5.5)),
    }.get(meter, ((0.0, 2.0), (1.0, 3.0)))


def third_below(pitch: int, tonic: int, mode: str) -> int:
    """The note two steps of the scale below `pitch`; below a note that is not in the scale, as below the next lower
    one."""
    scale = SCALE[mode]
    above = (pitch - tonic) % 12
    step = max(i for i, s in enumerate(scale) if s <= above)
    return pitch - above + scale[step - 2] - (12 if step < 2 else 0)


def second_voice(lead: Sequence[Note], texture: str, tonic: int, mode: str) -> list[Note]:
    """The melody an octave lower, or a third lower in the scale, and softer."""
    lower = (lambda p: p - 12) if texture == "octaves" else (lambda p: third_below(p, tonic, mode))
    return [Note(n.start, n.end, lower(n.pitch), round(0.9 * n.velocity)) for n in lead]


def partners(lead: Sequence[Note], instrument: Instrument, texture: str, tonic: int, mode: str) -> list[str]:
    """Who could play the second voice: other instruments with all its notes that do not outlast the lead's."""
    pitches = [n.pitch for n in second_voice(lead, texture, tonic, mode)]
    return [
        i.name
        for i in INSTRUMENTS.values()
        if i != instrument
        and i.low <= min(pitches)
        and max(pitches) <= i.high
        and (instrument.sustained or not i.sustained)
    ]


def choose_company(lead: Sequence[Note], instrument: Instrument, tonic: int, mode: str, rng: random.Random) -> Company:
    """A texture and those who play it. Where nobody can play a second voice it becomes chords, as does an ensemble
    under an instrument that has none of its family."""
    texture = rng.choices([t for t, _ in TEXTURES], [w for _, w in TEXTURES])[0]
    if texture == "solo":
        return Company(texture)
    if texture in ("octaves", "harmony"):
        if found := partners(lead, instrument, texture, tonic, mode):
            return Company(texture, rng.choice(found))
    elif texture == "drone":
        return Company(texture, rng.choice([d for d in DRONES if d != instrument.name]))
    elif texture == "ensemble":
        for family, leads in ENSEMBLES.items():
            if instrument.name in leads:
                return Company(texture, family)
    accompanist = rng.choice([a for a in ACCOMPANISTS if a != instrument.name])
    return Company("band" if texture == "band" else "chords", accompanist, rng.choice(PATTERNS[accompanist]))


def bass_line(ground: Ground, triads: list[tuple[int, str]], low: int, share: float, velocity: int) -> list[Note]:
    """Root and fifth in turn on the bass's beats, each held for `share` of the time to the next."""
    beats, _ = beats_of(ground.meter)
    notes = []
    for (start, end), (root, _) in zip(ground.bars, triads, strict=True):
        at = [start + round(b * ground.quarter) for b in beats]
        for i, (onset, following) in enumerate(zip(at, [*at[1:], end], strict=True)):
            pitch = place(root if i % 2 == 0 else root + 7, low)
            notes.append(Note(onset, onset + max(2, round(share * (following - onset))), pitch, velocity))
    return notes


def chord_notes(ground: Ground, triads: list[tuple[int, str]], pattern: str) -> list[Note]:
    """The triads as the pattern has them: struck on the off-beats, held for the bar, or broken into eighths."""
    _, offbeats = beats_of(ground.meter)
    whole_beats = ground.meter in ("3/4", "4/4", "2/4", "2/2")
    length = round((0.9 if whole_beats else 0.45) * ground.quarter)
    notes = []
    for (start, end), (root, quality) in zip(ground.bars, triads, strict=True):
        triad = [place(root + i, 53) for i in TRIAD[quality]]
        if pattern == "held":
            notes += [Note(start, end, p, 50) for p in triad]
        elif pattern == "broken":
            low, middle, high = sorted(triad)
            figure = (low, middle, high, middle) if whole_beats else (low, middle, high)
            eighth = ground.quarter // 2
            steps = range(start, end, eighth)
            notes += [Note(t, min(t + eighth, end), figure[i % len(figure)], 56) for i, t in enumerate(steps)]
        else:
            onsets = [start + round(b * ground.quarter) for b in offbeats]
            notes += [Note(t, t + length, p, 58) for t in onsets for p in triad]
    return notes


def drone(ground: Ground) -> list[Note]:
    """Tonic and fifth, struck anew every other bar."""
    tonic = place(ground.tonic, 43)
    pairs = [ground.bars[i : i + 2] for i in range(0, len(ground.bars), 2)]
    return [Note(pair[0][0], pair[-1][1], p, 64) for pair in pairs for p in (tonic, tonic + 7)]


def drums(ground: Ground, snare: bool) -> list[Note]:
    """Bass drum on the bass's beats, hi-hat (or snare, as a march has it) on the others."""
    on, off = beats_of(ground.meter)
    notes = []
    for start, _ in ground.bars:
        notes += [Note(t := start + round(b * ground.quarter), t + 3, 36, 78) for b in on]
        notes += [Note(t := start + round(b * ground.quarter), t + 3, 38 if snare else 42, 62) for b in off]
    return notes


def accompany(lead: Sequence[Note], ground: Ground, company: Company, style: str) -> list[Track]:
    """The tracks that play with the lead."""
    texture, name = company.texture, company.accompanist
    if texture == "solo":
        return []
    if texture in ("octaves", "harmony"):
        voice = second_voice(lead, texture, ground.tonic, ground.mode)
        return [Track(SECOND, INSTRUMENTS[name].program, tuple(voice))]
    if texture == "drone":
        pairs = [
            (ground.bars[i][0], ground.bars[min(i + 1, len(ground.bars) - 1)][1]) for i in range(0, len(ground.bars), 2)
        ]
        tonic = place(ground.tonic, 43)
        notes = [Note(start, end, p, 52) for start, end in pairs for p in (tonic, tonic + 7)]
        return [Track(SECOND, INSTRUMENTS[name].program, tuple(notes))]
    triads = harmonise(lead, ground.bars, ground.tonic, ground.mode)
    if texture == "ensemble":
        inner, bass = INNER_AND_BASS[name]
        voice = second_voice(lead, "harmony", ground.tonic, ground.mode)
        low = bass_line(ground, triads, 40, 0.95, 66)
        return [Track(SECOND, inner, tuple(voice)), Track(BASS, bass, tuple(low))]
    chords = chord_notes(ground, triads, company.pattern)
    if texture == "chords":
        low = bass_line(ground, triads, 40, 0.5, 68)
        return [Track(CHORDS, ACCOMPANISTS[name], tuple(low + chords))]
    return [
        Track(CHORDS, ACCOMPANISTS[name], tuple(chords)),
        Track(BASS, BASS_PROGRAM, tuple(bass_line(ground, triads, 40, 0.5, 72))),
        Track(DRUMS, 0, tuple(drums(ground, style == "march"))),
    ]
