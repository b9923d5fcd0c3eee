"""Load a folder that `apply.quantize` wrote: each module from its stored tensors, and no float weights at any time."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import safe_open

from ..bundle import WINDOW_S, Parts
from ..files import check_safetensors, combined_hash, sha256_of
from ..guidance import GUIDANCE, read_guidance
from ..records import ModelError
from .apply import FILES
from .plan import packable, put, tied
from .schemes import from_tensors
from .skeleton import build

SMALL_BYTES = 2**17


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


def _by_module(keys: list[str], schemes: dict[str, str]) -> dict[str, list[str]]:
    """Tensor names by module; ModelError for a tensor of no module."""
    stored: dict[str, list[str]] = {name: [] for name in schemes}
    for key in keys:
        module, _, name = key.rpartition(".")
        if module not in stored:
            raise ModelError(f"the stored weights hold {key}, which the plan does not know")
        stored[module].append(name)
    return stored


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise ModelError(f"{path} is missing")
    return json.loads(path.read_text(encoding="utf-8"))
