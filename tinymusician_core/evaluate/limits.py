"""Where steadiness ends: the limits that real music sets, and how many clips stay within them.

A clip keeps to a limit where real music would in 95 of 100 pieces, figure by figure: the limits are the 5th percentile
of key and tempo and the 95th of silence, noise, loop and stuck, over windows of real music. Other real music is then
held against them as well, for about 1 in 20 of its pieces falls outside of each limit too: what a variant's share means
is seen beside that of real music, not beside 100%.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from .bootstrap import DRAWS, bootstrap, proportion
from .settings import MIN_CLIPS
from .steadiness import Steadiness

OUTSIDE = 0.05
REFERENCE = "reference"
LEAST, MOST = ("key", "tempo"), ("silence", "noise", "loop", "stuck")
MEASURES = (*LEAST, *MOST)
TOGETHER = {"no_collapse": MOST, "all": MEASURES}


def limits_of(real: Sequence[Steadiness]) -> dict[str, float] | None:
    """The limit of each measure; None where one of them is known of fewer than 20 windows of real music."""
    found = {}
    for name in MEASURES:
        values = [value for each in real if (value := getattr(each, name)) is not None]
        if len(values) < MIN_CLIPS:
            return None
        found[name] = float(np.quantile(values, OUTSIDE if name in LEAST else 1 - OUTSIDE))
    return found


def within(clip: Steadiness, name: str, limit: float) -> float:
    """1 where a clip keeps to the limit of a measure, 0 where not.

    A clip that has no key or no tempo to hold does not hold it. nan where it cannot be told whether a clip is noise,
    a loop or stuck: nothing sounds in it, which is silence, and counted there.
    """
    value = getattr(clip, name)
    if value is None:
        return 0.0 if name in LEAST else float("nan")
    return float(value >= limit if name in LEAST else value <= limit)


def failures(clip: Steadiness, limits: Mapping[str, float]) -> tuple[str, ...]:
    """The measures in which a clip is beyond its limit."""
    return tuple(name for name in MEASURES if within(clip, name, limits[name]) == 0.0)


def summary(clips: Sequence[Steadiness], limits: Mapping[str, float] | None, seed: int, draws: int = DRAWS) -> dict:
    """The steadiness of a set of clips, every figure with its interval.

    Returns:
        `n`; `mean`: measure -> mean; `within`: measure -> share of the clips that keep to its limit, "no_collapse" for
        those that neither fall silent nor turn to noise, loop or stick, and "all" for those that keep to every limit,
        or None without limits; `same_scale`: share that end in the key that they began
        in, or in its relative.
    """
    means = {}
    for name in MEASURES:
        values = np.array([value for each in clips if (value := getattr(each, name)) is not None])
        unknown = {"value": None, "low": None, "high": None, "n": 0}
        means[name] = asdict(bootstrap(np.mean, values, seed=seed, n=draws)) if len(values) else unknown
    shares = None
    if limits is not None:
        shares = {name: asdict(proportion([within(c, name, limits[name]) for c in clips])) for name in MEASURES}
        for name, measures in TOGETHER.items():
            shares[name] = asdict(proportion([not {*failures(clip, limits)} & {*measures} for clip in clips]))
    same = asdict(proportion([clip.same_scale for clip in clips]))
    return {"n": len(clips), "mean": means, "within": shares, "same_scale": same}


def compared(
    variants: Mapping[str, Sequence[Steadiness | None]],
    real: Mapping[str, Sequence[Steadiness]],
    seed: int,
    draws: int = DRAWS,
) -> dict | None:
    """All of an evaluation's steadiness.

    Args:
        variants: name -> its clips; None stands for one that is too short.
        real: `REFERENCE` -> the windows that set the limits; other names -> more real music, held against them too.
        seed, draws: of the intervals.

    Returns:
        `limits` (None where there is too little real music), `windows` that they stand on, `rows`: name -> `summary`.
        None where the variants' clips are too short.
    """
    if any(clip is None for clips in variants.values() for clip in clips):
        return None
    limits = limits_of(real.get(REFERENCE, ()))
    sets = {**variants, **{name: clips for name, clips in real.items() if name != REFERENCE and clips}}
    rows = {name: summary(clips, limits, seed, draws) for name, clips in sets.items()}
    return {"limits": limits, "windows": len(real.get(REFERENCE, ())), "rows": rows}
