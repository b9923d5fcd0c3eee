"""Tune -> piece: an instrument, a tempo on the codec's frame grid, a key, an accompaniment.

Every tempo puts a whole, even number of codec frames into a quarter note, so that notes begin where frames
begin: the same
note then gives the same codes wherever it stands, which is what a small language model learns fastest.
Times in a `Piece` are in codec frames.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from tinymusician_core.pretrain.scores import Tune

FRAME_RATE_HZ = 25
MAX_SECONDS = 24.0
LEAD, CHORDS, BASS, DRUMS = "lead", "chords", "bass", "drums"


@dataclass(frozen=True)
class Instrument:
    """A General MIDI program and the range in which it carries a melody (MIDI pitches)."""

    name: str
    program: int
    low: int
    high: int


INSTRUMENTS = {
    i.name: i
    for i in (
        Instrument("piano", 0, 57, 86),
        Instrument("guitar", 24, 50, 79),
        Instrument("harp", 46, 55, 84),
        Instrument("violin", 40, 57, 88),
        Instrument("cello", 42, 40, 69),
        Instrument("flute", 73, 62, 91),
        Instrument("clarinet", 71, 55, 84),
        Instrument("trumpet", 56, 56, 82),
        Instrument("organ", 19, 52, 82),
        Instrument("marimba", 12, 53, 84),
        Instrument("banjo", 105, 50, 79),
        Instrument("accordion", 21, 55, 86),
        Instrument("oboe", 68, 60, 86),
        Instrument("vibraphone", 11, 55, 86),
    )
}
ACCOMPANISTS = {"piano": 0, "guitar": 24, "organ": 19}
BASS_PROGRAM = 32
FRAMES_PER_QUARTER = {
    "reel": (8, 10, 10, 12, 16),
    "hornpipe": (10, 10, 12, 16),
    "strathspey": (12, 16, 20),
    "march": (10, 12, 16),
    "polka": (8, 10, 12),
    "jig": (8, 8, 10, 12, 16),
    "slip jig": (8, 10, 12, 16),
    "waltz": (10, 12, 12, 16, 20),
    "air": (12, 16, 20),
}
TEXTURES = (("solo", 60), ("chords", 22), ("band", 18))
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
class Facts:
    """What is true of a piece and may be said in its caption."""

    instrument: str
    style: str
    meter: str
    tempo: str
    bpm: int
    tonic: int
    mode: str
    texture: str
    accompanist: str
    register: str


@dataclass(frozen=True)
class Piece:
    """An arranged tune: `frames` long, bars starting at `bars` (frames)."""

    id: str
    tune: str
    split: str
    frames: int
    bars: tuple[int, ...]
    tracks: tuple[Track, ...]
    facts: Facts


def tempo_of(frames_per_quarter: int, compound: bool) -> tuple[str, int]:
    """The tempo class and the beats a minute (dotted quarters in compound time)."""
    bpm = round(60 * FRAME_RATE_HZ / (frames_per_quarter * (1.5 if compound else 1.0)))
    slow, fast = (75, 115) if compound else (90, 140)
    return ("slow" if bpm < slow else "fast" if bpm >= fast else "moderate"), bpm


def in_eighths(tune: Tune) -> Tune:
    """Rewrite a tune that moves in sixteenths (a reel in 2/4, say) so that it moves in eighths: every duration
    doubled."""
    lengths = sorted(n[1] for n in tune.notes)
    if lengths[len(lengths) // 2] > 0.26:
        return tune
    notes = tuple((2 * a, 2 * d, p) for a, d, p in tune.notes)
    meter = {"2/4": "4/4", "4/4": "4/4", "2/2": "4/4"}.get(tune.meter, tune.meter)
    return replace(tune, notes=notes, bars=tuple(2 * b for b in tune.bars), bar=2 * tune.bar, meter=meter)


def transposition(tune: Tune, instrument: Instrument, rng: random.Random) -> int:
    """Semitones that bring the tune into the instrument's range, in a key that players like (at most three
    accidentals)."""
    friendly = {0, 2, 5, 7, 9, 10} if tune.mode == "major" else {0, 2, 4, 7, 9, 11}
    pitches = [n[2] for n in tune.notes]
    fits = [
        s
        for s in range(-36, 37)
        if (tune.tonic + s) % 12 in friendly
        and min(pitches) + s >= instrument.low
        and max(pitches) + s <= instrument.high
    ]
    if not fits:
        centre = (instrument.low + instrument.high) / 2 - (min(pitches) + max(pitches)) / 2
        fits = sorted((s for s in range(-36, 37) if (tune.tonic + s) % 12 in friendly), key=lambda s: abs(s - centre))[
            :2
        ]
    return rng.choice(fits)


def harmonise(notes: list[Note], bars: list[tuple[int, int]], tonic: int, mode: str) -> list[tuple[int, str]]:
    """The triad (root pitch class, quality) under each bar that shares most sounding time with the melody;
    tonic at both ends."""
    chords = []
    for index, (start, end) in enumerate(bars):
        weights = [0.0] * 12
        for note in notes:
            weights[note.pitch % 12] += max(0, min(end, note.end) - max(start, note.start)) / (end - start)
        best = max(
            SCALE_TRIADS[mode],
            key=lambda t: (
                sum(weights[(tonic + t[0] + i) % 12] for i in TRIAD[t[1]])
                + t[2]
                + (0.5 if t[0] == 0 and index in (0, len(bars) - 1) else 0)
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


def accompany(lead: list[Note], bars: list[tuple[int, int]], facts: Facts, fpq: int) -> list[Track]:
    """Chord, bass and drum tracks under the melody, as the texture asks."""
    if facts.texture == "solo":
        return []
    bass_at, chord_at = beats_of(facts.meter)
    beat = round((0.9 if facts.meter in ("3/4", "4/4", "2/4", "2/2") else 0.45) * fpq)
    chords, bass, drums = [], [], []
    for (start, end), (root, quality) in zip(bars, harmonise(lead, bars, facts.tonic, facts.mode), strict=True):
        at = [start + round(b * fpq) for b in bass_at]
        low = place(root, 40)
        bass += [Note(t, t + beat, low if i % 2 == 0 else place(root + 7, 40), 72) for i, t in enumerate(at) if t < end]
        triad = [place(root + i, 53) for i in TRIAD[quality]]
        chords += [Note(t, t + beat, p, 58) for b in chord_at if (t := start + round(b * fpq)) < end for p in triad]
        drums += [Note(t, t + 3, 36, 78) for t in at if t < end]
        drums += [Note(t, t + 3, 42, 62) for b in chord_at if (t := start + round(b * fpq)) < end]
    program = ACCOMPANISTS[facts.accompanist]
    if facts.texture == "chords":
        return [Track(CHORDS, program, tuple(bass + chords))]
    return [
        Track(CHORDS, program, tuple(chords)),
        Track(BASS, BASS_PROGRAM, tuple(bass)),
        Track(DRUMS, 0, tuple(drums)),
    ]


def arrange(tune: Tune, seed: int) -> Piece | None:
    """One piece from a tune, the same for the same seed; None where nothing of a bar's length is left."""
    rng = random.Random(f"{tune.id}/{seed}")
    tune = in_eighths(tune)
    instrument = rng.choice(list(INSTRUMENTS.values()))
    compound = tune.meter in ("6/8", "9/8", "12/8", "3/8")
    fpq = rng.choice(FRAMES_PER_QUARTER[tune.style])
    shift = transposition(tune, instrument, rng)
    texture = rng.choices([t for t, _ in TEXTURES], [w for _, w in TEXTURES])[0]
    accompanist = rng.choice([a for a in ACCOMPANISTS if a != instrument.name]) if texture != "solo" else ""
    tempo, bpm = tempo_of(fpq, compound)
    origin, length = tune.bars[0], round(tune.bar * fpq)
    bars = [b for b in (round((q - origin) * fpq) for q in tune.bars) if b + length <= MAX_SECONDS * FRAME_RATE_HZ]
    loud = (70, 62) if tempo == "slow" else (96, 84)
    lead = []
    for onset, duration, pitch in tune.notes:
        start, end = round((onset - origin) * fpq), round((onset + duration - origin) * fpq)
        if bars and 0 <= start < bars[-1] + length and end > start:
            lead.append(Note(start, min(end, bars[-1] + length), pitch + shift, loud[0 if start in bars else 1]))
    if len(bars) < 4 or len(lead) < 12:
        return None
    mean = sum(n.pitch for n in lead) / len(lead)
    middle = (instrument.low + instrument.high) / 2
    register = "high" if mean > middle + 4 else "low" if mean < middle - 4 else "middle"
    facts = Facts(
        instrument.name,
        tune.style,
        tune.meter,
        tempo,
        bpm,
        (tune.tonic + shift) % 12,
        tune.mode,
        texture,
        accompanist,
        register,
    )
    tracks = [
        Track(LEAD, instrument.program, tuple(lead)),
        *accompany(lead, [(b, b + length) for b in bars], facts, fpq),
    ]
    return Piece(
        f"{tune.id}-{seed}", tune.id, tune.split, bars[-1] + length + FRAME_RATE_HZ, tuple(bars), tuple(tracks), facts
    )
