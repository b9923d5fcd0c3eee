"""The training loop that every stage shares: AdamW, warm-up and cosine decay over a budget, bf16, checkpoints,
exact resume, a JSONL log."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainSettings:
    """How long and how hard to train. The budget is counted over all resumed runs: `minutes` of training time,
    or `steps`."""

    learning_rate: float
    minutes: float | None = None
    steps: int | None = None
    warm_up_steps: int = 100
    final_fraction: float = 0.05
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    ema: float = 0.0
    bf16: bool = True
    seed: int = 0
    log_every: int = 20
    validate_every_s: float = 300.0
    checkpoint_every_s: float = 180.0

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("give a training budget either in minutes or in steps")
        if (self.minutes or self.steps) <= 0:
            raise ValueError(f"a training budget must be above zero, got {self.minutes or self.steps}")


@dataclass(frozen=True)
class TrainProgress:
    """Where a run stands: `fraction` of the budget spent, ETA in seconds, the last losses."""

    step: int
    fraction: float
    elapsed_s: float
    eta_s: float
    losses: dict[str, float]


LossFunction = Callable[[torch.Generator, float], dict[str, Tensor]]


class Trainer:
    """Trains `model` (any module whose parameters require gradients) inside `folder`.

    The loss function gets a random generator and the fraction of the budget spent, and returns named scalars;
    "loss" is
    minimised, the others are logged. Buffers of the model are part of the checkpoint.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, folder: Path, device: str = "cpu") -> None:
        self.model, self.settings, self.folder, self.device = model.to(device), settings, Path(folder), device
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self._groups(), lr=settings.learning_rate, betas=settings.betas)
        self.rng = torch.Generator().manual_seed(settings.seed)
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()} if settings.ema else {}
        self.step, self.elapsed_s = 0, 0.0

    def _groups(self) -> list[dict]:
        """Weight decay on matrices only."""
        decay = self.settings.weight_decay
        return [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]

    @property
    def fraction(self) -> float:
        s = self.settings
        return min(1.0, self.step / s.steps if s.steps else self.elapsed_s / (60 * s.minutes))

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine from the full rate to `final_fraction` of it."""
        s = self.settings
        cosine = 0.5 * (1 + math.cos(math.pi * self.fraction))
        return (
            s.learning_rate
            * min(1.0, (self.step + 1) / s.warm_up_steps)
            * (s.final_fraction + (1 - s.final_fraction) * cosine)
        )

    def resume(self) -> bool:
        """Go on from the folder's checkpoint; False where there is none."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"].cpu())
        self.average = state["average"]
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        return True

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "average": self.average,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        partial = self.folder / f"{CHECKPOINT}.part"
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / CHECKPOINT)

    def log(self, record: dict[str, float | int]) -> None:
        """Append a record to the folder's log.jsonl, with the step and the seconds of training."""
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, "elapsed_s": round(self.elapsed_s, 1), **record}) + "\n")

    def train_step(self, loss: LossFunction) -> dict[str, Tensor]:
        """One optimiser step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        context = (
            torch.autocast(torch.device(self.device).type, torch.bfloat16) if self.settings.bf16 else nullcontext()
        )
        with context:
            losses = loss(self.rng, self.fraction)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        self.optimizer.step()
        if self.average:
            self._update_average()
        self.step += 1
        return losses

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential moving average of the weights, warmed up so that the random start is forgotten."""
        decay = min(self.settings.ema, (self.step + 1) / (self.step + 10))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def averaged_state(self) -> dict[str, Tensor]:
        """The weights to keep: their moving average where one is kept, else the last ones."""
        return self.average or self.model.state_dict()

    def run(
        self,
        loss: LossFunction,
        validate: Callable[[], dict[str, float]] | None = None,
        on_progress: Callable[[TrainProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """Train until the budget is spent or `should_stop` says so; a checkpoint is written at the end either way."""
        began, base = time.monotonic(), self.elapsed_s
        saved = validated = began
        window: list[dict[str, Tensor]] = []
        while self.fraction < 1.0 and not (should_stop and should_stop()):
            window.append({name: value.detach() for name, value in self.train_step(loss).items()})
            now = time.monotonic()
            self.elapsed_s = base + now - began
            if self.step % self.settings.log_every == 0:
                self._report(window, on_progress)
                window = []
            if validate and now - validated > self.settings.validate_every_s:
                self.log(validate())
                validated = time.monotonic()
            if now - saved > self.settings.checkpoint_every_s:
                self.save()
                saved = time.monotonic()
        self.save()
        if validate:
            self.log(validate())

    def _report(self, window: list[dict[str, Tensor]], on_progress: Callable[[TrainProgress], None] | None) -> None:
        """Log the means of the steps since the last report, and pass them on."""
        means = {name: float(torch.stack([losses[name] for losses in window]).mean()) for name in window[0]}
        self.log({"lr": self.learning_rate(), **means})
        if on_progress:
            eta_s = self.elapsed_s * (1 - self.fraction) / max(self.fraction, 1e-9)
            on_progress(TrainProgress(self.step, self.fraction, self.elapsed_s, eta_s, means))
