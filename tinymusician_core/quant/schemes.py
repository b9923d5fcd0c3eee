"""The schemes that a plan can give to a module, by name.

A scheme says what becomes of a linear layer, of an embedding, and of any other module that owns tensors (convolutions,
norms, scales): those are stored in one of the float types and run in float32. What a scheme has no form for, it does
not take. Bytes are those of the tensors that go to disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from .bnb import BnbInt8Linear, FourBitLinear, Fp4Linear, Nf4Linear
from .embeddings import Bf16Embedding, Fp16Embedding, Int4Embedding, Int8Embedding
from .int4 import Int4Linear, Int4RowLinear
from .linears import Bf16Linear, Fp16Linear, Int8Linear, WeightInt8Linear, expect, half_of


@dataclass(frozen=True)
class Scheme:
    """One way to keep a module.

    Attributes:
        linear, embedding: the packed module that takes the place of an nn.Linear or nn.Embedding; None for none.
        plain: the type in which tensors are stored when the module itself stays; None where it cannot stay.
    """

    name: str
    about: str
    linear: type[nn.Module] | None = None
    embedding: type[nn.Module] | None = None
    plain: torch.dtype | None = None

    def form(self, module: nn.Module) -> type[nn.Module] | None:
        """The packed module for this one, or None."""
        if isinstance(module, nn.Linear):
            return self.linear
        if isinstance(module, nn.Embedding):
            return self.embedding
        return None

    def takes(self, module: nn.Module) -> bool:
        """Whether this scheme can keep the module."""
        if isinstance(module, nn.Linear | nn.Embedding) and self.plain != torch.float32:
            return self.form(module) is not None
        return self.plain is not None


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp32", "float32, as it is", plain=torch.float32),
        Scheme("bf16", "bfloat16 weights and inputs", Bf16Linear, Bf16Embedding, torch.bfloat16),
        Scheme("fp16", "float16 weights, float32 sums", Fp16Linear, Fp16Embedding, torch.float16),
        Scheme("int8", "torch.ao dynamic int8, a scale a row", Int8Linear, Int8Embedding),
        Scheme("int8-weight", "int8 weights, bfloat16 inputs", WeightInt8Linear, Int8Embedding),
        Scheme("int4", "torch's 4 bits, 64 weights a scale, bfloat16 inputs", Int4Linear, Int4Embedding),
        Scheme("int4-row", "4 bits on disk, a scale a row; int8 in memory", Int4RowLinear),
        Scheme("bnb-int8", "bitsandbytes LLM.int8()", BnbInt8Linear),
        Scheme("nf4", "bitsandbytes NF4, 64 weights a scale", Nf4Linear),
        Scheme("fp4", "bitsandbytes FP4, 64 weights a scale", Fp4Linear),
    )
}


def unavailable(device: str | torch.device = "cpu") -> dict[str, str]:
    """The schemes that cannot run on a device of this machine, each with the reason; the others can."""
    kind = torch.device(device).type
    reasons = {}
    for name, scheme in SCHEMES.items():
        form = scheme.linear
        if form is not None and issubclass(form, BnbInt8Linear | FourBitLinear) and find_spec("bitsandbytes") is None:
            reasons[name] = "bitsandbytes is not installed"
        elif kind != "cpu" and form is not None and getattr(form, "cpu_only", False):
            reasons[name] = f"its kernel runs on the cpu alone, not on {kind}"
        elif form is Int8Linear and torch.backends.quantized.engine == "none":
            reasons[name] = "this build of torch has no quantized kernels"
    return reasons


def scheme_named(name: str) -> Scheme:
    """ValueError with the allowed names where there is no such scheme."""
    if name not in SCHEMES:
        raise ValueError(f"no such scheme: {name!r}; allowed: {', '.join(SCHEMES)}")
    return SCHEMES[name]


# EnCodec's k-means statistics: training alone reads them, and their counts do not fit into half precision.
TRAINING_ONLY = {"EncodecEuclideanCodebook": ("inited", "cluster_size", "embed_avg")}


def owned(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and persistent buffers that a module itself owns and runs on, without those of its children."""
    unused = {*module._non_persistent_buffers_set, *TRAINING_ONLY.get(type(module).__name__, ())}
    yield from ((name, tensor) for name, tensor in module._parameters.items() if tensor is not None)
    for name, tensor in module._buffers.items():
        if tensor is not None and name not in unused:
            yield name, tensor


def pack(module: nn.Module, scheme: str, moment: Tensor | None = None) -> nn.Module:
    """The module in a scheme's form: a packed module, or the same one with its tensors rounded to the stored type.

    `moment` [I,I], the second moments of a linear layer's inputs, is for schemes that round by them; others do not
    look at it.

    Raises:
        ValueError: the scheme cannot take the module, or the weights do not fit into it.
    """
    form = _form(module, scheme)
    if form is not None:
        return _packed(form, module, moment)
    with torch.no_grad():
        for name, tensor in to_tensors(module, scheme).items():
            getattr(module, name).copy_(tensor)
    return module


def to_tensors(module: nn.Module, scheme: str, moment: Tensor | None = None) -> dict[str, Tensor]:
    """What a float module is stored as under a scheme, contiguous and on the CPU; the module stays as it is.

    `moment` is as for `pack`.

    Raises:
        ValueError: as `pack`.
    """
    form = _form(module, scheme)
    if form is not None:
        tensors = _packed(form, module, moment).stored()
    else:
        plain = SCHEMES[scheme].plain
        tensors = {name: half_of(t, plain) if t.is_floating_point() else t.detach() for name, t in owned(module)}
    return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}


def from_tensors(like: nn.Module, scheme: str, tensors: dict[str, Tensor]) -> nn.Module:
    """A module from what `to_tensors` gave. `like` is a module of the same shape, whose own weights may be on "meta".

    Raises:
        ValueError: the scheme cannot take the module.
        ModelError: a tensor is missing, or has another shape or type.
    """
    form = _form(like, scheme)
    if form is not None:
        return form.restore(like, tensors)
    plain = SCHEMES[scheme].plain
    for name, old in list(owned(like)):
        new = expect(tensors, name, tuple(old.shape), plain if old.is_floating_point() else old.dtype)
        # A copy: a file's tensors may lie at odd addresses, where products can round differently.
        new = new.to(torch.float32, copy=True) if new.is_floating_point() else new
        if name in like._parameters:
            like._parameters[name] = nn.Parameter(new, requires_grad=False)
        else:
            like._buffers[name] = new
    return like


def stored_bytes(module: nn.Module, scheme: str) -> int:
    """Bytes on disk of a module under a scheme, without the file's header."""
    return sum(tensor.nbytes for tensor in to_tensors(module, scheme).values())


def _packed(form: type[nn.Module], module: nn.Module, moment: Tensor | None) -> nn.Module:
    return form.pack(module, moment) if getattr(form, "reads_moments", False) else form.pack(module)


def _form(module: nn.Module, scheme: str) -> type[nn.Module] | None:
    chosen = scheme_named(scheme)
    if not chosen.takes(module):
        can = ", ".join(name for name, other in SCHEMES.items() if other.takes(module))
        raise ValueError(f"{scheme} cannot take a {type(module).__name__}; {can} can")
    return chosen.form(module)
