"""One process or several that train one model together: the only place that knows of accelerate.

A launcher starts several (`accelerate launch -m tinymusician_core.cli distill ...`, or torchrun); each takes its rows
of every batch, and the gradients are averaged. Each holds the whole model (distributed data parallel), or, with
`--use_fsdp --fsdp_version 2`, its share of it (fully sharded data parallel, see `sharded`).
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class OneProcess:
    """A process by itself, on one device; what several do in step is nothing to do here."""

    rank, world = 0, 1
    shares_weights = False  # whether each process has its share of the weights alone

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

    def whole(self, state: Any) -> Any:
        """A state, of nested dicts and lists, with the tensors that processes share put together; all must call it."""
        return state

    def shares(self, state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
        """A model's whole state as this process keeps it."""
        return state

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each number, added up over all processes; the same for all of them."""
        return dict(values)

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The main process's clock, and whether any of them was asked to stop."""
        return seconds, stop

    def wait(self) -> None:
        """Go on when all are here."""


class ManyProcesses(OneProcess):
    """One of several that a launcher started, each with the whole model."""

    kinds = ("MULTI_CPU", "MULTI_GPU")

    def __init__(self, device: str | torch.device = "cpu"):
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=torch.device(device).type == "cpu", mixed_precision="no")
        kind = self._accelerator.distributed_type.value
        if kind not in self.kinds:
            raise ValueError(f"processes that share their work as {kind}; {' and '.join(self.kinds)} are allowed")
        atexit.register(self._accelerator.end_training)
        kind = self._accelerator.device.type
        super().__init__(kind if kind == "cpu" else self._accelerator.device)  # not "cpu:0", which torch.load refuses
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


class ShardedProcesses(ManyProcesses):
    """One of several that a launcher started with `--use_fsdp --fsdp_version 2`, each with its share of the model.

    Raises:
        ValueError: settings of FSDP that would not be kept.
    """

    shares_weights = True
    kinds = ("MULTI_CPU", "FSDP")  # accelerate knows FSDP on GPUs alone; torch's works on CPUs too

    def __init__(self, device: str | torch.device = "cpu"):
        _check_fsdp()
        super().__init__(device)

    def wrap(self, model: nn.Module) -> nn.Module:
        from .sharded import shard

        return shard(model, self.device, self.world, _flag("FSDP_RESHARD_AFTER_FORWARD", "true"))

    @contextmanager
    def quiet(self, model: nn.Module) -> Iterator[None]:
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def whole(self, state: Any) -> Any:
        from .sharded import whole

        return whole(state)

    def shares(self, state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
        from .sharded import share

        own = model.state_dict()
        return {name: share(tensor, own[name]) for name, tensor in state.items()}


def _flag(name: str, otherwise: str = "false") -> bool:
    return os.environ.get(name, otherwise).lower() in ("true", "1", "full_shard")


def _check_fsdp() -> None:
    """ValueError where a launcher asks for what `ShardedProcesses` does not do."""
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(f"FSDP of version {version}; version 2 is allowed, with --fsdp_version 2")
    for name in ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING"):
        if _flag(name):
            raise ValueError(f"--{name.lower()} is true, which is not supported; false is allowed")


def is_main() -> bool:
    """Whether this is the process that writes and shows things, by the environment that a launcher leaves."""
    return os.environ.get("RANK", "0") == "0"


def processes(device: str | torch.device = "cpu") -> OneProcess:
    """What this process is one of, by the environment that a launcher leaves.

    Raises:
        ImportError: several were started, and accelerate is not installed.
        ValueError: they share their work in a way that is not supported here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return OneProcess(device)
    return ShardedProcesses(device) if _flag("ACCELERATE_USE_FSDP") else ManyProcesses(device)
