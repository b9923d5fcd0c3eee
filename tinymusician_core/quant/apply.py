"""Apply a plan: in memory, or to a folder that holds the whole model and needs no float twin.

The folder: config.json (sizes, and the sha256 of every other file), plan.json (rules, and the scheme of each module),
model.safetensors (each module's tensors in its scheme's form, by module name) and tokenizer.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..bundle import WINDOW_S, Parts
from ..files import check_safetensors, combined_hash, sha256_of
from ..folders import whole_folder
from ..pipeline import Pipeline
from ..records import Cancelled, ModelError
from .plan import Plan, packable, preset
from .schemes import from_tensors, pack, to_tensors
from .skeleton import ENCODER_FILE, ENCODERS, build, describe, encoder_state

MODEL_TYPE = "tinymusician-quantized"
FILES = ("model.safetensors", "plan.json", "tokenizer.json")

OnModule = Callable[[str, int, int], None]  # a module's name, how many are done, how many there are


@dataclass(frozen=True)
class Quantized:
    """What `quantize` wrote: where, how big, beside what, and the scheme of every module.

    The bytes are of what generating reads; the codec's encoder, which only going on from a sound needs, lies beside.
    """

    folder: Path
    preset: str
    disk_bytes: int
    source_bytes: int
    schemes: dict[str, str]

    @property
    def counts(self) -> dict[str, int]:
        """How many modules each scheme got."""
        names = list(self.schemes.values())
        return {name: names.count(name) for name in dict.fromkeys(names)}


def quantize(
    model: Pipeline | str | os.PathLike,
    plan: Plan | str,
    out_dir: str | os.PathLike,
    on_progress: OnModule | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Quantized:
    """Write a quantized model; the model that it is made from stays as it is.

    Args:
        model: a float model from `load`, on the CPU, or what `load` takes.
        plan: a Plan, or a preset's name: "paper", "int8", "fast" or "int4".
        out_dir: the folder to make. An earlier quantized model there is replaced; anything else is left alone.
        on_progress: told of every module.
        should_stop: asked before every module.

    Raises:
        ValueError: no such model, preset or module, a scheme that cannot take a module, or a folder that is in use.
        ModelError: the model's files are damaged.
        Cancelled: `should_stop` said so; nothing is left behind.
    """
    pipeline = _float_model(model)
    plan = preset(plan, pipeline.modules) if isinstance(plan, str) else plan
    schemes = {k: v for k, v in plan.assign(pipeline.modules).items() if not f"{k}.".startswith(ENCODERS)}
    folder = Path(out_dir)
    with whole_folder(folder, MODEL_TYPE) as partial:
        tensors = _stored(pipeline.modules, schemes, on_progress, should_stop)
        save_file(tensors, partial / "model.safetensors")
        del tensors
        pipeline.text_encoder.tokenizer.backend_tokenizer.save(str(partial / "tokenizer.json"))
        encoder = encoder_state(pipeline.modules["codec"])
        if encoder:
            save_file(encoder, partial / ENCODER_FILE)
        _write_json(partial / "plan.json", {"name": plan.name, "rules": dict(plan.rules), "modules": schemes})
        config = {
            "model_type": MODEL_TYPE,
            "format": 1,
            "name": folder.resolve().name,
            "source": {"name": pipeline.name, "hash": pipeline.hash},
            "torch": torch.__version__,
            "window_s": pipeline.window_s,
            **describe(pipeline.modules),
            "files": {name: sha256_of(partial / name) for name in (*FILES, *([ENCODER_FILE] if encoder else []))},
        }
        _write_json(partial / "config.json", config)
        size = sum((partial / name).stat().st_size for name in ("config.json", *FILES))
    return Quantized(folder, plan.name, size, pipeline.disk_bytes, schemes)


def apply_plan(modules: nn.Module, plan: Plan) -> dict[str, str]:
    """Put a plan's packed modules in the place of the float ones, in memory; the scheme of every module comes back.

    Raises:
        ValueError: as `Plan.assign`.
    """
    schemes = plan.assign(modules)
    targets, tied = packable(modules), _tied(modules)
    for name, scheme in schemes.items():
        module = pack(targets[name], scheme)
        for place in (name, *tied.get(name, ())):
            _put(modules, place, module)
    return schemes


def load_quantized(folder: str | os.PathLike) -> Parts:
    """Read a folder that `quantize` wrote, onto the CPU; `bundle.load_parts` has compared the hashes already.

    No float weights are made: each module is built from its stored tensors.

    Raises:
        ModelError: files are missing or damaged, or do not fit together.
    """
    folder = Path(folder)
    config, plan = _read_json(folder / "config.json"), _read_json(folder / "plan.json")
    weights = folder / "model.safetensors"
    check_safetensors(weights)
    modules = build(config, folder)
    targets = packable(modules)
    schemes = plan["modules"]
    if set(schemes) != set(targets):
        odd = sorted(set(schemes) ^ set(targets))[0]
        raise ModelError(f"{folder / 'plan.json'} and config.json do not fit together: {odd} is in one alone")
    tied = _tied(modules)
    with safe_open(weights, framework="pt") as file:
        stored = _by_module(file.keys(), schemes)
        for name, scheme in schemes.items():
            tensors = {key: file.get_tensor(f"{name}.{key}") for key in stored[name]}
            module = from_tensors(targets[name], scheme, tensors)
            for place in (name, *tied.get(name, ())):
                _put(modules, place, module)
    hashes = {"config.json": sha256_of(folder / "config.json"), **config["files"]}
    files = tuple(folder / name for name in ("config.json", *FILES))
    parts = (modules["decoder"], modules["text_encoder"], modules["codec"])
    return Parts(config["name"], *parts, files, combined_hash(hashes), config.get("window_s", WINDOW_S))


def _float_model(model: Pipeline | str | os.PathLike) -> Pipeline:
    if not isinstance(model, Pipeline):
        from ..variants import load

        model = load(model)
    if model.device.type != "cpu":
        raise ValueError(f"quantize reads a model that is on the cpu, got one on {model.device}")
    if any(hasattr(module, "stored") for module in model.modules.modules()):
        raise ValueError(f"the model {model.name} is quantized already; quantize reads a float model")
    return model


def _stored(
    modules: nn.Module, schemes: dict[str, str], on_progress: OnModule | None, should_stop: Callable[[], bool] | None
) -> dict[str, Tensor]:
    """Every module's tensors in its scheme's form, by "module.tensor"."""
    targets, tensors = packable(modules), {}
    for done, (name, scheme) in enumerate(schemes.items()):
        if should_stop is not None and should_stop():
            raise Cancelled(f"stopped before the module {name}")
        tensors |= {f"{name}.{key}": tensor for key, tensor in to_tensors(targets[name], scheme).items()}
        if on_progress is not None:
            on_progress(name, done + 1, len(schemes))
    return tensors


def _by_module(keys: list[str], schemes: dict[str, str]) -> dict[str, list[str]]:
    """Tensor names by module; ModelError for a tensor of no module."""
    stored: dict[str, list[str]] = {name: [] for name in schemes}
    for key in keys:
        module, _, name = key.rpartition(".")
        if module not in stored:
            raise ModelError(f"the stored weights hold {key}, which the plan does not know")
        stored[module].append(name)
    return stored


def _tied(modules: nn.Module) -> dict[str, list[str]]:
    """For each module whose tensors others share (tied embeddings): the names of those others."""
    first = {
        id(tensor): name for name, module in packable(modules).items() for tensor in module.parameters(recurse=False)
    }
    ties: dict[str, list[str]] = {}
    for name, module in modules.named_modules():
        for tensor in module.parameters(recurse=False):
            owner = first[id(tensor)]
            if owner != name and name not in ties.setdefault(owner, []):
                ties[owner].append(name)
    return ties


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def _write_json(path: Path, record: dict) -> None:
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise ModelError(f"{path} is missing")
    return json.loads(path.read_text(encoding="utf-8"))
