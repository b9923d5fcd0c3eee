"""A plan: which module gets which scheme. Plain names and globs, in order, the last that matches wins.

    {"decoder.*": "fp16", "decoder.layers.*.fc1": "int8", "decoder.heads": "int8"}

A glob reaches over dots, and gives its scheme to those of the modules under it that the scheme can take; a plain name
must be taken. A module that no rule reaches stays float32. On disk a plan is that JSON object; what a quantized model
carries also lists the scheme that each module got, and replays exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from .linears import WeightInt8Linear
from .schemes import SCHEMES, owned, scheme_named


@dataclass(frozen=True)
class Plan:
    """Rules in order, each a module name or glob and a scheme; ValueError for none, or for an unknown scheme."""

    rules: tuple[tuple[str, str], ...]
    name: str = "custom"

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("a plan needs at least one rule, such as {'decoder.*': 'int8'}")
        for pattern, scheme in self.rules:
            if not isinstance(pattern, str) or not pattern:
                raise ValueError(f"a plan's rule names a module or a glob, got {pattern!r}")
            if not isinstance(scheme, str):
                raise ValueError(f"the rule {pattern!r} needs a scheme's name, got {scheme!r}")
            scheme_named(scheme)

    @classmethod
    def of(cls, rules: Mapping[str, str], name: str = "custom") -> Plan:
        """A plan from {"name or glob": "scheme"}."""
        if not isinstance(rules, Mapping):
            raise ValueError(f"a plan is an object of module names and schemes, got {type(rules).__name__}")
        return cls(tuple(rules.items()), name)

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """A plan from a JSON file: plain rules, or the plan.json of a quantized model, which is replayed.

        Raises:
            ValueError: no such file, no JSON, or no plan in it.
        """
        path = Path(path)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"the plan {path} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise ValueError(f"the plan {path} is no JSON: {error}") from error
        if isinstance(found, Mapping) and isinstance(found.get("modules"), Mapping):
            return cls.of(found["modules"], str(found.get("name", path.stem)))
        return cls.of(found, path.stem)

    def assign(self, modules: nn.Module) -> dict[str, str]:
        """The scheme of every module that owns tensors, by name, in the order of `modules`.

        Raises:
            ValueError: a rule that reaches nothing, or a scheme that cannot take what it reaches.
        """
        targets = dict(packable(modules))
        chosen = dict.fromkeys(targets, "fp32")
        for pattern, scheme in self.rules:
            reached = [name for name in targets if name == pattern or fnmatchcase(name, pattern)]
            if not reached:
                raise ValueError(f"the plan's {pattern!r} is no module of this model; {_near(pattern, targets)}")
            taken = [name for name in reached if SCHEMES[scheme].takes(targets[name])]
            if not taken or (pattern in targets and pattern not in taken):
                kind = type(targets[reached[0]]).__name__
                able = ", ".join(name for name, other in SCHEMES.items() if other.takes(targets[reached[0]]))
                raise ValueError(f"the plan gives {pattern!r} to {scheme}, which cannot take a {kind}; {able} can")
            chosen.update(dict.fromkeys(taken, scheme))
        return chosen


def packable(modules: nn.Module) -> dict[str, nn.Module]:
    """Every module that owns tensors, by name; of modules that share theirs (tied embeddings), only the first."""
    seen: set[int] = set()
    found = {}
    for name, module in modules.named_modules():
        mine = {id(tensor) for _, tensor in owned(module)}
        if mine - seen:
            found[name] = module
        seen |= mine
    return found


def tied(modules: nn.Module) -> dict[str, list[str]]:
    """For each module whose tensors others share (tied embeddings): the names of those others."""
    first = {
        id(tensor): name for name, module in packable(modules).items() for tensor in module.parameters(recurse=False)
    }
    ties: dict[str, list[str]] = {}
    for name, module in modules.named_modules(remove_duplicate=False):
        for tensor in module.parameters(recurse=False):
            owner = first[id(tensor)]
            if owner != name and name not in ties.setdefault(owner, []):
                ties[owner].append(name)
    return ties


def put(root: nn.Module, name: str, module: nn.Module) -> None:
    """Let a module stand at a name below `root`."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def _near(pattern: str, targets: Mapping[str, nn.Module]) -> str:
    head = pattern.split(".")[0]
    near = [name for name in targets if name.startswith(f"{head}.")] or list(targets)
    return f"there are {', '.join(near[:3])} and {len(targets) - len(near[:3])} more"


def _paper(_: nn.Module) -> Plan:
    """The paper's map (arXiv 2509.00914): T5 int8, decoder fp16, codec float32."""
    return Plan.of({"text_encoder.*": "int8", "decoder.*": "fp16", "codec.*": "fp32"}, "paper")


def _int8(modules: nn.Module) -> Plan:
    """Every linear layer and embedding int8 (EnCodec has none), everything else stored in fp16."""
    able = [name for name, module in packable(modules).items() if SCHEMES["int8"].takes(module)]
    parts = dict.fromkeys(name.split(".")[0] for name in able)
    return Plan.of({"*": "fp16", **{f"{part}.*": "int8" for part in parts}}, "int8")


# Up to here the engine's own product for int8-weight is the faster one for two rows: it wakes no other thread.
FEW_WEIGHTS = 2**20


def _few(modules: nn.Module) -> dict[str, str]:
    """int8-weight for the small matrices of the decoder's steps, which multiply two rows (guidance)."""
    rules = {}
    for name, module in packable(modules).items():
        step = name.startswith("decoder.") and not name.endswith(".cross_kv") and isinstance(module, nn.Linear)
        if step and module.weight.numel() <= FEW_WEIGHTS and module.in_features % WeightInt8Linear.MULTIPLE == 0:
            rules[name] = "int8-weight"
    return rules


def _fast(modules: nn.Module) -> Plan:
    """All in int8, by the kernel that is faster for the shape: int8-weight for few weights and rows, else int8.

    The text encoder, the codec and the text's keys and values see many rows, large matrices read many weights: int8.
    What is neither a linear layer nor an embedding is stored in fp16.
    """
    return Plan.of({**dict(_int8(modules).rules), **_few(modules)}, "fast")


def _int4(modules: nn.Module) -> Plan:
    """As "fast", but the decoder's large matrices in int4."""
    return Plan.of({**dict(_int8(modules).rules), "decoder.layers.*": "int4", **_few(modules)}, "int4")


PRESETS: dict[str, Callable[[nn.Module], Plan]] = {"paper": _paper, "int8": _int8, "fast": _fast, "int4": _int4}


def preset(name: str, modules: nn.Module) -> Plan:
    """The preset of a name for a pipeline's modules; ValueError with the allowed names otherwise."""
    if name not in PRESETS:
        raise ValueError(f"no such preset: {name!r}; allowed: {', '.join(PRESETS)}")
    return PRESETS[name](modules)
