"""How a tune is played: its bars on one steady grid, its parts repeated as folk musicians do, until a length is filled.

Times are in quarter notes, onsets of a bar's notes counted from the bar's start.
"""

from __future__ import annotations

import random

from tinymusician_core.pretrain.scores import Tune

PART_BARS = 8
REPEATED_SHARE = 0.6
Played = tuple[float, float, int]


def bar_starts(tune: Tune) -> list[float]:
    """Where the tune's bars start, those split at a repeat sign included, and a last bar that is not whole.

    What stands between two bars without filling one (an upbeat that the bar before it does not make room for) is left
    out.
    """
    end = max(onset + duration for onset, duration, _ in tune.notes)
    starts = []
    for start, following in zip(tune.bars, [*tune.bars[1:], end], strict=True):
        whole = max(1, int((following - start) / tune.bar + 1e-3))
        starts += [start + i * tune.bar for i in range(whole)]
    if end - starts[-1] - tune.bar > 1e-3:
        starts.append(starts[-1] + tune.bar)
    return starts


def bars_of(tune: Tune) -> tuple[list[list[Played]], list[Played]]:
    """The notes of each bar, and the upbeat where the tune's last bar makes room for it."""
    starts = bar_starts(tune)
    bars = [[(a - s, d, p) for a, d, p in tune.notes if -1e-3 <= a - s < tune.bar - 1e-3] for s in starts]
    origin, end = tune.bars[0], max(a + d for a, d, _ in tune.notes)
    upbeat = [(a - origin + tune.bar, d, p) for a, d, p in tune.notes if a < origin - 1e-3]
    fits = bool(upbeat) and end - starts[-1] <= upbeat[0][0] + 1e-3
    return bars, upbeat if fits else []


def one_pass(bars: int, rng: random.Random) -> list[int]:
    """The order of the bars in one pass: AABB (or AABBCC) for a tune of two or three parts, or straight through."""
    if bars in (2 * PART_BARS, 3 * PART_BARS) and rng.random() < REPEATED_SHARE:
        return [bar for part in range(0, bars, PART_BARS) for _ in range(2) for bar in range(part, part + PART_BARS)]
    return list(range(bars))


def bars_that_fill(in_a_pass: int, limit: int) -> int:
    """How many bars to play within `limit`: whole passes where they nearly fill it, else whole parts, else fours."""
    for unit, share in ((in_a_pass, 0.7), (PART_BARS, 0.75), (4, 0.0)):
        if limit // unit * unit >= max(1, share * limit):
            return limit // unit * unit
    return limit


def play(tune: Tune, limit: int, rng: random.Random) -> tuple[list[Played], int]:
    """The tune over at most `limit` bars, again and again: its notes (onset, duration, pitch) and the number of bars.

    No two notes sound together: one that would reach into the next (a part that ended otherwise in the book) is cut.
    The last note is held to the end of its bar.
    """
    bars, upbeat = bars_of(tune)
    order = one_pass(len(bars), rng)
    count = bars_that_fill(len(order), limit)
    notes = []
    for place in range(count):
        bar = order[place % len(order)]
        leads_on = upbeat if bar == len(bars) - 1 and place < count - 1 else []
        notes += [(place * tune.bar + onset, duration, pitch) for onset, duration, pitch in bars[bar] + leads_on]
    if not notes:
        return [], count
    ends = [following[0] for following in notes[1:]]
    cut = [(a, min(d, end - a), p) for (a, d, p), end in zip(notes[:-1], ends, strict=True)]
    onset, _, pitch = notes[-1]
    return [*(n for n in cut if n[1] > 1e-3), (onset, count * tune.bar - onset, pitch)], count
