"""The speed, memory and size of a variant in an evaluation, measured once and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ..files import whole_file
from ..measure.bench import measure
from ..records import Figures, SamplingSpec, Spread
from ..text import EXAMPLE

RUNS = 3


def speed_of(
    model: str,
    spec: SamplingSpec,
    device: str,
    threads: int | None,
    file: Path,
    should_stop: Callable[[], bool],
) -> Figures:
    """What a file has from an earlier call, or figures of `RUNS` runs in a fresh process, which it then has.

    Args:
        model: what `tinymusician_core.load` takes.
        spec: how to draw.
        device: "cpu" or "cuda".
        threads: CPU threads; None leaves the choice to torch.
        file: where the figures are kept, as JSON.
        should_stop: asked all the time.

    Raises:
        ValueError, ModelError, WorkerDied, Cancelled: as `measure.bench.measure` does.
    """
    if not file.exists():
        measured = measure(model, EXAMPLE, spec, RUNS, should_stop=should_stop, threads=threads, device=device)
        found = measured.figures
        with whole_file(file) as partial:
            partial.write_text(json.dumps(found.as_dict() | found.more(), indent=1) + "\n", encoding="utf-8")
    record = json.loads(file.read_text(encoding="utf-8"))
    return Figures(**record | {"spread": Spread(**record["spread"])})
