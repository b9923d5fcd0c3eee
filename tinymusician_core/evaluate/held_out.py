"""What variants are measured against: music of tunes that nothing was trained on (`assets/evaluation`).

`pretrain held-out` makes the folder, from the test split alone:

config.json             the listener that judged, the codec that encoded, the length of a window
test.safetensors/.jsonl codec tokens of the real windows, and one caption each: the prompts of an evaluation
real.jsonl.gz           what the judges say of the same windows as they were rendered
round-trip.jsonl.gz     and after the codec's encoder and decoder, with what that cost
steady.jsonl.gz         how steady longer windows are (`steadiness.py`): of the real tunes as rendered and after the
                        codec, and of the reference's, which set the limits
reference.safetensors   the listener's embeddings of windows of other tunes: the set that all distances are taken to
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import reading, sha256_of, whole_file
from ..records import ModelError
from ..tokens import TokenDataset
from ..variants import assets_folder
from .jury import Judged
from .steadiness import Steadiness

FOLDER, SPLIT = "evaluation", "test"
REAL, ROUND_TRIP, STEADY = "real.jsonl.gz", "round-trip.jsonl.gz", "steady.jsonl.gz"
REMEDY = "python -m tinymusician_core.pretrain held-out makes the folder anew"


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out music, judged.

    Attributes:
        tokens: codes of the real windows [K,T] and their captions, the first of which is a prompt.
        real: the judges on the same windows as sound.
        round_trip: and on their decoded tokens; the same order.
        embeddings: float32 [n, D] of other tunes, the reference.
        fidelity: the codec's cost for each window, by measure.
        listener: the name of the listener that judged.
        codec: the identity of the codec that encoded; decoder: the first 16 digits of its decoder's sha256.
        seconds: the length of a window.
        steady: `REFERENCE`, "real audio" and "codec round trip" -> the steadiness of longer windows of the same tunes;
            empty where there are none.
        steady_s: how long those are; None where there are none.
    """

    tokens: TokenDataset
    real: tuple[Judged, ...]
    round_trip: tuple[Judged, ...]
    embeddings: np.ndarray
    fidelity: Mapping[str, tuple[float, ...]]
    listener: str
    codec: str
    decoder: str
    seconds: float
    steady: Mapping[str, tuple[Steadiness, ...]]
    steady_s: float | None

    @classmethod
    def from_folder(cls, folder: str | Path | None = None) -> HeldOut:
        """Read a folder; None stands for the one in the assets.

        Raises:
            ModelError: it is missing or damaged.
        """
        folder = assets_folder() / FOLDER if folder is None else Path(folder)
        if not (folder / "config.json").is_file():
            raise ModelError(f"there is no held-out music at {folder}; {REMEDY}")
        with reading(folder):
            return cls._read(folder)

    @classmethod
    def _read(cls, folder: Path) -> HeldOut:
        from safetensors.numpy import load_file

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tokens = TokenDataset(folder, SPLIT)
        real, round_trip, steady = (read_records(folder / name) for name in (REAL, ROUND_TRIP, STEADY))
        if not len(real) == len(round_trip) == len(tokens) > 0:
            raise ValueError(f"{len(tokens)} windows, {len(real)} and {len(round_trip)} judgements of them")
        embeddings = load_file(folder / "reference.safetensors")["embeddings"].astype(np.float32)
        return cls(
            tokens=tokens,
            real=tuple(map(Judged.from_record, real)),
            round_trip=tuple(map(Judged.from_record, round_trip)),
            embeddings=embeddings,
            fidelity={name: tuple(each[name] for each in round_trip) for name in config["fidelity"]},
            listener=config["listener"],
            codec=config["codec"],
            decoder=config["decoder"],
            seconds=float(config["seconds"]),
            steady=_steady(steady),
            steady_s=float(steady[0]["seconds"]) if steady else None,
        )

    @property
    def prompts(self) -> tuple[str, ...]:
        """A caption of each real window."""
        return tuple(record["captions"][0] for record in self.tokens.records)

    @property
    def facts(self) -> tuple[dict, ...]:
        """What each real window truly is: instrument, style, tempo, mode and more."""
        return tuple(record["facts"] for record in self.tokens.records)

    def check_listener(self, name: str) -> None:
        """ModelError where another listener judged the held-out music than is in use."""
        if name != self.listener:
            raise ModelError(f"the held-out music was judged by {self.listener}, not by {name}; {REMEDY}")


def _steady(records: Sequence[Mapping]) -> dict[str, tuple[Steadiness, ...]]:
    found: dict[str, tuple[Steadiness, ...]] = {}
    for record in records:
        found[record["kind"]] = (*found.get(record["kind"], ()), Steadiness.from_record(record))
    return found


def write_records(path: Path, records: Iterable[Mapping]) -> None:
    """Write packed JSON lines; the same records give the same bytes."""
    lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    with whole_file(path) as partial:
        partial.write_bytes(gzip.compress(lines.encode(), mtime=0))


def read_records(path: Path) -> list[dict]:
    """What `write_records` wrote; OSError or ValueError where it cannot be read."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def codec_identity(codec) -> str | None:
    """16 hexadecimal digits of the file that a codec encodes with; None where it has no such file of its own.

    Tokens mean the same to all codecs of one identity, however their decoders are stored.
    """
    file = getattr(codec, "encoder_file", None)
    return None if file is None or not Path(file).is_file() else sha256_of(file)[:16]
