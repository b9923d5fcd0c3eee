"""Tune -> piece: an instrument, a tempo on the codec's frame grid, a key, a length, and who plays along.

Every tempo puts a whole, even number of codec frames into a quarter note, so that notes begin where frames begin: the
same note then gives the same codes wherever it stands, which is what a small language model learns fastest.
Times in a `Piece` are in codec frames.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from tinymusician_core.pretrain.accompany import (
    INSTRUMENTS,
    LEAD,
    Ground,
    Instrument,
    Note,
    Track,
    accompany,
    choose_company,
)
from tinymusician_core.pretrain.form import play
from tinymusician_core.pretrain.scores import Tune

FRAME_RATE_HZ = 25
MAX_SECONDS = (24, 32, 48, 48)
RELEASE_FRAMES = FRAME_RATE_HZ
MINOR_SHARE = 0.2
MIN_BARS, MIN_NOTES = 4, 12
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
    pattern: str = ""


@dataclass(frozen=True)
class Piece:
    """An arranged tune: audio of `frames`, the last RELEASE_FRAMES of which only die away; bars start at `bars`."""

    id: str
    tune: str
    split: str
    frames: int
    bars: tuple[int, ...]
    tracks: tuple[Track, ...]
    facts: Facts

    @property
    def music_frames(self) -> int:
        """The frames up to the end of the last bar: what a model is to learn, which else learns to fall silent."""
        return self.frames - RELEASE_FRAMES


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


def in_minor(tune: Tune) -> Tune:
    """A major tune in the minor of the same name: third, sixth and seventh a semitone lower."""
    lowered = {4, 9, 11}
    notes = tuple((a, d, p - ((p - tune.tonic) % 12 in lowered)) for a, d, p in tune.notes)
    return replace(tune, notes=notes, mode="minor")


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


def register_of(lead: list[Note], instrument: Instrument) -> str:
    """Where in the instrument's range the melody lies."""
    mean = sum(n.pitch for n in lead) / len(lead)
    middle = (instrument.low + instrument.high) / 2
    return "high" if mean > middle + 4 else "low" if mean < middle - 4 else "middle"


def lead_of(tune: Tune, limit_s: float, quarter: int, shift: int, loud: tuple[int, int], rng: random.Random):
    """The melody within `limit_s` seconds, and its bars as (first frame, frame after the last).

    Bars begin a little louder than they go on: `loud` holds the two MIDI velocities.
    """
    length = round(tune.bar * quarter)
    played, count = play(tune, int(limit_s * FRAME_RATE_HZ) // length, rng)
    bars = tuple((i * length, (i + 1) * length) for i in range(count))
    lead = []
    for onset, duration, pitch in played:
        start, end = round(onset * quarter), round((onset + duration) * quarter)
        if end > start:
            lead.append(Note(start, end, pitch + shift, loud[0 if start % length == 0 else 1]))
    return lead, bars


def arrange(tune: Tune, number: int) -> Piece | None:
    """The arrangement of that number of a tune, always the same; None where too little of a tune is left.

    The arrangements of a tune are for different instruments. Some of a major tune are in minor, which the corpora are
    short of.
    """
    rng = random.Random(f"{tune.id}/{number}")
    identity, tune = tune.id, in_eighths(tune)
    if tune.mode == "major" and rng.random() < MINOR_SHARE:
        tune = in_minor(tune)
    order = random.Random(identity).sample(list(INSTRUMENTS.values()), len(INSTRUMENTS))
    instrument = order[number % len(order)]
    quarter = rng.choice(FRAMES_PER_QUARTER[tune.style])
    tempo, bpm = tempo_of(quarter, tune.meter in ("6/8", "9/8", "12/8", "3/8"))
    shift, limit_s = transposition(tune, instrument, rng), rng.choice(MAX_SECONDS)
    lead, bars = lead_of(tune, limit_s, quarter, shift, (70, 62) if tempo == "slow" else (96, 84), rng)
    if len(bars) < MIN_BARS or len(lead) < MIN_NOTES:
        return None
    tonic = (tune.tonic + shift) % 12
    company = choose_company(lead, instrument, tonic, tune.mode, rng)
    ground = Ground(bars, tune.meter, tonic, tune.mode, quarter)
    facts = Facts(
        instrument.name,
        tune.style,
        tune.meter,
        tempo,
        bpm,
        tonic,
        tune.mode,
        company.texture,
        company.accompanist,
        register_of(lead, instrument),
        company.pattern,
    )
    tracks = (Track(LEAD, instrument.program, tuple(lead)), *accompany(lead, ground, company, tune.style))
    frames = bars[-1][1] + RELEASE_FRAMES
    return Piece(f"{identity}-{number}", identity, tune.split, frames, tuple(b for b, _ in bars), tracks, facts)
