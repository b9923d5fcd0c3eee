"""The distillation loss: divergences a position -> one number, with cross-entropy beside them.

Our reading of the paper's stage-mixed loss (arXiv 2509.00914, which names its parts and not its equation). With the
stage weight s, the balances b and c and the temperature T of the moment:

    bidirectional = b FKL + (1 - b) RKL
    skewed        = c SKL + (1 - c) SRKL
    loss          = w_ce CE + w_kd ((1 - s) bidirectional + s skewed)

Each part is one value a position [B,K,T]; codebooks count alike, delay padding counts nothing, and the sum is divided
once, by the number of valid positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from tinymusician_core.distill.divergence import SKEW, kl, log_probs, skew_kl
from tinymusician_core.distill.schedule import Ramp, Stage, StageSchedule


@dataclass(frozen=True)
class LossSpec:
    """What the student is trained on. Weights are >= 0 and not both 0, balances within 0..1; ValueError otherwise."""

    schedule: StageSchedule = field(default_factory=StageSchedule)
    cross_entropy: float = 0.5  # w_ce
    distillation: float = 1.0  # w_kd
    forward_share: float = 0.5  # b: forward KL's part of the bidirectional pair
    skew_forward_share: float = 0.5  # c: skew forward KL's part of the skewed pair
    alpha: float = SKEW

    def __post_init__(self) -> None:
        for name in ("cross_entropy", "distillation"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"the weight {name} is {getattr(self, name)}; a finite number of 0 or more is allowed")
        if self.cross_entropy == 0.0 and self.distillation == 0.0:
            raise ValueError("cross_entropy and distillation are both 0; at least one above 0 is allowed")
        for name in ("forward_share", "skew_forward_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 to 1 is allowed")
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha is {self.alpha}; a number between 0 and 1, both excluded, is allowed")


@dataclass(frozen=True)
class Losses:
    """One batch's loss and its parts, scalars: `total` carries the gradient, the others are detached."""

    total: Tensor
    cross_entropy: Tensor
    distillation: Tensor


def _fixed(skewed: float) -> StageSchedule:
    return StageSchedule(skewed=Ramp(skewed, skewed), temperature=Ramp(1.0, 1.0))


LOSSES: dict[str, LossSpec] = {
    "stage-mixed": LossSpec(),
    "forward-kl": LossSpec(schedule=_fixed(0.0), forward_share=1.0),
    "reverse-kl": LossSpec(schedule=_fixed(0.0), forward_share=0.0),
    "skew-kl": LossSpec(schedule=_fixed(1.0), skew_forward_share=1.0),
    "skew-reverse-kl": LossSpec(schedule=_fixed(1.0), skew_forward_share=0.0),
    "cross-entropy": LossSpec(distillation=0.0, cross_entropy=1.0),
}


def loss_named(name: str) -> LossSpec:
    """The loss that `--loss NAME` means; ValueError with the allowed names otherwise."""
    if name not in LOSSES:
        raise ValueError(f"no such loss: {name!r}; allowed: {', '.join(LOSSES)}")
    return LOSSES[name]


def stage_mixed(teacher: Tensor, student: Tensor, stage: Stage, spec: LossSpec) -> Tensor:
    """The distillation term [...] of logits [..., V], times T squared; a part of no weight costs nothing."""
    log_p, log_q = log_probs(teacher, stage.temperature), log_probs(student, stage.temperature)
    parts = (
        ((1.0 - stage.skewed) * spec.forward_share, lambda: kl(log_p, log_q)),
        ((1.0 - stage.skewed) * (1.0 - spec.forward_share), lambda: kl(log_q, log_p)),
        (stage.skewed * spec.skew_forward_share, lambda: skew_kl(log_p, log_q, spec.alpha)),
        (stage.skewed * (1.0 - spec.skew_forward_share), lambda: skew_kl(log_q, log_p, spec.alpha)),
    )
    return sum(weight * part() for weight, part in parts if weight > 0.0) * stage.temperature**2


def distillation_loss(
    teacher: Tensor | None, student: Tensor, targets: Tensor, valid: Tensor, spec: LossSpec, progress: float
) -> Losses:
    """The loss of one batch at `progress` (0..1) of training.

    teacher, student: logits [B,K,T,V] for the same delayed inputs (teacher may be None where spec.distillation is 0);
    targets: int64 [B,K,T], the delayed codes one step on; valid: bool [B,K,T], false on delay padding.
    """
    chosen, wanted = student[valid], targets[valid]  # [N,V], [N]: padding is never computed on
    if wanted.numel() == 0:
        raise ValueError("no position of the batch is valid; at least one is needed")
    count = wanted.numel()
    hard = functional.cross_entropy(chosen.float(), wanted, reduction="none").sum() / count
    soft = torch.zeros((), device=student.device)
    if spec.distillation > 0.0:
        if teacher is None:
            raise ValueError(f"distillation has the weight {spec.distillation}, and there are no teacher logits")
        soft = stage_mixed(teacher[valid], chosen, spec.schedule.at(progress), spec).sum() / count
    total = spec.cross_entropy * hard + spec.distillation * soft
    return Losses(total=total, cross_entropy=hard.detach(), distillation=soft.detach())
