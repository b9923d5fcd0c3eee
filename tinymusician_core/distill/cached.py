"""A teacher's likeliest next tokens on disk, so that training needs no teacher.

A fixed set of windows is drawn once, as many as the clips have frames for, and for each of its positions the N
likeliest tokens are kept with their log-probabilities at temperature 1. What is left of the probability is spread
evenly over the other tokens: a full distribution, which every loss takes at every temperature.

On disk a window of P positions and K codebooks takes 4 K P N bytes: 4.1 MB for ten seconds of MusicGen (P = 503,
K = 4, V = 2048) with N = 512, 0.5 MB with N = 64; all of V in float32 would take 16.5 MB. What the cut costs is
measured on every window while it is written, and stands in cache.json: `kl_nats`, KL(teacher || restored), and `kept`,
the probability of the tokens that were kept. Music tokens are far less certain than words: of the demo teacher's 512
entries N = 32 keep 75% of the probability and cost 0.18 nats, 64 keep 83% (0.10), 128 keep 91% (0.04), 256 keep 97%
(0.008); a quarter of V is the least that makes sense, for a student ends at a few tenths of a nat from its teacher.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import whole_file
from ..processes import OneProcess
from ..records import Cancelled
from .data import Batches, Drawn
from .divergence import kl, log_probs
from .teaching import Teaching

SUMMARY = "cache.json"


def cut_to(logits: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Logits [..., V] -> the `keep` likeliest tokens int16 [..., N] and their log-probabilities float16 [..., N]."""
    values, tokens = log_probs(logits).topk(min(keep, logits.shape[-1]), dim=-1)
    return values.clamp_min(-6e4).half(), tokens.to(torch.int16)


def restored(values: Tensor, tokens: Tensor, size: int) -> Tensor:
    """Log-probabilities float32 [..., V] from what `cut_to` kept; what is left lies evenly on the others."""
    values, others = values.float(), size - values.shape[-1]
    left = (1.0 - values.exp().sum(-1, keepdim=True)).clamp_min(1e-7)
    floor = (left / max(1, others)).log().expand(*values.shape[:-1], size).clone()
    return torch.log_softmax(floor.scatter_(-1, tokens.long(), values), dim=-1)


