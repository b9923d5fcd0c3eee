"""What each scheme does to the model when one module alone has it: the table that a plan is searched in."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..pipeline import Pipeline
from ..records import Cancelled
from . import bnb, embeddings, gptq, int4, linears, size, trial
from . import schemes as schemes_module
from .cachefile import Measured
from .clock import Clock
from .plan import packable
from .schemes import SCHEMES, to_tensors
from .size import Stored
from .skeleton import ENCODERS
from .trial import Harm, Judge, tried

# What a large model's layers are tried with first: what does most harm is measured best.
FIRST = ("int4", "int4-row", "nf4", "fp4", "int8", "int8-weight", "bnb-int8", "bf16", "fp16")
# Whose source decides how a weight is rounded, how the product runs, and how its harm is counted.
ARITHMETIC = (schemes_module, linears, embeddings, int4, gptq, bnb, size, trial)
TEXT = "text_encoder."
OnOption = Callable[[str, int, int], None]  # what is measured, how many are done, how many there are


@dataclass(frozen=True)
class Group:
    """Modules that a plan gives one scheme: a linear layer or an embedding, or all else of a part together.

    Attributes:
        name: the module's name, or the part's and "rest".
        modules: their names.
    """

    name: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Option:
    """A scheme that a group can have, what it does to the model, and the tensors that it is stored as."""

    group: Group
    scheme: str
    harm: Harm
    tensors: tuple[Stored, ...]

    @property
    def schemes(self) -> dict[str, str]:
        """The scheme of each of the group's modules."""
        return dict.fromkeys(self.group.modules, self.scheme)


def groups(modules: nn.Module) -> list[Group]:
    """The groups of a pipeline's modules, without the codec's encoder, which no plan reaches."""
    alone, rest = [], {}
    for name, module in packable(modules).items():
        if f"{name}.".startswith(ENCODERS):
            continue
        if isinstance(module, nn.Linear | nn.Embedding):
            alone.append(Group(name, (name,)))
        else:
            rest.setdefault(name.partition(".")[0], []).append(name)
    return [*alone, *(Group(f"{part}.rest", tuple(names)) for part, names in rest.items())]


def sensitivities(
    pipeline: Pipeline,
    judge: Judge,
    key: str,
    schemes: Sequence[str],
    on_progress: OnOption | None = None,
    should_stop: Callable[[], bool] | None = None,
    short: ShortWay | None = None,
    clock: Clock | None = None,
) -> list[Option]:
    """Measure every scheme on every group alone; what an earlier run has measured is read from the cache.

    Args:
        pipeline: the float model.
        judge: compares it with itself.
        key: tells these measurements from those on other tokens.
        schemes: those that may be used; what cannot take a group, or not hold its weights, is left out of its options.
        on_progress, should_stop: told of, and asked before, every measurement.
        short: a large model's way; None measures all through the whole model.
        clock: told how many were measured, and how many an earlier run had measured.

    Raises:
        Cancelled: `should_stop` said so; what was measured is kept.
    """
    targets, found = packable(pipeline.modules), groups(pipeline.modules)
    way = "" if short is None else "-short"
    cache = Measured(f"sensitivity-{pipeline.hash}-{key}-{arithmetic_hash()}{way}")
    options, pairs = [], [(group, scheme) for group in found for scheme in _first(schemes)]
    for done, (group, scheme) in enumerate(pairs):
        if should_stop is not None and should_stop():
            raise Cancelled(f"stopped after {done} of {len(pairs)} measurements; the next run goes on from there")
        if on_progress is not None:
            on_progress(f"{group.name} in {scheme}", done, len(pairs))
        if all(SCHEMES[scheme].takes(targets[name]) for name in group.modules):
            option = _option(group, scheme, targets, cache, _way(judge, group, options, short), judge.weights)
            options += [] if option is None else [option]
    if clock is not None:
        clock.note("sensitivity", *cache.counts)
    return options


def arithmetic_hash() -> str:
    """12 hexadecimal digits over what, beside model and tokens, decides what a scheme does to a model.

    That is the source of the rounding and of the judging, the version of torch and the kernels that it picks here.
    """
    digest = hashlib.sha256(f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}".encode())
    for module in ARITHMETIC:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:12]


