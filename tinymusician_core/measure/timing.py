"""From the timings of several runs to one record of figures: medians, and how far the runs lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ..records import Timing


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def summarise(timings: Sequence[Timing], audio_s: float) -> dict:
    """The time figures of runs that each made `audio_s` seconds of audio: the median of every figure on its own.

    Returns:
        first_sound_ms, ms_per_step, x_realtime, total_s and stages_ms (text, lm, codec), as `Figures` takes them.

    Raises:
        ValueError: no run at all.
    """
    if not timings:
        raise ValueError("timings is empty; at least one run is needed")
    return {
        "first_sound_ms": 1000 * median(timing.first_sound_s for timing in timings),
        "ms_per_step": _median([timing.ms_per_step for timing in timings]),
        "x_realtime": _median([timing.x_realtime(audio_s) for timing in timings]),
        "total_s": median(timing.total_s for timing in timings),
        "stages_ms": {
            "text": 1000 * median(timing.text_s for timing in timings),
            "lm": 1000 * median(timing.lm_s for timing in timings),
            "codec": 1000 * median(timing.codec_s for timing in timings),
        },
    }


def spread(timings: Sequence[Timing]) -> tuple[float, float]:
    """The fastest and the slowest run, in seconds from the call to the whole clip."""
    totals = [timing.total_s for timing in timings]
    return min(totals), max(totals)
