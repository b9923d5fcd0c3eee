"""The distillation loss: divergences a position -> one number, with cross-entropy beside them.

Every loss is a weighted sum of divergences at the temperature T of the moment:

    loss = w_ce CE + w_kd sum_i weight_i(stage) D_i(teacher, student; T) T^2

The named ones have one divergence each. Our reading of the paper's stage-mixed loss (arXiv 2509.00914, which names its
parts and not its equation) has four; with the stage weight s and the balances b and c:

    bidirectional = b FKL + (1 - b) RKL
    skewed        = c SKL + (1 - c) SRKL
    D             = (1 - s) bidirectional + s skewed

Each part is one value a position [B,K,T]; a codebook counts by its weight (alike where none are given), delay padding
counts nothing, and the sum is divided once, by the weight of all valid positions of the whole step: of every part of an
accumulated batch, on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from .divergence import ALPHA, BETA, SKEW, ab, js, kl, log_probs, skew_kl
from .schedule import Ramp, Stage, StageSchedule

Divergence = Callable[[Tensor, Tensor], Tensor]  # log p and log q [..., V] -> [...]
STAGE_MIXED, CROSS_ENTROPY = "stage-mixed", "cross-entropy"


@dataclass(frozen=True)
class LossSpec:
    """What the student is trained on. Weights are >= 0 and not both 0, balances within 0..1; ValueError otherwise.

    `parameters` are those of the divergence where it has any: a skew, a share, or alpha and beta.
    """

    divergence: str = STAGE_MIXED
    parameters: tuple[float, ...] = ()
    schedule: StageSchedule = field(default_factory=StageSchedule)
    cross_entropy: float = 0.5  # w_ce
    distillation: float = 1.0  # w_kd
    forward_share: float = 0.5  # b: forward KL's part of the bidirectional pair
    skew_forward_share: float = 0.5  # c: skew forward KL's part of the skewed pair

    def __post_init__(self) -> None:
        for name in ("cross_entropy", "distillation"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"the weight {name} is {getattr(self, name)}; a finite number of 0 or more is allowed")
        if self.cross_entropy == 0.0 and self.distillation == 0.0:
            raise ValueError("cross_entropy and distillation are both 0; at least one above 0 is allowed")
        for name in ("forward_share", "skew_forward_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 to 1 is allowed")
        if self.divergence not in DEFAULTS:
            raise ValueError(f"no such loss: {self.divergence!r}; allowed: {', '.join(DEFAULTS)}")
        if not self.parameters:
            object.__setattr__(self, "parameters", DEFAULTS[self.divergence])
        self._check_parameters()

    def _check_parameters(self) -> None:
        wanted = len(DEFAULTS[self.divergence])
        if len(self.parameters) != wanted:
            given = ", ".join(f"{x:g}" for x in self.parameters)
            raise ValueError(f"the loss {self.divergence} takes {wanted} parameters, got {given or 'none'}")
        bound = math.inf if self.divergence == "alpha-beta" else 1.0
        if not all(0.0 < x < bound for x in self.parameters):
            raise ValueError(
                f"the parameters of {self.divergence} are {', '.join(f'{x:g}' for x in self.parameters)}; "
                f"numbers between 0 and {bound:g}, both excluded, are allowed"
            )

    def parts(self, stage: Stage) -> list[tuple[float, Divergence]]:
        """The divergences of the moment with their weights; those of no weight are left out."""
        if self.divergence != STAGE_MIXED:
            return [(1.0, lambda p, q: DIVERGENCES[self.divergence](p, q, *self.parameters))]
        (skew,), pair, skewed = self.parameters, 1.0 - stage.skewed, stage.skewed
        parts = [
            (pair * self.forward_share, kl),
            (pair * (1.0 - self.forward_share), lambda p, q: kl(q, p)),
            (skewed * self.skew_forward_share, lambda p, q: skew_kl(p, q, skew)),
            (skewed * (1.0 - self.skew_forward_share), lambda p, q: skew_kl(q, p, skew)),
        ]
        return [(weight, part) for weight, part in parts if weight > 0.0]


@dataclass(frozen=True)
class Losses:
    """One batch's loss and its parts, scalars: `total` carries the gradient, the others are detached."""

    total: Tensor
    cross_entropy: Tensor
    distillation: Tensor


