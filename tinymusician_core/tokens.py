"""Codec tokens with captions, on disk: what teachers and students are trained on.

A folder holds, for each split, `{split}.safetensors` (`codes` int16 [K,F], all clips end to end; `offsets` int64 [n+1])
and `{split}.jsonl`, one record a clip: `captions`, `bars` (frames, from the clip's start, at which bars begin),
`facts`, and `round` where a clip may begin anew when it ends, as dance tunes do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tinymusician_core.files import whole_file

SPLITS = ("train", "validation", "test")


class TokenDataset:
    """The clips of one split; `batch` draws windows that start on a bar."""

    def __init__(self, folder: str | Path, split: str) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; allowed are {', '.join(SPLITS)}")
        tensors, records = Path(folder) / f"{split}.safetensors", Path(folder) / f"{split}.jsonl"
        if not tensors.exists() or not records.exists():
            raise ValueError(f"{folder} holds no {split} tokens ({split}.safetensors and {split}.jsonl are needed)")
        try:
            stored = load_file(tensors)
        except SafetensorError as error:
            raise ValueError(f"{tensors} is damaged: {error}") from error
        self.codes, self.offsets = stored["codes"], stored["offsets"]
        self.records = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
        if len(self.records) != len(self.offsets) - 1:
            raise ValueError(
                f"{folder}: {len(self.records)} records but {len(self.offsets) - 1} clips of {split} tokens"
            )

        self.rounds = torch.tensor([bool(record.get("round")) for record in self.records], dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def codebooks(self) -> int:
        return self.codes.shape[0]

    def clip(self, index: int) -> Tensor:
        """All codes of a clip, int64 [K,T]."""
        return self.codes[:, self.offsets[index] : self.offsets[index + 1]].long()

    def window(self, index: int, frames: int, rng: torch.Generator) -> Tensor:
        """`frames` codes of a clip from a random bar on, int64 [K,frames]. One that goes round may begin anew in the
        middle of them; another that ends sooner is filled with -1."""
        codes, bars = self.clip(index), self.records[index]["bars"]
        if self.rounds[index]:
            start = bars[int(torch.randint(len(bars), (), generator=rng))]
            return codes[:, (start + torch.arange(frames)) % codes.shape[1]]
        starts = [b for b in bars if b + frames <= codes.shape[1]] or bars[:1]
        start = starts[int(torch.randint(len(starts), (), generator=rng))]
        part = codes[:, start : start + frames]
        return torch.nn.functional.pad(part, (0, frames - part.shape[1]), value=-1)

    def long_enough(self, frames: int) -> Tensor:
        """The clips (int64 [n]) that fill a window of `frames`; all clips where there is none."""
        found = torch.nonzero((self.offsets.diff() >= frames) | self.rounds)[:, 0]
        return found if len(found) else torch.arange(len(self))

    def batch(self, rng: torch.Generator, batch_size: int, frames: int) -> tuple[Tensor, list[str]]:
        """Random windows int64 [B,K,frames] of the clips that are long enough, and one caption each.

        Where no clip is, windows are filled with -1 past the clip's end.
        """
        codes, captions, _ = self.draw(rng, batch_size, frames)
        return codes, captions

    def draw(self, rng: torch.Generator, batch_size: int, frames: int) -> tuple[Tensor, list[str], list[dict]]:
        """A `batch`, and the records of its clips."""
        clips = self.long_enough(frames)
        return self.take(clips[torch.randint(len(clips), (batch_size,), generator=rng)].tolist(), frames, rng)

    def take(self, picks: Sequence[int], frames: int, rng: torch.Generator) -> tuple[Tensor, list[str], list[dict]]:
        """A random window int64 [B,K,frames] of each of these clips, one caption each, and their records."""
        codes = torch.stack([self.window(i, frames, rng) for i in picks])
        captions = []
        for i in picks:
            choices = self.records[i]["captions"]
            captions.append(choices[int(torch.randint(len(choices), (), generator=rng))])
        return codes, captions, [self.records[i] for i in picks]


def write_tokens(folder: Path, split: str, clips: list[Tensor], records: list[dict]) -> None:
    """Write one split: clips of codes [K,T] and their records, each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = torch.cat(clips, dim=1).to(torch.int16).contiguous()
    offsets = torch.tensor([0, *(c.shape[1] for c in clips)]).cumsum(0)
    with whole_file(folder / f"{split}.safetensors") as partial:
        save_file({"codes": codes, "offsets": offsets}, partial)
    with whole_file(folder / f"{split}.jsonl") as partial:
        partial.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
