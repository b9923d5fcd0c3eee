"""Loops: sound that can be played over and over without a click, a jump or a dip where it begins anew.

A clip a little longer than the loop is made; what lies beyond the loop's end, its tail, is crossfaded under the loop's
beginning. So the sample after the loop's last one is the very sample that followed it in the clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .audio import crossfade
from .records import MAX_SECONDS, MIN_SECONDS, Waveform, check_seconds

BEATS_A_BAR = 4
MIN_BPM, MAX_BPM = 20.0, 300.0
TAIL_S, TAIL_SHARE = 1.0, 0.25


@dataclass(frozen=True)
class LoopLength:
    """How long a loop is; with a tempo it has whole `beats`, and `bars` where they fill whole bars."""

    seconds: float
    beats: int | None = None
    bars: int | None = None

    @property
    def tail_s(self) -> float:
        """Seconds to make beyond the end: `TAIL_S`, a share of a short loop, and enough for the shortest clip."""
        return max(MIN_SECONDS - self.seconds, min(TAIL_S, TAIL_SHARE * self.seconds))


def check_bpm(value) -> float:
    """Return the tempo in beats a minute; ValueError outside `MIN_BPM` to `MAX_BPM`."""
    allowed = f"bpm must be a number from {MIN_BPM:g} to {MAX_BPM:g}, got {value!r}"
    try:
        bpm = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        raise ValueError(allowed) from None
    if not MIN_BPM <= bpm <= MAX_BPM:
        raise ValueError(allowed)
    return bpm


def loop_length(seconds: float, bpm: float | None = None) -> LoopLength:
    """The length of a loop that is to be about `seconds` long.

    Without a tempo it is just that. With one it is the nearest whole number of bars of four beats, or of beats, at
    least one, where `seconds` is shorter than a bar.

    Raises:
        ValueError: seconds or bpm out of range, or a loop so long that no room is left for its tail.
    """
    length = LoopLength(check_seconds(seconds))
    if bpm is not None:
        beat_s = 60.0 / check_bpm(bpm)
        unit = BEATS_A_BAR if length.seconds >= BEATS_A_BAR * beat_s else 1
        beats = unit * max(1, math.floor(length.seconds / (unit * beat_s) + 0.5))
        length = LoopLength(beats * beat_s, beats, beats // BEATS_A_BAR if beats % BEATS_A_BAR == 0 else None)
    if length.seconds + length.tail_s > MAX_SECONDS:
        longest = MAX_SECONDS - TAIL_S
        raise ValueError(f"a loop can be up to {longest:g} seconds long, got {length.seconds:g} seconds")
    return length


def make_loop(sound: Waveform, seconds: float) -> Waveform:
    """Cut a loop of `seconds`, exact to a sample, from a sound that is longer; all that lies beyond is the tail.

    Where the sum of the two would leave full scale, the whole loop is turned down.

    Args:
        sound: [C,N]; longer than `seconds` and at most twice as long.
        seconds: length of the loop.

    Raises:
        ValueError: no tail, or one that is longer than the loop.
    """
    samples = round(seconds * sound.sample_rate_hz)
    tail = sound.audio.shape[1] - samples
    if not 0 < tail <= samples:
        raise ValueError(
            f"a loop of {seconds:g} seconds needs a sound that is longer, up to twice as long, got {sound.seconds:g} s"
        )
    seam = crossfade(sound.audio[:, samples:], sound.audio[:, :tail])
    audio = np.concatenate([seam, sound.audio[:, tail:samples]], axis=1)
    return Waveform(audio / max(1.0, np.abs(audio).max()), sound.sample_rate_hz)
