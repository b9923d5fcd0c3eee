"""The training loop that every stage shares: AdamW or Muon beside it, warm-up and cosine decay over a budget, bf16,
accumulated gradients, checkpoints, exact resume, early stopping, JSONL and TensorBoard logs. It needs torch alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .files import whole_file
from .optimizer import Optimizers, layer_matrices
from .precision import computes_bf16
from .processes import OneProcess
from .run_log import RunLog

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainSettings:
    """How long and how hard to train. The budget is counted over all resumed runs: `minutes` of training time,
    or `steps`.

    `validate_every` counts steps and goes before `validate_every_s`. With `patience` training ends early when that many
    validations on end have not brought `monitor` below its best; validations then judge the average where there is one,
    and the best weights are the ones to keep.

    `muon` names the stacks of layers whose matrices Muon trains ("decoder.layers"); AdamW trains the rest. `steady`
    names the parts whose learning rate never falls: what judges the rest must keep up with it to the end.

    `bf16` says whether products are computed in bfloat16; None: where the device has instructions for it.
    """

    learning_rate: float
    minutes: float | None = None
    steps: int | None = None
    warm_up_steps: int = 100
    final_fraction: float = 0.05
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    muon: tuple[str, ...] = ()
    steady: tuple[str, ...] = ()
    clip_norm: float = 1.0
    ema: float = 0.0
    bf16: bool | None = None
    seed: int = 0
    log_every: int = 20
    validate_every_s: float = 300.0
    validate_every: int | None = None
    checkpoint_every_s: float = 180.0
    patience: int | None = None
    monitor: str = "validation_loss"
    tensorboard: bool = False

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

    def __str__(self) -> str:
        losses = ", ".join(f"{name} {value:.3f}" for name, value in self.losses.items())
        return f"step {self.step}, {self.fraction:.0%}, {self.eta_s:.0f} s to go, {losses}"


def kept_state(folder: Path) -> dict:
    """The checkpoint in `folder`, with the weights to keep as `weights`: with `patience` the best ones, else their
    moving average where one was kept, else the last."""
    state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    return state | {"weights": _kept(state.get("best", {}), state["average"], state["model"])}


def _kept(best: Mapping, average: dict[str, Tensor], last: dict[str, Tensor]) -> dict[str, Tensor]:
    return best.get("weights") or average or last


Part = Callable[[], dict[str, Tensor]]
LossFunction = Callable[[torch.Generator, float], "dict[str, Tensor] | Sequence[Part]"]


class Trainer:
    """Trains `model` (any module whose parameters require gradients) inside `folder`.

    The loss function gets a random generator and the fraction of the budget spent, and returns named scalars; "loss" is
    minimised, the others are logged. Where a batch is too big for the memory it returns functions instead, each of
    which gives the scalars of a part; those of all parts add up. Buffers of the model are part of the checkpoint.

    Attributes:
        model: the module itself.
        running: what loss functions must call in its place, where several processes train together.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        folder: Path,
        device: str = "cpu",
        together: OneProcess | None = None,
    ) -> None:
        self.together = OneProcess(device) if together is None else together
        self.device, self.settings, self.folder = self.together.device, settings, Path(folder)
        self.bf16 = computes_bf16(self.device) if settings.bf16 is None else settings.bf16
        self.model = model.to(self.device)
        self.running = self.together.wrap(self.model)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        muon = layer_matrices(model, settings.muon)
        steady = [n for n, _ in model.named_parameters() if n.startswith(tuple(f"{part}." for part in settings.steady))]
        s = settings
        self.optimizer = Optimizers(model, muon, s.learning_rate, s.weight_decay, s.betas, steady)
        self.rng = torch.Generator().manual_seed(settings.seed)
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()} if settings.ema else {}
        self.step, self.elapsed_s = 0, 0.0
        self.best: dict = {}  # value, how many validations ago, and the weights
        self._log = RunLog(self.folder, settings.tensorboard)

    @property
    def fraction(self) -> float:
        s = self.settings
        return min(1.0, self.step / s.steps if s.steps else self.elapsed_s / (60 * s.minutes))

    @property
    def done(self) -> bool:
        """Whether the budget is spent, or nothing has got better for long enough."""
        patience = self.settings.patience
        return self.fraction >= 1.0 or (patience is not None and self.best.get("ago", 0) >= patience)

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
        """Go on from the folder's checkpoint; False where there is none. What was logged after it is forgotten.

        Raises:
            ValueError: it was trained with other optimisers.
        """
        path = self.folder / CHECKPOINT
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(self._shares(state["model"]))
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"].cpu())
        self.average = self._shares(state["average"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.best = state.get("best", {})
        if "weights" in self.best:
            self.best["weights"] = self._shares(self.best["weights"])
        self.together.wait()
        if self.together.is_main:
            self._log.forget_after(self.step)
        return True

    def save(self) -> None:
        """Write the checkpoint whole or not at all; the main process does, for all of them, who must call it too."""
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "best": self.best,
        }
        tensors = self.together.whole(tensors)
        if not self.together.is_main:
            return
        state = {**tensors, "rng": self.rng.get_state(), "step": self.step, "elapsed_s": self.elapsed_s}
        with whole_file(self.folder / CHECKPOINT) as partial:
            torch.save(state, partial)

    def _shares(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(self.together.shares(state, self.model))

    def log(self, record: dict[str, float | int]) -> None:
        """Append a record to the folder's log.jsonl, with the step and the seconds of training."""
        if not self.together.is_main:
            return
        self._log.write(self.step, self.elapsed_s, record)

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def train_step(self, loss: LossFunction) -> dict[str, Tensor]:
        """One optimiser step; the losses of its parts, added up."""
        self.optimizer.set_learning_rate(self.learning_rate(), self.settings.learning_rate)
        self.optimizer.zero_grad()
        with self._context():
            found = loss(self.rng, self.fraction)
        parts: Sequence[Part] = [lambda: found] if isinstance(found, Mapping) else found
        losses: dict[str, Tensor] = {}
        for index, part in enumerate(parts):
            with self.together.quiet(self.running) if index < len(parts) - 1 else nullcontext():
                with self._context():
                    values = part()
                values["loss"].backward()
            losses = {name: losses.get(name, 0.0) + value.detach() for name, value in values.items()}
        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        self.optimizer.step()
        if self.average:
            self._update_average()
        self.step += 1
        return losses

    def _context(self):
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

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
        """The weights to keep, as `kept_state` has them."""
        return _kept(self.best, self.average, self.model.state_dict())

    def run(
        self,
        loss: LossFunction,
        validate: Callable[[], dict[str, float]] | None = None,
        on_progress: Callable[[TrainProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """Train until it is `done` or `should_stop` says so; a checkpoint is written at the end either way. The last
        validation, when the budget is spent, counts as every other does."""
        began, base = time.monotonic(), self.elapsed_s
        saved = validated = base
        window: list[dict[str, Tensor]] = []
        s = self.settings
        while not self.done:
            passed, stop = base + time.monotonic() - began, should_stop is not None and should_stop()
            self.elapsed_s, stop = self.together.agree(passed, stop)
            if stop or self.done:
                break
            window.append(self.train_step(loss))
            if self.step % s.log_every == 0:
                self.elapsed_s, _ = self.together.agree(base + time.monotonic() - began, False)
                self._report(window, on_progress)
                window = []
            due = self.elapsed_s - validated > s.validate_every_s
            if validate and (self.step % s.validate_every == 0 if s.validate_every else due):
                self._validate(validate)
                validated = self.elapsed_s
            if self.elapsed_s - saved > s.checkpoint_every_s:
                self.save()
                saved = self.elapsed_s
        spent = self.fraction >= 1.0
        if validate and spent:
            self._validate(validate)
        self.save()
        if validate and not spent:
            with self._averaged():
                self.log(validate())  # not for patience: that has run out, or a run that is not stopped has none here

    def _validate(self, validate: Callable[[], dict[str, float]]) -> None:
        """Log a validation, and with `patience` remember how long ago the best one was, and its weights."""
        with self._averaged():
            found = validate()
            self.log(found)
            if self.settings.patience is None:
                return
            value = found[self.settings.monitor]
            if value < self.best.get("value", math.inf):
                self.best = {"value": value, "ago": 0, "weights": self._copy()}
            else:
                self.best = {**self.best, "ago": self.best["ago"] + 1}

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """With `patience` the model has its averaged weights in this block: what is judged is what would be kept."""
        if self.settings.patience is None or not self.average:
            yield
            return
        own = self._copy()
        self.model.load_state_dict(self.average)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def _report(self, window: list[dict[str, Tensor]], on_progress: Callable[[TrainProgress], None] | None) -> None:
        """Log the means of the steps since the last report, of each loss over those that had it, and pass them on."""
        seen = {name: [losses[name] for losses in window if name in losses] for losses in window for name in losses}
        here = {name: float(torch.stack(values).mean()) for name, values in seen.items()}
        means = {name: value / self.together.world for name, value in self.together.sum(here).items()}
        self.log({"lr": self.learning_rate(), **means})
        if on_progress and self.together.is_main:
            eta_s = self.elapsed_s * (1 - self.fraction) / max(self.fraction, 1e-9)
            on_progress(TrainProgress(self.step, self.fraction, self.elapsed_s, eta_s, means))