def _first(schemes: Sequence[str]) -> list[str]:
    """The schemes, those of `FIRST` before the others."""
    return sorted(schemes, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def _way(judge: Judge, group: Group, options: Sequence[Option], short: ShortWay | None) -> Callable[[str], Harm]:
    """How to measure a scheme on a group."""
    if short is None:
        return lambda scheme: judge.harm(dict.fromkeys(group.modules, scheme))
    known = next((option for option in options if option.group == group), None)
    return lambda scheme: short.harm(group, scheme, known)


class ShortWay:
    """A large model's harm, for which not all of it is run under every scheme.

    Harm grows with the square of what a layer's product gets wrong. So one scheme a layer, the one of `FIRST` that
    comes first, is measured through the whole model; the others' harm is that of the first, times the ratio of the
    squares of what they get wrong on some of the layer's inputs. All that the text encoder does goes through its
    states: all its linear layers together are measured through the whole model, and what one scheme does to one of
    them is that, times the ratio of the squares of what the states get wrong.

    Args:
        pipeline: the float model.
        judge: compares it with itself.
        rows: inputs [n,I] of the linear layers, and [n] of embeddings.
        prompts: what the text encoder is tried on.
        schemes: those that may be used.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        judge: Judge,
        rows: Mapping[str, Tensor],
        prompts: Sequence[str],
        schemes: Sequence[str],
    ):
        self._pipeline, self._judge, self._rows, self._prompts = pipeline, judge, rows, prompts
        self._schemes, self._states = schemes, self._encode()

    def harm(self, group: Group, scheme: str, known: Option | None) -> Harm:
        """What a scheme does to a group, of which one option may be known."""
        if group.name in self._rows and known is not None:
            given = self._rows[group.name]
            errors = (product_error(self._judge, group.name, name, given) for name in (scheme, known.scheme))
            return self._scaled(known.harm, *errors)
        if group.name.startswith(TEXT) and self._whole_text[1]:
            whole, error = self._whole_text
            return self._scaled(whole, self._text_error(dict.fromkeys(group.modules, scheme)), error)
        return self._judge.harm(dict.fromkeys(group.modules, scheme))

    def _scaled(self, harm: Harm, error: float, base: float) -> Harm:
        share = error / base if base else 0.0
        return Harm(tuple(share * kl for kl in harm.kl), share * harm.codec, self._judge.weights)

    @cached_property
    def _whole_text(self) -> tuple[Harm, float]:
        """The harm of all the text encoder's linear layers, each in the first scheme of `FIRST` that it can have, and
        what its states get wrong then."""
        all_in = {}
        for name, module in packable(self._pipeline.modules).items():
            if name.startswith(TEXT) and isinstance(module, nn.Linear):
                all_in[name] = next(s for s in _first([*self._schemes, "fp32"]) if SCHEMES[s].takes(module))
        return self._judge.harm(all_in), self._text_error(all_in)

    def _text_error(self, schemes: Mapping[str, str]) -> float:
        """The mean square of what the text's states get wrong."""
        with tried(self._pipeline.modules, schemes, self._judge.packs):
            return float((self._encode() - self._states).double().square().mean())

    @torch.inference_mode()
    def _encode(self) -> Tensor:
        return self._pipeline.text_encoder.encode_each(self._prompts)[0].clone()


@torch.inference_mode()
def product_error(judge: Judge, name: str, scheme: str, rows: Tensor) -> float:
    """The mean square of what a layer's product, or an embedding, gets wrong under a scheme, on inputs [n,I] or [n]."""
    if scheme == "fp32":
        return 0.0
    packs = judge.packs
    return float((packs.packed(name, scheme)(rows) - packs.target(name)(rows)).double().square().mean())


def _option(
    group: Group,
    scheme: str,
    targets: Mapping[str, nn.Module],
    cache: Measured,
    measure: Callable[[str], Harm],
    weights: tuple[float, ...] | None,
) -> Option | None:
    """A scheme's harm and tensors; None where the weights do not fit into it."""
    place = f"{group.name} {scheme}"
    record = cache.get(place)
    if record is None:
        try:
            tensors = stored(group, scheme, targets)
        except ValueError as error:
            record = {"unfit": str(error)}
        else:
            harm = measure(scheme)
            kept = [[tensor.name, tensor.kind, list(tensor.shape)] for tensor in tensors]
            record = {"kl": list(harm.kl), "codec": harm.codec, "tensors": kept}
        cache.put(place, record)
    if "unfit" in record:
        return None
    tensors = tuple(Stored(name, kind, tuple(shape)) for name, kind, shape in record["tensors"])
    return Option(group, scheme, Harm(tuple(record["kl"]), record["codec"], weights), tensors)


def stored(group: Group, scheme: str, targets: Mapping[str, nn.Module]) -> tuple[Stored, ...]:
    """The tensors of a group under a scheme; ValueError where the weights do not fit into it."""
    return tuple(
        Stored.of(f"{name}.{key}", tensor)
        for name in group.modules
        for key, tensor in to_tensors(targets[name], scheme).items()
    )
