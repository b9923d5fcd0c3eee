"""Apply a plan: in memory, or to a folder that holds the whole model and needs no float twin.

The folder: config.json (sizes, and the sha256 of every other file), plan.json (rules, and the scheme of each module),
model.safetensors (each module's tensors in its scheme's form, by module name) and tokenizer.json.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import __version__
from ..files import sha256_of
from ..folders import check_free, whole_folder
from ..guidance import guidance_record
from ..pipeline import Pipeline
from ..records import Cancelled
from .plan import Plan, packable, preset, put, tied
from .schemes import pack, to_tensors
from .size import Stored, json_bytes, json_text, safetensors_bytes
from .skeleton import ENCODER_FILE, ENCODERS, describe, encoder_state, plain_tokenizer

MODEL_TYPE = "tinymusician-quantized"
FILES = ("model.safetensors", "plan.json", "tokenizer.json")
OnModule = Callable[[str, int, int], None]  # a module's name, how many are done, how many there are


@dataclass(frozen=True, eq=False)
class Recipe:
    """A plan on a certain model: the scheme of each of its modules, and by which inputs' moments to round.

    `moments` has the second moments [I,I] of the inputs of linear layers; where there are none, weights go to the
    nearest number. `tensors` has what some modules are stored as already: a search has packed them, or a recovery
    trained them.
    """

    plan: Plan
    schemes: dict[str, str]
    moments: Mapping[str, Tensor]
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantized:
    """What `quantize` wrote: where, how big, beside what, and the scheme of every module.

    The bytes are of what generating reads; the codec's encoder, which only going on from a sound needs, lies beside.
    `search` has what was foreseen and measured of a plan that was searched for, `recovery` what a recovery came to,
    and `note` says that in a sentence.
    """

    folder: Path
    preset: str
    disk_bytes: int
    source_bytes: int
    schemes: dict[str, str]
    search: dict | None = None
    recovery: dict | None = None
    note: str = ""

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
    *,
    recover: float | None = None,
    data: str | os.PathLike | None = None,
    weights: Sequence[float] | None = None,
    teacher: Pipeline | str | os.PathLike | None = None,
    **search,
) -> Quantized:
    """Write a quantized model; the model that it is made from stays as it is.

    Args:
        model: a float model from `load`, on the CPU, or what `load` takes.
        plan: a Plan, or a preset's name: "paper", "int8", "fast" or "int4"; None where a plan is searched for.
        out_dir: the folder to make. An earlier quantized model there is replaced; anything else is left alone.
        on_progress: told what is done, how much of it, and of how much.
        should_stop: asked before every module, every measurement and every step of a recovery.
        recover: so many minutes the decoder's int4 layers are trained on the float model's outputs; the weights are
            kept where that brings them closer to it, the teacher counted where there is one. The folder then has
            recovery.json too.
        data: a token folder for a search and a recovery; None lets the model play the tokens itself.
        weights: how much each codebook counts there; all alike where None.
        teacher: for a recovery, the model that this one was distilled from: its answers count a little too.
        search: instead of a plan, `max_mb`, `max_ms` and `max_kl`, any mix of the three, and the other arguments of
            `adaptive.adapt`. The folder then has a report of the search too.

    Raises:
        ValueError: no such model, preset or module, a scheme that cannot take a module, a folder that is in use, a
            budget that no plan can keep (`search.ImpossibleBudget`: it says what can be), or nothing to recover.
        ModelError: the model's files are damaged.
        Cancelled: `should_stop` said so; no model is left behind. What a search has measured is kept.
    """
    if out_dir is None or (plan is None) == (not search):
        raise ValueError("quantize needs an out_dir, and either a plan or a budget: max_mb, max_ms or max_kl")
    if plan is not None and recover is None and (data is not None or weights is not None):
        raise ValueError("data and weights are for a search or a recovery; a plan alone needs neither")
    if teacher is not None and recover is None:
        raise ValueError("a teacher is for a recovery; give recover with it")
    pipeline, folder = _float_model(model), Path(out_dir)
    watched = {"on_progress": on_progress, "should_stop": should_stop}
    asked = {"data": data, "weights": weights, **watched}
    teacher = None if teacher is None else _float_model(teacher)
    if plan is None:
        return _searched(pipeline, folder, recover, teacher, search, asked)
    plan = preset(plan, pipeline.modules) if isinstance(plan, str) else plan
    recipe = recipe_of(pipeline, plan)
    if recover is None:
        return write(pipeline, recipe, folder, **watched)
    from .recover import check_recovery
    from .recover import recover as recovered

    check_recovery(recover, recipe.schemes)
    check_free(folder, MODEL_TYPE)
    recipe, found = recovered(pipeline, recipe, recover, teacher=teacher, **asked)
    made = write(pipeline, recipe, folder, **watched, more=found.write)
    return replace(made, recovery=found.as_dict(), note=found.sentence())


def _searched(
    pipeline: Pipeline, folder: Path, recover: float | None, teacher: Pipeline | None, search: dict, asked: dict
) -> Quantized:
    """Search a plan, recover it where that is asked for, and write it."""
    from .adaptive import adapt
    from .recover import check_recovery, check_teacher, recovered_plan

    if recover is not None:
        check_recovery(recover)
        check_teacher(pipeline, teacher)
    check_free(folder, MODEL_TYPE)
    adapted = adapt(pipeline, folder.resolve().name, **asked, **search)
    if recover is not None:
        adapted = recovered_plan(pipeline, adapted, recover, teacher=teacher, **asked)
    watched = {name: asked[name] for name in ("on_progress", "should_stop")}
    made = write(pipeline, adapted.recipe, folder, **watched, more=adapted.write_report)
    found = adapted.recovered
    recovery = None if found is None else found.as_dict()
    note = "; ".join(sentence for sentence in (adapted.pace, adapted.note) if sentence)
    return replace(made, search=adapted.figures(), recovery=recovery, note=note)


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
        plain_tokenizer(pipeline.text_encoder.tokenizer).save(str(partial / "tokenizer.json"))
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
        **pipeline.made_for.as_record(),
        **guidance_record(pipeline.guidance),
        **describe(pipeline.modules),
        "files": dict(hashes),
    }


def disk_bytes(pipeline: Pipeline, recipe: Recipe, tensors: Iterable[Stored], name: str) -> int:
    """What `Quantized.disk_bytes` will be of a folder of this name, with these tensors, before it is written."""
    tokenizer = len(plain_tokenizer(pipeline.text_encoder.tokenizer).to_str(pretty=True).encode())
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
        packed = recipe.tensors.get(name) or to_tensors(targets[name], scheme, recipe.moments.get(name))
        tensors |= {f"{name}.{key}": tensor for key, tensor in packed.items()}
        if on_progress is not None:
            on_progress(name, done + 1, len(recipe.schemes))
    return tensors


def _write_json(path: Path, record: dict) -> None:
    path.write_text(json_text(record), encoding="utf-8")
