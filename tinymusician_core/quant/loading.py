"""Load a folder that `apply.quantize` wrote: each module from its stored tensors, and no float weights at any time."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..bundle import WINDOW_S, Parts
from ..files import check_safetensors, combined_hash, sha256_of
from ..guidance import GUIDANCE, read_guidance
from ..made_for import read_made_for
from ..measure.memory import trim_heap
from ..records import ModelError
from .apply import FILES
from .plan import packable, put, tied
from .schemes import from_tensors
from .size import TYPES
from .skeleton import build

LARGE_BYTES = 2**19  # what unpacking so much leaves free in the heap is given back
KINDS = {name: dtype for dtype, name in TYPES.items()}


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
    with open(weights, "rb") as file:
        header = read_header(file)
        stored = _by_module(list(header), schemes)
        for name, scheme in schemes.items():
            tensors = {key: read_tensor(file, header[f"{name}.{key}"]) for key in stored[name]}
            module = from_tensors(targets[name], scheme, tensors)
            large = sum(tensor.nbytes for tensor in tensors.values()) > LARGE_BYTES
            del tensors
            if large:
                trim_heap()
            for place in (name, *ties.get(name, ())):
                put(modules, place, module)
    hashes = {"config.json": sha256_of(folder / "config.json"), **config["files"]}
    files = tuple(folder / name for name in ("config.json", *FILES))
    parts = (modules["decoder"], modules["text_encoder"], modules["codec"])
    window_s, name = config.get("window_s", WINDOW_S), config["name"]
    guidance, made_for = read_guidance(config.get(GUIDANCE), name), read_made_for(config, name)
    return Parts(name, *parts, files, combined_hash(hashes), window_s, guidance, made_for)


@dataclass(frozen=True)
class Place:
    """Where a file has a tensor: its first byte, its type and its shape."""

    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_header(file: BinaryIO) -> dict[str, Place]:
    """The tensors of a safetensors file, which `files.check_safetensors` has passed: by name, in the file's order."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        name: Place(8 + size + entry["data_offsets"][0], KINDS[entry["dtype"]], tuple(entry["shape"]))
        for name, entry in header.items()
    }


def read_tensor(file: BinaryIO, place: Place) -> Tensor:
    """A tensor in memory of its own: of a file that is mapped, every page that was touched would stay in memory too."""
    raw = torch.empty(math.prod(place.shape) * place.dtype.itemsize, dtype=torch.uint8)
    file.seek(place.begin)
    file.readinto(memoryview(raw.numpy()))
    return raw.view(place.dtype).view(place.shape)


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
