"""One process or several that train one model together: the only place that knows of accelerate.

A launcher starts several (`accelerate launch -m tinymusician_core.cli distill ...`, or torchrun); each holds the whole
model and takes its rows of every batch, and the gradients are averaged (distributed data parallel).
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class OneProcess:
    """A process by itself, on one device; what several do in step is nothing to do here."""

    rank, world = 0, 1

    def __init__(self, device: str | torch.device = "cpu"):
        self.device = torch.device(device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in training: its backward pass averages the gradients of all processes."""
        return model

    def quiet(self, model: nn.Module) -> AbstractContextManager:
        """No exchange of gradients in this block: they are only added up."""
        return nullcontext()

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each number, added up over all processes; the same for all of them."""
        return dict(values)

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The main process's clock, and whether any of them was asked to stop."""
        return seconds, stop

    def wait(self) -> None:
        """Go on when all are here."""


class ManyProcesses(OneProcess):
    """One of several that a launcher started."""

    def __init__(self, device: str | torch.device = "cpu"):
        from accelerate import Accelerator
        from accelerate.utils import DistributedType

        self._accelerator = Accelerator(cpu=torch.device(device).type == "cpu", mixed_precision="no")
        kind = self._accelerator.distributed_type
        if kind not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
            raise ValueError(f"processes that share their work as {kind.value}; MULTI_CPU and MULTI_GPU are allowed")
        atexit.register(self._accelerator.end_training)
        super().__init__(self._accelerator.device)
        self.rank, self.world = self._accelerator.process_index, self._accelerator.num_processes

    def wrap(self, model: nn.Module) -> nn.Module:
        return self._accelerator.prepare_model(model)

    def quiet(self, model: nn.Module) -> AbstractContextManager:
        return self._accelerator.no_sync(model)

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        row = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        return dict(zip(values, self._all(row).tolist(), strict=True))

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        mine = [seconds if self.is_main else 0.0, float(stop)]
        seconds, stops = self._all(torch.tensor(mine, dtype=torch.float64, device=self.device)).tolist()
        return seconds, stops > 0

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()

    def _all(self, row: Tensor) -> Tensor:
        return self._accelerator.reduce(row, reduction="sum")


def is_main() -> bool:
    """Whether this is the process that writes and shows things, by the environment that a launcher leaves."""
    return os.environ.get("RANK", "0") == "0"


def processes(device: str | torch.device = "cpu") -> OneProcess:
    """What this process is one of, by the environment that a launcher leaves.

    Raises:
        ImportError: several were started, and accelerate is not installed.
        ValueError: they share their work in a way that is not supported here, FSDP for one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return ManyProcesses(device)
    return OneProcess(device)
