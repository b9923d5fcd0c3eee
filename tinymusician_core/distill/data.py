"""From codec tokens to what teacher and student see: delayed inputs, targets, and the mask of what counts.

B windows, K codebooks, T frames, P = T + the longest delay, S text tokens, E the text encoder's width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..delay import delay
from ..guidance import ScaleInput, ScaleRange
from ..records import check_prompt
from ..text import TextEncoder
from ..tokens import TokenDataset


@dataclass(frozen=True)
class Batch:
    """What teacher and student see.

    inputs, targets: delayed, int64 [B,K,P].
    valid: bool [B,K,P], which targets count.
    text: what the text encoder gives [B,S,E], before the projection.
    heard: bool [B,S], the tokens that are to be heard; none in a row whose caption is left out.
    mask: int64 [B,S], what attention is open for; all of a row whose caption is left out.
    scales: float32 [B], the guidance of each row where it is an input.
    """

    inputs: Tensor
    targets: Tensor
    valid: Tensor
    text: Tensor
    heard: Tensor
    mask: Tensor
    scales: Tensor | None = None

    def states(self, projection: nn.Module, guidance: ScaleInput | None = None) -> Tensor:
        """Text states [B,S,D]; a caption that is left out is zeros behind an open mask, which weigh nothing."""
        states = projection(self.text)
        if guidance is not None:
            states = guidance(states, self.scales)
        return states * self.heard.unsqueeze(2)


@dataclass(frozen=True)
class Drawn:
    """Windows that were drawn, before anything is computed of them; the same in all processes.

    codes: int64 [B,K,T], -1 past a clip's end; left_out: bool [B], whose caption is left out; `begin` is the first
    frame that counts, what stands before it is context; `picks` are the windows' numbers where they are from a cache.
    `scales` float32 [B] is the guidance of each, where it is an input.
    """

    codes: Tensor
    captions: tuple[str, ...]
    left_out: Tensor
    begin: int = 0
    picks: tuple[int, ...] = ()
    scales: Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def rows(self, first: int, last: int) -> Drawn:
        """The windows from `first` to before `last`."""
        return replace(
            self,
            codes=self.codes[first:last],
            captions=self.captions[first:last],
            left_out=self.left_out[first:last],
            picks=self.picks[first:last],
            scales=None if self.scales is None else self.scales[first:last],
        )


def delayed(codes: Tensor, delays: tuple[int, ...], start: int, begin: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Codes int64 [B,K,T], -1 past a clip's end -> inputs, targets and valid, each [B,K,P].

    The inputs are the delayed codes behind one `start` token, which also stands for padding; the targets are the
    delayed codes themselves. Padding, what lies past a clip's end, and frames before `begin` are not valid.
    """
    shifted, real = delay(codes, delays, start)
    frame = torch.arange(shifted.shape[2], device=codes.device) - torch.tensor(delays, device=codes.device)[:, None]
    valid = real & (shifted >= 0)
    shifted = shifted.masked_fill(~valid, start)
    inputs = functional.pad(shifted, (1, 0), value=start)[..., :-1]
    return inputs, shifted, (valid & (frame >= begin)).expand_as(shifted)


class Batches:
    """Batches of a token folder's split, with text from a frozen encoder.

    Args:
        tokens: the folder, see `tokens.TokenDataset`.
        text_encoder: made for the teacher; its weights stay as they are.
        delays: of each codebook.
        start: the token before the first.
        frames: length of a window.
        dropout: the share of captions that are left out, so that guidance has an unconditional half.
        scales: the range that each window's guidance is drawn from, where it is an input.
    """

    def __init__(
        self,
        tokens: str | Path,
        split: str,
        text_encoder: TextEncoder,
        delays: tuple[int, ...],
        start: int,
        frames: int,
        dropout: float,
        scales: ScaleRange | None = None,
    ):
        self.dataset, self.text_encoder = TokenDataset(tokens, split), text_encoder
        self.delays, self.start, self.frames, self.dropout, self.scales = delays, start, frames, dropout, scales
        if len(self.dataset) == 0:
            raise ValueError(f"{tokens} holds no {split} clips; at least one is needed")
        books, highest = self.dataset.codebooks, int(self.dataset.codes.max())
        if books != len(delays) or highest >= start:
            raise ValueError(
                f"{tokens} holds {books} codebooks with codes up to {highest}; "
                f"the teacher has {len(delays)} of {start} entries"
            )

    def read_by(self, text_encoder: TextEncoder) -> Batches:
        """The same windows, with text from another encoder."""
        other = copy(self)
        other.text_encoder = text_encoder
        return other

    def draw(self, rng: torch.Generator, size: int, part: int = 1) -> Drawn:
        """`size` windows at random, of a `part`-th of the usual length."""
        return self._drawn(rng, *self.dataset.batch(rng, size, max(1, self.frames // part)))

    def order(self, seed: int, count: int) -> list[int]:
        """The clips of `count` windows: shuffled, and none a second time before all that are long enough have come."""
        clips, rng = self.dataset.long_enough(self.frames), torch.Generator().manual_seed(seed)
        dealt = [clips[torch.randperm(len(clips), generator=rng)] for _ in range(-(-count // len(clips)))]
        return torch.cat(dealt)[:count].tolist()

    def fixed(self, seed: int, size: int, count: int) -> Iterator[Drawn]:
        """`count` times `size` windows of the clips in their `order`; the first are the same however many there are."""
        order, rng = self.order(seed, size * count), torch.Generator().manual_seed(seed)
        for first in range(0, size * count, size):
            codes, captions, _ = self.dataset.take(order[first : first + size], self.frames, rng)
            yield self._drawn(rng, codes, captions)

    def _drawn(self, rng: torch.Generator, codes: Tensor, captions: Sequence[str]) -> Drawn:
        left_out = torch.rand(len(captions), generator=rng) < self.dropout
        scales = None if self.scales is None else self.scales.draw(rng, len(captions))
        return Drawn(codes, tuple(captions), left_out, scales=scales)

    @torch.no_grad()
    def batch(self, drawn: Drawn) -> Batch:
        """What is computed of drawn windows, on the text encoder's device."""
        encoder, device = self.text_encoder, self.text_encoder.device
        tokens, mask = encoder.tokenize([check_prompt(caption) for caption in drawn.captions])
        tokens, mask, left_out = tokens.to(device), mask.to(device), drawn.left_out.to(device)
        text = encoder.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        inputs, targets, valid = delayed(drawn.codes.to(device), self.delays, self.start, drawn.begin)
        heard = (mask > 0) & ~left_out[:, None]
        scales = None if drawn.scales is None else drawn.scales.to(device)
        return Batch(inputs, targets, valid, text, heard, mask.masked_fill(left_out[:, None], 1), scales)

    def valid(self, drawn: Drawn) -> Tensor:
        """Which targets of drawn windows count, bool [B,K,P], on the CPU."""
        return delayed(drawn.codes, self.delays, self.start, drawn.begin)[2]