DIVERGENCES: Mapping[str, Callable[..., Tensor]] = {
    "forward-kl": kl,
    "reverse-kl": lambda p, q: kl(q, p),
    "skew-kl": skew_kl,
    "skew-reverse-kl": lambda p, q, skew: skew_kl(q, p, skew),
    "jsd": js,
    "alpha-beta": ab,
}
DEFAULTS: Mapping[str, tuple[float, ...]] = {
    STAGE_MIXED: (SKEW,),
    "forward-kl": (),
    "reverse-kl": (),
    "skew-kl": (SKEW,),
    "skew-reverse-kl": (SKEW,),
    "jsd": (0.5,),
    "alpha-beta": (ALPHA, BETA),
    CROSS_ENTROPY: (),
}
LOSSES = tuple(DEFAULTS)


def loss_named(name: str, temperature: str | None = None, cross_entropy: float | None = None) -> LossSpec:
    """The loss that `--loss NAME` means.

    Args:
        name: one of `LOSSES`; after a colon may stand its parameters: "skew-kl:0.2", "jsd:0.3", "alpha-beta:0.4,0.6".
        temperature: "2", or "2:1" to cool from 2 to 1 over the first four fifths of training; None cools from 4 to 1.
        cross_entropy: its weight beside the divergence's 1.

    Raises:
        ValueError: no such loss, or a parameter, temperature or weight out of range.
    """
    kind, _, given = name.partition(":")
    if kind not in DEFAULTS:
        raise ValueError(f"no such loss: {name!r}; allowed: {', '.join(LOSSES)}")
    schedule = StageSchedule() if temperature is None else StageSchedule(temperature=_cooling(temperature))
    spec = LossSpec(kind, _numbers(given, f"the parameters of {kind}") if given else (), schedule)
    if kind == CROSS_ENTROPY:
        return replace(spec, cross_entropy=1.0, distillation=0.0)
    return spec if cross_entropy is None else replace(spec, cross_entropy=cross_entropy)


def _cooling(text: str) -> Ramp:
    values = _numbers(str(text).replace(":", ","), "a temperature")
    if len(values) > 2:
        raise ValueError(f"a temperature is {text!r}; one number, or two with a colon between them, is allowed")
    return Ramp(values[0], values[-1], begin=0.0, end=0.8)


def _numbers(text: str, what: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{what} must be numbers, got {text!r}") from None


def soft_loss(teacher: Tensor, student: Tensor, stage: Stage, spec: LossSpec) -> Tensor:
    """The distillation term [...] of logits [..., V], times T squared; a part of no weight costs nothing."""
    log_p, log_q = log_probs(teacher, stage.temperature), log_probs(student, stage.temperature)
    return sum(weight * part(log_p, log_q) for weight, part in spec.parts(stage)) * stage.temperature**2


def position_weights(valid: Tensor, codebooks: tuple[float, ...] | None) -> Tensor:
    """What each position counts, float32 [B,K,T]: its codebook's weight where `valid` bool [B,K,T], else 0."""
    if codebooks is None:
        return valid.float()
    return valid * torch.tensor(codebooks, device=valid.device)[:, None]


def distillation_loss(
    teacher: Tensor | None,
    student: Tensor,
    targets: Tensor,
    weights: Tensor,
    spec: LossSpec,
    progress: float,
    whole: float | None = None,
) -> Losses:
    """The loss of one batch at `progress` (0..1) of training.

    Args:
        teacher, student: logits [B,K,T,V] for the same delayed inputs (teacher None where spec.distillation is 0).
        targets: int64 [B,K,T], the delayed codes one step on.
        weights: [B,K,T] as `position_weights` gives them; what weighs nothing is never computed on.
        spec: which loss.
        progress: the share of the budget that is spent.
        whole: the weight of all positions of the step, of which this may be a part; its own where None.
    """
    counts = weights > 0
    chosen, wanted, weight = student[counts], targets[counts], weights[counts].float()  # [N,V], [N], [N]
    whole = float(weight.sum()) if whole is None else whole
    if not whole > 0.0:
        raise ValueError("no position of the batch is valid; at least one is needed")
    hard = (functional.cross_entropy(chosen.float(), wanted, reduction="none") * weight).sum() / whole
    soft = torch.zeros((), device=student.device)
    if spec.distillation > 0.0:
        if teacher is None:
            raise ValueError(f"distillation has the weight {spec.distillation}, and there are no teacher logits")
        soft = (soft_loss(teacher[counts], chosen, spec.schedule.at(progress), spec) * weight).sum() / whole
    total = spec.cross_entropy * hard + spec.distillation * soft
    return Losses(total=total, cross_entropy=hard.detach(), distillation=soft.detach())
