"""What a distillation is: every setting that its result depends on, checked before anything is read or written."""

from __future__ import annotations

from dataclasses import dataclass

from ..guidance import Guidance, parse_guidance
from .loss import CROSS_ENTROPY, LossSpec, loss_named
from .student import Shape

HIDDEN = ("mse", "cosine")
OPTIMIZERS = ("muon", "adamw")
VALIDATION_BATCHES = 4


@dataclass(frozen=True)
class DistillSpec:
    """How to train a student. Raises ValueError for what is out of range.

    Attributes:
        layers: how many of the teacher's layers it keeps, or which.
        width, heads, ffn: its sizes where they are to be smaller than the teacher's.
        loss: one of `distill.loss.LOSSES`, its parameters after a colon.
        temperature: of the divergence, "2" or "2:1"; None for "4:1".
        cross_entropy: the weight of the true tokens beside the divergence; None as the loss has it.
        codebook_weights: how much each codebook counts; None for alike.
        hidden: "mse:W" or "cosine:W", what each layer gives against what its original would have been given next.
        batch, seconds: windows a step, and how long each is.
        shortest: with it a step has windows of `seconds`, of half of that, of a quarter and so on down to `shortest`,
            in turn by chance, and the more of them the shorter they are; None for `seconds` alone.
        accumulate: in how many parts a batch is computed, one after the other.
        optimizer: "muon" for the matrices of the layers, with AdamW for the rest, or "adamw" for all.
        dropout: the share of captions left out, for guidance.
        on_policy: the share of steps on windows that the student goes on with itself.
        cache_logits: how many of the teacher's likeliest tokens to keep on disk a position; None runs it in training.
        guidance: one pass of the student learns what the teacher's guided two give, "fixed:3" at one scale, "input:1-6"
            at every scale of a range, which is then an input.
        patience: validations without progress until training ends; None for the whole budget.
        validate_every: steps between validations; None for every five minutes.
        validation_windows: held-out windows that the finished student is judged on, rounded up to whole batches, each
            of another clip as far as there are so many; None for `VALIDATION_BATCHES` batches, which is what
            validations on the way look at.
        bf16: whether products are computed in bfloat16; None: where the device has instructions for it.
    """

    layers: int | tuple[int, ...]
    width: int | None = None
    heads: int | None = None
    ffn: int | None = None
    loss: str = "stage-mixed"
    temperature: str | None = None
    cross_entropy: float | None = None
    codebook_weights: tuple[float, ...] | None = None
    hidden: str | None = None
    batch: int = 12
    seconds: float = 10.0
    shortest: float | None = None
    accumulate: int = 1
    learning_rate: float = 1e-3
    optimizer: str = "muon"
    dropout: float = 0.1
    on_policy: float = 0.0
    cache_logits: int | None = None
    guidance: str | None = None
    patience: int | None = None
    validate_every: int | None = None
    validation_windows: int | None = None
    bf16: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", self.shape.layers)
        terms, weights = self.terms, self.codebook_weights
        for name in ("batch", "accumulate", "cache_logits", "patience", "validate_every", "validation_windows"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value}; a whole number above 0 is allowed")
        for name, top in (("seconds", 60.0), ("learning_rate", 1.0)):
            if not 0.0 < getattr(self, name) <= top:
                raise ValueError(f"{name} is {getattr(self, name)}; above 0 and at most {top} is allowed")
        if self.shortest is not None and not 0.0 < self.shortest <= self.seconds:
            raise ValueError(f"shortest is {self.shortest}; above 0 and at most {self.seconds:g} is allowed")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is {self.optimizer!r}; {' or '.join(OPTIMIZERS)} is allowed")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; 0 or more and below 1 is allowed")
        if not 0.0 <= self.on_policy <= 1.0:
            raise ValueError(f"on_policy is {self.on_policy}; 0 to 1 is allowed")
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} in {self.accumulate} parts; a divisor of the batch is allowed")
        if weights is not None:
            object.__setattr__(self, "codebook_weights", tuple(float(w) for w in weights))
            if not all(0.0 <= w < float("inf") for w in weights) or not sum(weights) > 0.0:
                raise ValueError(
                    f"the codebook weights are {list(weights)}; numbers of 0 or more, not all 0, are allowed"
                )
        self._check_together(terms)

    def _check_together(self, terms: LossSpec) -> None:
        """What does not go together is refused."""
        hidden, guided = self.hidden_term, self.guided
        if terms.distillation == 0.0 and (self.on_policy or self.cache_logits or hidden or guided):
            raise ValueError(
                f"the loss {CROSS_ENTROPY} asks no teacher; on-policy windows, cached logits, hidden states and "
                "guidance need one that does"
            )
        if self.cache_logits is not None and (self.on_policy or hidden or self.shortest):
            raise ValueError(
                "cached logits stand in for the teacher, on windows of one length; on-policy windows, hidden states "
                "and shorter windows need it to run"
            )

    @property
    def shape(self) -> Shape:
        return Shape(self.layers, self.width, self.heads, self.ffn)

    @property
    def parts(self) -> tuple[int, ...]:
        """In how many parts a window may come: 1, and 2, 4 and so on as long as they are not shorter than allowed."""
        found = [1]
        while self.shortest is not None and self.seconds / (2 * found[-1]) >= self.shortest:
            found.append(2 * found[-1])
        return tuple(found)

    @property
    def validation_batches(self) -> int:
        """Batches of held-out windows that the finished student is judged on."""
        return VALIDATION_BATCHES if self.validation_windows is None else -(-self.validation_windows // self.batch)

    @property
    def terms(self) -> LossSpec:
        return loss_named(self.loss, self.temperature, self.cross_entropy)

    @property
    def hidden_term(self) -> tuple[str, float] | None:
        """Kind and weight of the hidden-state term."""
        if self.hidden is None:
            return None
        kind, _, weight = self.hidden.partition(":")
        number = _number(weight or "1")
        if kind not in HIDDEN or number is None or not 0.0 < number < float("inf"):
            raise ValueError(f"hidden is {self.hidden!r}; mse or cosine with a weight above 0, as mse:0.5, is allowed")
        return kind, number

    @property
    def guided(self) -> Guidance:
        """The guidance that the student is to have built in, or the range of it that it takes as an input."""
        return parse_guidance(self.guidance)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
