"""What transformers saves, as files hold it: weights by name, tokenizers, and whether a folder has it all.

Weights are read one by one, straight into the module that uses them: a checkpoint is never in memory twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from .files import check_safetensors, combined_hash, identity_of, reading
from .records import ModelError

TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")
COMPUTED = "embed_positions"  # in checkpoints, and computed from its formula all the same


class Weights(MutableMapping[str, Tensor]):
    """The tensors of safetensors files by name; each is read when it is asked for, into memory of its own, in float32.

    A name that is set holds its tensor in memory, and hides what a file has under it.
    """

    def __init__(self, files: Sequence[Path]):
        from safetensors import safe_open

        self._places: dict[str, Path | Tensor] = {}
        for path in files:
            with safe_open(path, framework="pt") as file:
                self._places |= dict.fromkeys(file.keys(), path)

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        place = self._places[name]
        if isinstance(place, Tensor):
            return place
        with safe_open(place, framework="pt") as file:  # opened anew each time: what was read is unmapped again
            return file.get_tensor(name).to(torch.float32, copy=True)

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._places[name] = tensor

    def __delitem__(self, name: str) -> None:
        del self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def take(self, prefix: str) -> dict[str, Tensor]:
        """Take out all whose names start with `prefix`, which is cut off."""
        return {name[len(prefix) :]: self.pop(name) for name in [*self] if name.startswith(prefix)}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no notes from transformers while it loads; its settings are put back afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def check_complete(info: dict, what: str | Path) -> None:
    """ModelError where transformers' loading info names weights that are missing or have the wrong shape."""
    for kind, words in (("missing_keys", "lacks"), ("mismatched_keys", "has the wrong shape for")):
        names = sorted(str(name) for name in info[kind])
        if names:
            raise ModelError(f"{what} {words} {len(names)} weights, among them {names[0]}")


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a transformers folder, with their index where they are in shards; they may be missing."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    with reading(index):
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return [index, *(folder / shard for shard in shards)]


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder's tokenizer; ModelError where there are none."""
    found = [folder / name for name in TOKENIZER_NAMES if (folder / name).is_file()]
    if not found:
        raise ModelError(f"{folder} holds no tokenizer; it needs tokenizer.json or spiece.model beside the weights")
    return found


def is_whole(folder: Path) -> bool:
    """Whether a folder has all that `load_musicgen` needs."""
    wanted = [folder / "config.json", *weight_files(folder)]
    return all(path.is_file() for path in wanted) and any((folder / name).is_file() for name in TOKENIZER_NAMES)


def open_weights(folder: Path) -> tuple[list[Path], Weights]:
    """The weight files of a transformers folder, and the tensors in them.

    Raises:
        ModelError: a file is missing, damaged, or there are none but pickled ones.
    """
    files = weight_files(folder)
    if len(files) == 1 and not files[0].is_file() and any(folder.glob("pytorch_model*.bin")):
        raise ModelError(
            f"{folder} holds its weights as pytorch_model.bin alone, and only safetensors are read: they run no code; "
            "transformers' from_pretrained and save_pretrained turn one into the other"
        )
    tensors = [path for path in files if path.suffix == ".safetensors"]
    for path in tensors:
        check_safetensors(path)
    return files, Weights(tensors)


def take_projection(state: MutableMapping[str, Tensor]) -> nn.Module | None:
    """Take the projection from the text encoder's width to the decoder's out of a state; None where there is none."""
    if "enc_to_dec_proj.weight" not in state:
        return None
    weight = state.pop("enc_to_dec_proj.weight").float()
    projection = nn.Linear(weight.shape[1], weight.shape[0])
    projection.load_state_dict({"weight": weight, "bias": state.pop("enc_to_dec_proj.bias").float()})
    return projection


def take_no_melody(state: MutableMapping[str, Tensor]) -> Tensor:
    """What a melody model reads in each frame of a melody that is not given [1,D]: chroma bin 0 alone, projected."""
    weight, bias = state.pop("audio_enc_to_dec_proj.weight"), state.pop("audio_enc_to_dec_proj.bias")
    return (weight[:, 0].float() + bias.float()).unsqueeze(0)


def combined_identity(files: Sequence[Path]) -> str:
    """One short hash over the identities of files and their names, wherever they lie."""
    hashes: dict[str, str] = {}
    for path in files:
        again = sum(path.name == name.split("/")[0] for name in hashes)  # two folders may both have a config.json
        hashes[f"{path.name}/{again}" if again else path.name] = identity_of(path)
    return combined_hash(hashes)


def check_all_used(weights: Iterable[str], what: str | Path) -> None:
    """ModelError where names of weights are left that no part has a place for: without them it is another model."""
    left = sorted(name for name in weights if COMPUTED not in name)
    if left:
        raise ModelError(f"{what} holds {len(left)} weights that this model has no place for, among them {left[0]}")
