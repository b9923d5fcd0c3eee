"""From several runs to one record of figures: the median of every figure on its own, and its lowest and highest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from ..figures import STAGES_MS, Figures, Range, Spread
from ..records import Timing
from ..worker import Loaded


@dataclass(frozen=True)
class Run:
    """One run: its times, the seconds of new sound that it made, and the most memory above the idle process."""

    timing: Timing
    made_s: float
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class Process:
    """The runs of one fresh process, what it had loaded, and how long its warm-up took; None where there was none."""

    runs: tuple[Run, ...]
    loaded: Loaded
    warm_up_s: float | None

    def as_dict(self) -> dict:
        """Every field by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping) -> Process:
        """What `as_dict` gave, and JSON made of it."""
        return cls(runs_from(record["runs"]), Loaded(**record["loaded"]), record["warm_up_s"])


def runs_from(records: Sequence[Mapping]) -> tuple[Run, ...]:
    """Runs as JSON has them."""
    return tuple(Run(**{**record, "timing": Timing(**record["timing"])}) for record in records)


def figures_of(processes: Sequence[Process]) -> Figures:
    """One record of all runs of one or more processes, which have loaded the same model.

    Raises:
        ValueError: no process, or models that differ.
    """
    if len({process.loaded.hash for process in processes}) != 1:
        names = ", ".join(f"{process.loaded.name} {process.loaded.hash}" for process in processes) or "none"
        raise ValueError(f"processes must have loaded one and the same model, got {names}")
    loaded = processes[-1].loaded
    load_peak = middle([process.loaded.load_peak_bytes for process in processes])
    return Figures(
        **summarise([run for process in processes for run in process.runs]),
        disk_bytes=loaded.disk_bytes,
        threads=loaded.threads,
        device=loaded.device,
        processes=len(processes),
        weights_bytes=loaded.weights_bytes,
        load_s=middle([process.loaded.load_s for process in processes]),
        load_peak_bytes=None if load_peak is None else round(load_peak),
        warm_up_s=middle([process.warm_up_s for process in processes]),
    )


def summarise(runs: Sequence[Run]) -> dict:
    """The figures of runs, of one process or of several.

    Returns:
        first_sound_ms, ms_per_step, x_realtime, total_s, stages_ms (text, lm, codec), peak_memory_bytes, spread and
        runs, as `Figures` takes them. A figure that no run has is None.

    Raises:
        ValueError: no run at all.
    """
    if not runs:
        raise ValueError("there are no runs; at least one is needed")
    timings = [run.timing for run in runs]
    columns = {
        "first_sound_ms": [1000 * timing.first_sound_s for timing in timings],
        "ms_per_step": [timing.ms_per_step for timing in timings],
        "x_realtime": [run.timing.x_realtime(run.made_s) for run in runs],
        "total_s": [timing.total_s for timing in timings],
        "peak_memory_bytes": [run.peak_memory_bytes for run in runs],
    }
    stages = {name: [1000 * getattr(timing, f"{name}_s") for timing in timings] for name in STAGES_MS}
    medians = {name: middle(values) for name, values in columns.items()}
    peak = medians.pop("peak_memory_bytes")
    return medians | {
        "stages_ms": {name: middle(values) for name, values in stages.items()},
        "peak_memory_bytes": None if peak is None else round(peak),
        "spread": Spread(
            **{name: extent(values) for name, values in columns.items()},
            stages_ms={name: extent(values) for name, values in stages.items()},
        ),
        "runs": len(runs),
    }


def middle(values: Sequence[float | None]) -> float | None:
    """The median of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def extent(values: Sequence[float | None]) -> Range | None:
    """The lowest and the highest of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None
