"""What was measured of a variant: the one record that the command line, the studio and the reports share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from .checks import number, whole

Range = tuple[float, float]
RANGED = ("first_sound_ms", "ms_per_step", "x_realtime", "total_s", "peak_memory_bytes")
STAGES_MS = ("text", "lm", "codec")


@dataclass(frozen=True)
class Spread:
    """How far the runs lie apart: lowest and highest of each figure over all of them. None: not measured."""

    first_sound_ms: Range | None = None
    ms_per_step: Range | None = None
    x_realtime: Range | None = None
    total_s: Range | None = None
    stages_ms: Mapping[str, Range | None] = field(default_factory=lambda: dict.fromkeys(STAGES_MS))
    peak_memory_bytes: Range | None = None

    def __post_init__(self):
        _check_stages(self.stages_ms)
        for name in RANGED:
            object.__setattr__(self, name, _ordered(name, getattr(self, name)))
        stages = {name: _ordered(f"stages_ms of {name}", self.stages_ms[name]) for name in STAGES_MS}
        object.__setattr__(self, "stages_ms", stages)


def _check_stages(stages: Mapping) -> None:
    if set(stages) != set(STAGES_MS):
        raise ValueError(f"stages_ms must name text, lm and codec, got {sorted(stages)}")


def _ordered(name: str, value) -> Range | None:
    if value is None:
        return None
    low, high = (number(name, end, 0.0, math.inf) for end in value)
    if low > high:
        raise ValueError(f"{name} must be a lowest and a highest value, got {low:g} and {high:g}")
    return low, high


@dataclass(frozen=True)
class Figures:
    """What was measured of a variant. None stands for "not measured", never 0.

    The fields down to `runs`, which counts the runs of all processes, are the `figures` of the JSON contract; they hold
    medians. The others are given by `more`.

    Attributes:
        spread: lowest and highest of each figure over the runs.
        processes: in how many fresh processes the runs were made.
        weights_bytes: the weights that the model holds in memory, as they are stored there.
        load_s: how long loading took; load_peak_bytes: the most memory it took above the idle process, which is not
            the peak of the runs.
        warm_up_s: how long the warm-up took that does not count; None where there was none.
    """

    first_sound_ms: float | None = None
    ms_per_step: float | None = None
    x_realtime: float | None = None
    total_s: float | None = None
    stages_ms: Mapping[str, float | None] = field(default_factory=lambda: dict.fromkeys(STAGES_MS))
    peak_memory_bytes: int | None = None
    disk_bytes: int | None = None
    threads: int | None = None
    device: str | None = None
    runs: int | None = None
    spread: Spread = field(default_factory=Spread)
    processes: int | None = None
    weights_bytes: int | None = None
    load_s: float | None = None
    load_peak_bytes: int | None = None
    warm_up_s: float | None = None

    def __post_init__(self):
        for name in ("first_sound_ms", "ms_per_step", "x_realtime", "total_s", "load_s", "warm_up_s"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, number(name, getattr(self, name), 0.0, math.inf))
        counts = ("peak_memory_bytes", "disk_bytes", "threads", "runs", "processes", "weights_bytes", "load_peak_bytes")
        for name in counts:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), 0, 2**63))
        _check_stages(self.stages_ms)
        object.__setattr__(self, "stages_ms", {name: self.stages_ms[name] for name in STAGES_MS})

    def as_dict(self) -> dict:
        """The `figures` record of the JSON contract."""
        return {name: value for name, value in asdict(self).items() if name not in MORE}

    def more(self) -> dict:
        """What stands beside `figures` in JSON: `spread`, with [lowest, highest] under the same names, and the rest."""
        return {name: value for name, value in asdict(self).items() if name in MORE}


MORE = ("spread", "processes", "weights_bytes", "load_s", "load_peak_bytes", "warm_up_s")
