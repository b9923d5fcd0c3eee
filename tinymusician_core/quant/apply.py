"""Apply a plan: in memory, or to a folder that holds the whole model and needs no float twin.

The folder: config.json (sizes, and the sha256 of every other file), plan.json (rules, and the scheme of each module),
model.safetensors (each module's tensors in its scheme's form, by module name) and tokenizer.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import __version__
from ..bundle import WINDOW_S, Parts
from ..files import check_safetensors, combined_hash, sha256_of
from ..folders import check_free, whole_folder
from ..guidance import GUIDANCE, guidance_record, read_guidance
from ..pipeline import Pipeline
from ..records import Cancelled, ModelError
from .plan import Plan, packable, preset, put, tied
from .schemes import from_tensors, pack, to_tensors
from .size import Stored, json_bytes, json_text, safetensors_bytes
from .skeleton import ENCODER_FILE, ENCODERS, build, describe, encoder_state

MODEL_TYPE = "tinymusician-quantized"
FILES = ("model.safetensors", "plan.json", "tokenizer.json")

SMALL_BYTES = 2**17
OnModule = Callable[[str, int, int], None]  # a module's name, how many are done, how many there are


@dataclass(frozen=True, eq=False)
class Recipe:
    """A plan on a certain model: the scheme of each of its modules, and by which inputs' moments to round.

    `moments` has the second moments [I,I] of the inputs of linear layers; where there are none, weights go to the
    nearest number.
    """

    plan: Plan
    schemes: dict[str, str]
    moments: Mapping[str, Tensor]


@dataclass(frozen=True)
class Quantized:
    """What `quantize` wrote: where, how big, beside what, and the scheme of every module.

    The bytes are of what generating reads; the codec's encoder, which only going on from a sound needs, lies beside.
    `search` has what was foreseen and measured of a plan that was searched for.
    """

    folder: Path
    preset: str
    disk_bytes: int
    source_bytes: int
    schemes: dict[str, str]
    search: dict | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many modules each scheme got."""
        names = list(self.schemes.values())
        return {name: names.count(name) for name in dict.fromkeys(names)}


def quantize(
    model: Pipeline | str | os.PathLike,
    plan: Plan | str | None = None,
    out_dir: str | os.PathLike | None = None,
    on_progress: OnModule | None = None,
    should_stop: Callable[[], bool] | None = None,
    **search,
) -> Quantized:
    """Write a quantized model; the model that it is made from stays as it is.

    Args:
        model: a float model from `load`, on the CPU, or what `load` takes.
        plan: a Plan, or a preset's name: "paper", "int8", "fast" or "int4"; None where a plan is searched for.
        out_dir: the folder to make. An earlier quantized model there is replaced; anything else is left alone.
        on_progress: told what is done, how much of it, and of how much.
        should_stop: asked before every module and every measurement.
        search: instead of a plan, `max_mb`, `max_ms` and `max_kl`, any mix of the three, and the other arguments of
            `adaptive.adapt`. The folder then has a report of the search too.

    Raises:
        ValueError: no such model, preset or module, a scheme that cannot take a module, a folder that is in use, or a
            budget that no plan can keep (`search.ImpossibleBudget`: it says what can be).
        ModelError: the model's files are damaged.
        Cancelled: `should_stop` said so; no model is left behind. What a search has measured is kept.
    """
    if out_dir is None or (plan is None) == (not search):
        raise ValueError("quantize needs an out_dir, and either a plan or a budget: max_mb, max_ms or max_kl")
    pipeline, folder = _float_model(model), Path(out_dir)
    if plan is None:
        from .adaptive import adapt

        check_free(folder, MODEL_TYPE)
        adapted = adapt(pipeline, folder.resolve().name, on_progress, should_stop, **search)
        made = write(pipeline, adapted.recipe, folder, on_progress, should_stop, adapted.write_report)
        return replace(made, search=adapted.figures())
    plan = preset(plan, pipeline.modules) if isinstance(plan, str) else plan
    return write(pipeline, recipe_of(pipeline, plan), folder, on_progress, should_stop)


def recipe_of(pipeline: Pipeline, plan: Plan, moments: Mapping[str, Tensor] | None = None) -> Recipe:
    """A plan as it is carried out on a model; ValueError as `Plan.assign`."""
    schemes = {k: v for k, v in plan.assign(pipeline.modules).items() if not f"{k}.".startswith(ENCODERS)}
    return Recipe(plan, schemes, {} if moments is None else moments)


def write(
    pipeline: Pipeline,
    recipe: Recipe,
    folder: Path,
    on_progress: OnModule | None = None,
    should_stop: Callable[[], bool] | None = None,
    more: Callable[[Path], None] | None = None,
) -> Quantized:
    """Write a model by a recipe; `more` may put files of its own into the folder. Raises as `quantize` does."""
    with whole_folder(folder, MODEL_TYPE) as partial:
        tensors = _stored(pipeline.modules, recipe, on_progress, should_stop)
        save_file(tensors, partial / "model.safetensors")
        del tensors
        pipeline.text_encoder.tokenizer.backend_tokenizer.save(str(partial / "tokenizer.json"))
        encoder = encoder_state(pipeline.modules["codec"])
        if encoder:
            save_file(encoder, partial / ENCODER_FILE)
        _write_json(partial / "plan.json", plan_record(pipeline, recipe))
        names = [*FILES, *([ENCODER_FILE] if encoder else [])]
        hashes = {name: sha256_of(partial / name) for name in names}
        _write_json(partial / "config.json", config_record(pipeline, folder.resolve().name, hashes))
        size = sum((partial / name).stat().st_size for name in ("config.json", *FILES))
        if more is not None:
            more(partial)
    return Quantized(folder, recipe.plan.name, size, pipeline.disk_bytes, recipe.schemes)


