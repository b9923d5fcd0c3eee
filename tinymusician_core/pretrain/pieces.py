"""Which pieces a work folder is to hold, and those it holds already: the plan that every shard makes the same."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np

from tinymusician_core.files import whole_file
from tinymusician_core.pretrain.accompany import INSTRUMENTS, Note, Track
from tinymusician_core.pretrain.arrange import FRAME_RATE_HZ, Facts, Piece, arrange
from tinymusician_core.pretrain.scores import Tune, read_scores

MORE_ARRANGEMENTS = {"waltz": 2, "slip jig": 3, "strathspey": 4, "march": 4}
Item = TypeVar("Item")


def jobs(tunes: Sequence[Tune]) -> Iterator[tuple[Tune, int]]:
    """Tunes and numbers of arrangements, round by round, shuffled within a round; in each round a tune of a style that
    the corpora are short of comes several times. It ends when a tune has been arranged for every instrument."""
    for turn in range(len(INSTRUMENTS)):
        found = []
        for tune in tunes:
            times = MORE_ARRANGEMENTS.get(tune.style, 1)
            found += [(tune, n) for n in range(turn * times, (turn + 1) * times)]
        random.Random(turn).shuffle(found)
        yield from found


def plan_pieces(tunes: Sequence[Tune], hours: float) -> list[Piece]:
    """Pieces of `hours` of music in all. A plan of more hours begins with that of fewer.

    Raises:
        ValueError: hours that are not above zero, or more than the tunes give.
    """
    if not hours > 0:
        raise ValueError(f"the hours of music must be above zero, got {hours:g}")
    pieces, frames, wanted = [], 0, hours * 3600 * FRAME_RATE_HZ
    for tune, number in jobs(tunes):
        piece = arrange(tune, number)
        if piece is not None:
            pieces.append(piece)
            frames += piece.music_frames
        if frames >= wanted:
            return pieces
    raise ValueError(f"{len(tunes)} tunes give {frames / FRAME_RATE_HZ / 3600:.2f} hours of music, not {hours:g}")


def parse_shard(text: str) -> tuple[int, int]:
    """`i/n` -> (i, n), the i-th of n shards, counted from 1.

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"a shard is i/n with i from 1 to n, got {text!r}")
    return int(match[1]), int(match[2])


def of_shard(items: Sequence[Item], shard: tuple[int, int]) -> Sequence[Item]:
    """Every n-th item from the i-th on: shards of one size that together hold each item once."""
    number, count = shard
    return items[number - 1 :: count]


def write_plan(work: Path, pieces: Iterable[Piece]) -> None:
    """Write `work/pieces.jsonl`, unless it holds these pieces already."""
    target = work / "pieces.jsonl"
    text = "".join(json.dumps(asdict(p)) + "\n" for p in pieces)
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        with whole_file(target) as partial:
            partial.write_text(text, encoding="utf-8")


def make_plan(work: Path, hours: float) -> list[Piece]:
    """Plan pieces from `work/scores.jsonl` and write them down."""
    pieces = plan_pieces(read_scores(work / "scores.jsonl"), hours)
    write_plan(work, pieces)
    return pieces


def read_plan(work: Path) -> list[Piece]:
    """All pieces that the work folder is to hold, rendered or not."""
    pieces = []
    for line in (work / "pieces.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        tracks = tuple(Track(t["role"], t["program"], tuple(Note(**n) for n in t["notes"])) for t in record["tracks"])
        pieces.append(
            Piece(**{**record, "bars": tuple(record["bars"]), "tracks": tracks, "facts": Facts(**record["facts"])})
        )
    return pieces


def audio_path(work: Path, piece: Piece) -> Path:
    return work / "audio" / f"{piece.id}.flac"


def failure_path(work: Path, piece: Piece) -> Path:
    """Where it is noted why a piece could not be rendered; it is left out for as long as this file is there."""
    return work / "audio" / f"{piece.id}.failed"


def read_pieces(work: Path) -> list[Piece]:
    """The pieces of a work folder that have been rendered."""
    return [p for p in read_plan(work) if audio_path(work, p).exists()]


def read_audio(work: Path, piece: Piece) -> np.ndarray:
    """The audio of a piece, float32 [N], a whole number of codec frames.

    Raises:
        ValueError: a file that is not as long as the piece.
    """
    import soundfile

    path = audio_path(work, piece)
    audio, rate = soundfile.read(path, dtype="float32")
    if len(audio) * FRAME_RATE_HZ != piece.frames * rate:
        raise ValueError(f"{path} has {len(audio)} samples, not {piece.frames * rate // FRAME_RATE_HZ}: render it anew")
    return audio
