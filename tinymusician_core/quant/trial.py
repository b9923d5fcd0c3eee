"""Try schemes on a model in memory, and measure what they do to it. R windows, K codebooks, T frames, V entries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..distill.divergence import kl, log_probs
from ..pipeline import Pipeline
from .calibration import Calibration
from .plan import packable, put, tied
from .schemes import SCHEMES, owned, pack

ROWS = 4  # windows that go through the decoder at once
CODEC_WINDOWS = 4  # windows whose sound is compared
SAMPLE_EACH, SAMPLE_ROWS = 32, 256  # inputs that are kept of a call, and of a layer


class Packs:
    """Packs the modules of a model, and keeps what is slow to pack: forms that round by their inputs' moments.

    Args:
        modules: a pipeline's modules, in float.
        moments: second moments [I,I] of the inputs, by module.
    """

    def __init__(self, modules: nn.Module, moments: Mapping[str, Tensor] | None = None):
        self._targets, self.ties = packable(modules), tied(modules)
        self._moments = {} if moments is None else moments
        self._kept: dict[tuple[str, str], nn.Module] = {}

    def target(self, name: str) -> nn.Module:
        """The float module of a name."""
        return self._targets[name]

    def packed(self, name: str, scheme: str) -> nn.Module:
        """A linear layer or embedding in a scheme's form; ValueError where the scheme cannot take it."""
        slow = name in self._moments and getattr(SCHEMES[scheme].linear, "reads_moments", False)
        if not slow:
            return pack(self._targets[name], scheme)
        if (name, scheme) not in self._kept:
            self._kept[name, scheme] = pack(self._targets[name], scheme, self._moments[name])
        return self._kept[name, scheme]

    def stored(self, schemes: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
        """What modules that were slow to pack are stored as in their scheme, by module; the others are left out."""
        kept = {name: self._kept[name, scheme] for name, scheme in schemes.items() if (name, scheme) in self._kept}
        return {name: {key: t.contiguous().cpu() for key, t in form.stored().items()} for name, form in kept.items()}


@contextmanager
def tried(modules: nn.Module, schemes: Mapping[str, str], packs: Packs | None = None) -> Iterator[None]:
    """The modules in a scheme's form for as long as the block lasts; then the float ones stand there again.

    Args:
        modules: a pipeline's modules, in float.
        schemes: module name -> scheme; the others stay as they are.
        packs: what packs them.

    Raises:
        ValueError: a scheme that cannot take its module.
    """
    packs = Packs(modules) if packs is None else packs
    rounded: list[tuple[Tensor, Tensor]] = []
    swapped: list[tuple[str, nn.Module]] = []
    try:
        for name, scheme in schemes.items():
            target = packs.target(name)
            if scheme == "fp32":
                continue
            if isinstance(target, nn.Linear | nn.Embedding):
                module = packs.packed(name, scheme)
                for place in (name, *packs.ties.get(name, ())):
                    swapped.append((place, modules.get_submodule(place)))
                    put(modules, place, module)
            else:
                rounded += [(tensor, tensor.detach().clone()) for _, tensor in owned(target)]
                pack(target, scheme)
        yield
    finally:
        for place, module in swapped:
            put(modules, place, module)
        with torch.no_grad():
            for tensor, value in rounded:
                tensor.copy_(value)


def batches(pipeline: Pipeline, states: tuple[Tensor, Tensor]) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Which windows go through the decoder at once, with their text states [n,S,D] and mask [n,S].

    A model whose text stands before the music takes them one by one, each with no more text than it has.
    """
    text, mask = states
    at_once = 1 if pipeline.decoder.config.text == "prepend" else ROWS
    for first in range(0, len(text), at_once):
        some = slice(first, first + at_once)
        longest = int(mask[some].sum(dim=1).max())
        yield some, text[some, :longest], mask[some, :longest]


@dataclass(frozen=True)
class Harm:
    """What a plan does to a model.

    Attributes:
        kl: KL(float || quantized) of the next token's distribution, nats a token, for each codebook.
        codec: half the energy of what the codec gets wrong over that of its sound: the KL of two normal distributions
            as far apart as that, as wide as the sound is loud. So it can stand beside the other.
        weights: how much each codebook counts in the mean; all alike where None.
        windows: the mean KL over codebooks of each window of tokens, for plans to be compared window by window; none
            where it was not measured.
    """

    kl: tuple[float, ...]
    codec: float
    weights: tuple[float, ...] | None = None
    windows: tuple[float, ...] = field(default=(), compare=False)

    def mean_kl(self) -> float:
        """The mean over codebooks, weighted."""
        weights = (1.0,) * len(self.kl) if self.weights is None else self.weights
        return sum(w * value for w, value in zip(weights, self.kl, strict=True)) / sum(weights)

    @property
    def total(self) -> float:
        """What a search makes as small as it can: the mean KL and the codec's share."""
        return self.mean_kl() + self.codec


class Judge:
    """Compares a model under trial with its float self, whose answers it keeps, on the same tokens.

    Args:
        pipeline: the float model; its modules may be tried afterwards.
        calibration: the tokens and prompts.
        moments: the inputs' second moments by module, from other tokens than these; None rounds without them.
        weights: how much each codebook counts, as `Harm` has them.

    Attributes:
        calibration, weights: as given.
        packs: what packs the modules under trial.

    Raises:
        ValueError: another number of weights than of codebooks, or one that is not above 0.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        calibration: Calibration,
        moments: Mapping[str, Tensor] | None = None,
        weights: Sequence[float] | None = None,
    ):
        self._pipeline, self.calibration = pipeline, calibration
        self.weights = None if weights is None else tuple(float(weight) for weight in weights)
        if self.weights is not None and (len(self.weights) != self._codebooks or not all(map(_counts, self.weights))):
            raise ValueError(f"weights must be {self._codebooks} numbers above 0, one a codebook, got {weights!r}")
        self.packs = Packs(pipeline.modules, moments)
        self._states = self._encode(pipeline)
        self._given: list[list[Tensor]] = [[] for _ in batches(pipeline, self._states)]
        self._wanted = [log_probs(part) for part in self._logits(self._states, pipeline, keep=True)]
        self._sound = self._decode()

    @torch.inference_mode()
    def _encode(self, pipeline: Pipeline) -> tuple[Tensor, Tensor]:
        return pipeline.text_encoder.encode_each(self.calibration.prompts)

    @torch.inference_mode()
    def _logits(
        self, states: tuple[Tensor, Tensor], pipeline: Pipeline, first: int = 0, keep: bool = False
    ) -> Iterator[Tensor]:
        """The logits of every batch of windows; from layer `first` on, with what that was given when it was to `keep`
        that."""
        for given, (some, rows, mask) in zip(self._given, batches(self._pipeline, states), strict=True):
            inputs = self.calibration.inputs[some]
            yield pipeline.decoder.logits(inputs, rows, mask, given if keep or first else None, first)

    def _decode(self) -> Tensor:
        return self._pipeline.codec.decode(self.calibration.codes[:CODEC_WINDOWS].clamp_min(0))

    @torch.inference_mode()
    def divergence_of(self, other: Pipeline) -> Harm:
        """The harm of another pipeline of the same shape, that of its codec left out."""
        return self._harm(self._apart(self._encode(other), other))

    def _apart(self, states: tuple[Tensor, Tensor], pipeline: Pipeline, first: int = 0) -> Tensor:
        """The KL over all positions of a window and codebook, float64 [R,K]."""
        valid = [self.calibration.valid[some] for some, *_ in batches(self._pipeline, states)]
        found = zip(self._wanted, self._logits(states, pipeline, first), valid, strict=True)
        return torch.cat([(kl(wanted, log_probs(had)) * counts).sum(dim=2).double() for wanted, had, counts in found])

    def _harm(self, apart: Tensor, codec: float = 0.0) -> Harm:
        """The means over positions of what `_apart` gives."""
        counts = self.calibration.valid.sum(dim=2)
        means = (apart.sum(dim=0) / counts.sum(dim=0)).clamp_min(0.0).tolist()
        each = (apart / counts.clamp_min(1)).clamp_min(0.0).tolist()
        windows = tuple(Harm(tuple(window), 0.0, self.weights).mean_kl() for window in each)
        return Harm(tuple(means), codec, self.weights, windows)

    def codec_error(self) -> float:
        """`Harm.codec` as the modules stand now."""
        off = (self._decode() - self._sound).double().square().sum()
        return float(off / self._sound.double().square().sum().clamp_min(1e-12) / 2)

    def harm(self, schemes: Mapping[str, str]) -> Harm:
        """What these schemes do; a part of the model that none of them changes is not run."""
        changed = [name for name, scheme in schemes.items() if scheme != "fp32"]
        parts = {name.partition(".")[0] for name in changed}
        with tried(self._pipeline.modules, schemes, self.packs):
            apart = torch.zeros(len(self.calibration.codes), self._codebooks, dtype=torch.float64)
            if parts - {"codec"}:
                apart = self._as_they_stand(changed)
            return self._harm(apart, self.codec_error() if "codec" in parts else 0.0)

    @torch.inference_mode()
    def _as_they_stand(self, changed: Sequence[str]) -> Tensor:
        """`_apart` of the modules as they stand now: the text is read anew where its encoder is among those that have
        changed; else the decoder goes on from the first layer that has."""
        if any(name.startswith("text_encoder.") for name in changed):
            return self._apart(self._encode(self._pipeline), self._pipeline)
        layers = len(self._pipeline.decoder.layers)
        return self._apart(self._states, self._pipeline, min(_layer(name, layers) for name in changed))

    @property
    def _codebooks(self) -> int:
        return self.calibration.codes.shape[1]


def _layer(name: str, layers: int) -> int:
    """The layer of the decoder before which nothing depends on a module; `layers` for what no layer does."""
    part, _, place = name.removeprefix("decoder.").partition(".")
    if not name.startswith("decoder.") or part in ("norm", "heads"):
        return layers
    return int(place.partition(".")[0]) if part == "layers" else 0


def _counts(weight: float) -> bool:
    return 0 < weight < math.inf


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the linear layers and embeddings of a float model are given, by module.

    Attributes:
        moments: of linear layers, float32 [I,I], the sum of x x^T.
        rows: some of the inputs, n at most `SAMPLE_ROWS`: float32 [n,I], or of embeddings int64 [n].
    """

    moments: dict[str, Tensor]
    rows: dict[str, Tensor]


@torch.inference_mode()
def inputs_of(pipeline: Pipeline, calibration: Calibration) -> Inputs:
    """Run a float model over tokens, and look at the inputs of its linear layers and embeddings."""
    moments: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {}

    def watch(name: str):
        def hook(module, inputs):
            if isinstance(module, nn.Linear):
                given = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
                moments[name] = moments.get(name, 0.0) + given.T @ given
            else:
                given = inputs[0].flatten()
            rows.setdefault(name, []).append(given[:: max(1, len(given) // SAMPLE_EACH)][:SAMPLE_EACH].clone())

        return hook

    watched = {n: m for n, m in packable(pipeline.modules).items() if isinstance(m, nn.Linear | nn.Embedding)}
    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in watched.items()]
    try:
        states = pipeline.text_encoder.encode_each(calibration.prompts)
        for some, text, mask in batches(pipeline, states):
            pipeline.decoder.logits(calibration.inputs[some], text, mask)
            pipeline.codec.decode(calibration.codes[some].clamp_min(0))
    finally:
        for hook in hooks:
            hook.remove()
    return Inputs(moments, {name: torch.cat(some)[:SAMPLE_ROWS] for name, some in rows.items()})