def plan_record(pipeline: Pipeline, recipe: Recipe) -> dict:
    """plan.json: what the model was made from, by which versions, and the scheme of every module."""
    used = set(recipe.schemes.values())
    versions = {"tinymusician": __version__, "torch": torch.__version__}
    if used & {"bnb-int8", "nf4", "fp4"}:
        versions["bitsandbytes"] = metadata.version("bitsandbytes")
    record = {
        "name": recipe.plan.name,
        "base": {"name": pipeline.name, "hash": pipeline.hash},
        "versions": versions,
        "rounding": "gptq" if recipe.moments else "nearest",
    }
    rules = dict(recipe.plan.rules)
    return record | ({} if rules == recipe.schemes else {"rules": rules}) | {"modules": recipe.schemes}


def config_record(pipeline: Pipeline, name: str, hashes: Mapping[str, str]) -> dict:
    """config.json: the sizes of everything, and the sha256 of every other file."""
    return {
        "model_type": MODEL_TYPE,
        "format": 1,
        "name": name,
        "source": {"name": pipeline.name, "hash": pipeline.hash},
        "torch": torch.__version__,
        "window_s": pipeline.window_s,
        **guidance_record(pipeline.guidance),
        **describe(pipeline.modules),
        "files": dict(hashes),
    }


def disk_bytes(pipeline: Pipeline, recipe: Recipe, tensors: Iterable[Stored], name: str) -> int:
    """What `Quantized.disk_bytes` will be of a folder of this name, with these tensors, before it is written."""
    tokenizer = len(pipeline.text_encoder.tokenizer.backend_tokenizer.to_str(pretty=True).encode())
    names = [*FILES, *([ENCODER_FILE] if encoder_state(pipeline.modules["codec"]) else [])]
    config = json_bytes(config_record(pipeline, name, dict.fromkeys(names, "0" * 64)))
    return safetensors_bytes(tensors) + tokenizer + config + json_bytes(plan_record(pipeline, recipe))


def apply_plan(modules: nn.Module, plan: Plan) -> dict[str, str]:
    """Put a plan's packed modules in the place of the float ones, in memory; the scheme of every module comes back.

    Raises:
        ValueError: as `Plan.assign`.
    """
    schemes = plan.assign(modules)
    targets, ties = packable(modules), tied(modules)
    for name, scheme in schemes.items():
        module = pack(targets[name], scheme)
        for place in (name, *ties.get(name, ())):
            put(modules, place, module)
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
    ties = tied(modules)
    with safe_open(weights, framework="pt") as file:
        stored = _by_module(file.keys(), schemes)
    for name, scheme in schemes.items():
        # Opened anew each time, small tensors copied: a scale that is kept would keep the pages around it mapped.
        with safe_open(weights, framework="pt") as file:
            found = {key: file.get_tensor(f"{name}.{key}") for key in stored[name]}
        tensors = {key: tensor.clone() if tensor.nbytes <= SMALL_BYTES else tensor for key, tensor in found.items()}
        del found
        module = from_tensors(targets[name], scheme, tensors)
        del tensors
        for place in (name, *ties.get(name, ())):
            put(modules, place, module)
    hashes = {"config.json": sha256_of(folder / "config.json"), **config["files"]}
    files = tuple(folder / name for name in ("config.json", *FILES))
    parts = (modules["decoder"], modules["text_encoder"], modules["codec"])
    window_s, guidance = config.get("window_s", WINDOW_S), read_guidance(config.get(GUIDANCE), config["name"])
    return Parts(config["name"], *parts, files, combined_hash(hashes), window_s, guidance)


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
    modules: nn.Module, recipe: Recipe, on_progress: OnModule | None, should_stop: Callable[[], bool] | None
) -> dict[str, Tensor]:
    """Every module's tensors in its scheme's form, by "module.tensor"."""
    targets, tensors = packable(modules), {}
    for done, (name, scheme) in enumerate(recipe.schemes.items()):
        if should_stop is not None and should_stop():
            raise Cancelled(f"stopped before the module {name}")
        packed = to_tensors(targets[name], scheme, recipe.moments.get(name))
        tensors |= {f"{name}.{key}": tensor for key, tensor in packed.items()}
        if on_progress is not None:
            on_progress(name, done + 1, len(recipe.schemes))
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


def _write_json(path: Path, record: dict) -> None:
    path.write_text(json_text(record), encoding="utf-8")


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise ModelError(f"{path} is missing")
    return json.loads(path.read_text(encoding="utf-8"))
