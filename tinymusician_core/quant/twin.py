"""A quantized twin of a float model in memory, built from what would be stored, beside the model and not in its place.

Its decoder and text encoder are quantized; the codec, which no logit depends on, is the float model's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ..bundle import Parts
from ..pipeline import Pipeline
from .plan import packable, put, tied
from .schemes import from_tensors

Tensors = Mapping[str, Mapping[str, Tensor]]  # by module, and by the name that the scheme's form gives them
Build = Callable[[str, nn.Module, str, dict[str, Tensor]], nn.Module]


def built(name: str, like: nn.Module, scheme: str, tensors: dict[str, Tensor]) -> nn.Module:
    """A module as a load builds it."""
    return from_tensors(like, scheme, tensors)


def twin(pipeline: Pipeline, schemes: Mapping[str, str], tensors: Tensors, build: Build = built) -> Pipeline:
    """A pipeline that gives the logits of the model that these tensors would load as; the float one stays as it is.

    Args:
        pipeline: the float model.
        schemes: the scheme of every module.
        tensors: what each module is stored as.
        build: makes a module of its name, its float self in the twin, its scheme and its tensors.
    """
    modules = nn.ModuleDict({name: shared_copy(pipeline.modules[name]) for name in ("decoder", "text_encoder")})
    targets, ties = packable(modules), tied(modules)
    for name, like in targets.items():
        module = build(name, like, schemes[name], dict(tensors[name]))
        for place in (name, *ties.get(name, ())):
            put(modules, place, module)
    parts = (modules["decoder"], modules["text_encoder"], pipeline.codec)
    others = (pipeline.files, pipeline.hash, pipeline.window_s, pipeline.guidance, pipeline.made_for)
    return Pipeline(Parts(pipeline.name, *parts, *others))


def shared_copy(module: nn.Module, known: dict[int, nn.Module] | None = None) -> nn.Module:
    """Another tree of modules around the same tensors; modules that stand in two places stay one."""
    known = {} if known is None else known
    if id(module) not in known:
        other = known[id(module)] = copy.copy(module)
        other._parameters, other._buffers = dict(module._parameters), dict(module._buffers)
        other._modules = {
            name: None if child is None else shared_copy(child, known) for name, child in module._modules.items()
        }
    return known[id(module)]