class LogitCache:
    """The cached windows of one split.

    Args:
        folder: where the files are.
        split: "train" or "validation".
        batches: where windows are drawn from, and what computes a batch of them.
        size: the codebooks' entries V.
    """

    def __init__(self, folder: Path, split: str, batches: Batches, size: int):
        self._folder, self._split, self._batches, self._size = folder, split, batches, size
        self._open: dict[int, safe_open] = {}
        self._chunk = 1

    def _path(self, index: int) -> Path:
        return self._folder / f"{self._split}-{index:05d}.safetensors"

    def build(
        self,
        teaching: Teaching,
        keep: int,
        chunk: int,
        seed: int,
        together: OneProcess,
        chunks: int | None = None,
        on_chunk: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """Write what is not there yet, `chunk` windows a file; each process writes its share of the files.

        With `chunks` there are so many files of `Batches.fixed`, else as many of random windows as the clips fill.

        Raises:
            Cancelled: `should_stop` said so; what is written stays, and is not written anew.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        dataset, self._chunk = self._batches.dataset, chunk
        rng = torch.Generator().manual_seed(seed)
        fixed = None if chunks is None else self._batches.fixed(seed, chunk, chunks)
        self.chunks = chunks or max(1, round(dataset.codes.shape[1] / self._batches.frames / chunk))
        for index in range(self.chunks):
            if should_stop is not None and should_stop():
                raise Cancelled(f"stopped after {index} of {self.chunks} parts of the cache; resume goes on from there")
            drawn = self._batches.draw(rng, chunk) if fixed is None else next(fixed)
            if index % together.world == together.rank and not self._path(index).exists():
                self._write(index, drawn, teaching, keep)
            if on_chunk is not None:
                on_chunk(index + 1, self.chunks)
        together.wait()

    def _write(self, index: int, drawn: Drawn, teaching: Teaching, keep: int) -> None:
        values, tokens, apart, kept, counted = [], [], 0.0, 0.0, 0
        for row in range(len(drawn)):
            batch = self._batches.batch(drawn.rows(row, row + 1))
            wanted, _ = teaching(batch)
            value, token = cut_to(wanted, keep)
            exact, found = log_probs(wanted)[batch.valid], restored(value, token, self._size)[batch.valid]
            apart += float(kl(exact, found).sum())
            kept += float(value.float().exp().sum(-1)[batch.valid].sum())
            counted += int(batch.valid.sum())
            values.append(value.cpu()), tokens.append(token.cpu())
        told = {"captions": drawn.captions, "kl": apart, "kept": kept, "positions": counted}
        tensors = {"codes": drawn.codes.to(torch.int16), "left_out": drawn.left_out.to(torch.uint8)}
        tensors |= {"values": torch.cat(values), "tokens": torch.cat(tokens)}
        if drawn.scales is not None:
            tensors["scales"] = drawn.scales
        with whole_file(self._path(index)) as partial:
            save_file(tensors, partial, metadata={"told": json.dumps(told)})

    def _file(self, index: int) -> tuple[safe_open, dict]:
        if index not in self._open:
            file = safe_open(self._path(index), framework="pt")
            self._open[index] = (file, json.loads(file.metadata()["told"]))
        return self._open[index]

    def summary(self) -> dict[str, float]:
        """Windows, bytes, and what the cut costs."""
        told = [self._file(index)[1] for index in range(self.chunks)]
        positions = sum(record["positions"] for record in told)
        return {
            "windows": self.chunks * self._chunk,
            "bytes": sum(self._path(index).stat().st_size for index in range(self.chunks)),
            "kl_nats": sum(record["kl"] for record in told) / positions,
            "kept": sum(record["kept"] for record in told) / positions,
        }

    def _read(self, picks: tuple[int, ...], name: str) -> Tensor:
        rows = []
        for pick in picks:
            part = self._file(pick // self._chunk)[0].get_slice(name)
            row = part[pick % self._chunk : pick % self._chunk + 1]
            rows.append(row.float() if row.is_floating_point() else row)
        return torch.cat(rows)

    def take(self, picks: tuple[int, ...]) -> Drawn:
        """The windows of these numbers."""
        captions = tuple(self._file(pick // self._chunk)[1]["captions"][pick % self._chunk] for pick in picks)
        scales = None if self._batches.scales is None else self._read(picks, "scales")
        left_out = self._read(picks, "left_out") > 0
        return Drawn(self._read(picks, "codes").long(), captions, left_out, picks=picks, scales=scales)

    def draw(self, rng: torch.Generator, size: int) -> Drawn:
        """`size` windows at random; no window comes twice while there are enough."""
        total = self.chunks * self._chunk
        order = torch.cat([torch.randperm(total, generator=rng) for _ in range(-(-size // total))])
        return self.take(tuple(order[:size].tolist()))

    def wanted(self, drawn: Drawn) -> Tensor:
        """The teacher's log-probabilities [B,K,P,V] of windows that came from here."""
        return restored(self._read(drawn.picks, "values"), self._read(drawn.picks, "tokens"), self._size)

    def every(self, size: int) -> Iterator[Drawn]:
        """All windows in order, `size` at a time."""
        total = self.chunks * self._chunk
        for first in range(0, total, size):
            yield self.take(tuple(range(first, min(first + size, total))))


def write_summary(folder: Path, cache: LogitCache, keep: int) -> dict[str, float]:
    """cache.json of a folder: what is kept, how big it is, and what the cut costs."""
    summary = {"tokens_kept": keep, **cache.summary()}
    with whole_file(folder / SUMMARY) as partial:
        partial.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary
