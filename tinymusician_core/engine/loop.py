"""The loop: read, guide, draw, and hand out each frame as soon as its last codebook is there.

B batch, K codebooks, T frames, S text tokens, D width, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..delay import delay
from ..made_for import USUAL_CFG
from ..records import Cancelled, SamplingSpec
from .decoder import Decoder, DecoderConfig
from .sampling import Sampler, guide
from .window import Window, context_of, kept_of, size_of

BLOCK = 32


def steps_for(decoder: Decoder, frames_total: int) -> int:
    """Decoder steps that `frames_total` frames take: the delay pattern adds its longest delay."""
    return frames_total + max(decoder.config.delays)


@torch.inference_mode()
def frames(
    decoder: Decoder,
    states: Tensor,
    mask: Tensor,
    specs: SamplingSpec | Sequence[SamplingSpec],
    frames_total: int,
    should_stop: Callable[[], bool] | None = None,
    given: Tensor | None = None,
    window: int | None = None,
    over: Callable[[], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Generate `frames_total` frames for a batch of prompts.

    Each row draws from its own seed, so that a row of a batch equals its single run (in float32, to rounding).
    A piece longer than the window costs the same time and memory a frame, however long it gets: when `size_of` frames
    have been read, the last ones move up to the opening, as many of both as `context_of` says, are read anew there,
    and the music goes on.

    Args:
        decoder: the step decoder.
        states: text states [B,S,D].
        mask: [B,S], 1 or True where there is text.
        specs: how to draw, for all rows or one for each; guidance, the same for all, runs as a batch of 2B when
            `cfg` is above 1; a `cfg` of None is the usual 3. `seconds` is not used here.
        frames_total: T, at least 1.
        should_stop: asked before every step, and between the blocks of `BLOCK` columns that are read at once.
        given: int64 [B,K,T0], codes that the music goes on from; they are not yielded.
        window: frames that the decoder sees at most; None for all there are.
        over: asked when a window slides for the rows, bool [B], whose music has come to its end before its time. They
            are taken up again from their opening, for a model that has fallen silent seldom begins anew by itself.

    Yields:
        int64 [B,K]: frame after frame, the delay already undone.

    Raises:
        ValueError: fewer than 1 frame, a window of less than 1, or a batch whose parts do not fit together.
        Cancelled: `should_stop` said so.
    """
    config, batch = decoder.config, states.shape[0]
    specs = _one_a_row(specs, batch)
    given = _given(given, config, batch, frames_total, window).to(states.device)
    begun, steps, longest = given.shape[2], steps_for(decoder, frames_total), max(config.delays)
    size = size_of(begun + frames_total, window)
    seen = Window(given, config.delays, config.pad, size, *context_of(window or size))
    reader = Reader(decoder, states, mask, specs[0].cfg, seen, over)
    samplers = [Sampler(spec, states.device) for spec in specs]
    first = torch.tensor(config.delays, device=states.device)
    tail = delay(given, config.delays, config.pad)[0][:, :, begun:].unbind(2)
    step = 0

    def ask() -> None:
        if should_stop is not None and should_stop():
            raise Cancelled(f"stopped after {step} of {steps} steps")

    for step in range(steps):
        logits = reader.read(ask)
        column = torch.cat([draw(row) for draw, row in zip(samplers, logits.split(1), strict=True)])
        if step < longest:
            column = torch.where(first <= step, column, tail[step])
        if step >= frames_total:
            column = torch.where(step < first + frames_total, column, config.pad)
        seen.write(column)
        if step >= longest:
            yield seen.newest_frame()


class Reader:
    """Has the decoder read what it has not seen of a window, with guidance where there is any."""

    def __init__(
        self,
        decoder: Decoder,
        states: Tensor,
        mask: Tensor,
        cfg: float,
        window: Window,
        over: Callable[[], Tensor] | None = None,
    ):
        self._decoder, self._cfg, self._window, self._over = decoder, cfg, window, over
        prompts = states.shape[0]
        if cfg > 1.0:
            states, mask = _with_unconditional(states, mask)
        self._cache = decoder.prepare(states, mask, window.room, prompts)

    def read(self, ask: Callable[[], None]) -> Tensor:
        """Read up to the last column, and return the guided logits float32 [B,K,V] of the next.

        `ask` is called before each pass through the decoder, and may raise to end it all.
        """
        if self._cache.length == self._window.room:
            self._cache.rewind(self._window.slide(None if self._over is None else self._over()))
        unread = self._window.unread(self._cache.length)
        if self._cfg > 1.0:
            unread = torch.cat([unread, unread])
        for block in unread[:, :, :-1].split(BLOCK, dim=2):
            if block.shape[2]:
                ask()
                self._decoder.prefill(block, self._cache)
        ask()
        logits = self._decoder.step(unread[:, :, -1], self._cache)
        return guide(logits, self._cfg) if self._cfg > 1.0 else logits


def _with_unconditional(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Text states and mask of twice the batch: the second half is all zeros, as transformers does guidance."""
    return torch.cat([states, torch.zeros_like(states)]), torch.cat([mask, torch.zeros_like(mask)])


def _one_a_row(specs: SamplingSpec | Sequence[SamplingSpec], batch: int) -> list[SamplingSpec]:
    specs = [specs] * batch if isinstance(specs, SamplingSpec) else list(specs)
    if len(specs) != batch:
        raise ValueError(f"a batch of {batch} needs one SamplingSpec or {batch}, got {len(specs)}")
    specs = [replace(spec, cfg=USUAL_CFG) if spec.cfg is None else spec for spec in specs]
    scales = sorted({spec.cfg for spec in specs})
    if len(scales) > 1:
        raise ValueError(f"all rows of a batch must have the same cfg, got {', '.join(f'{cfg:g}' for cfg in scales)}")
    return specs


def _given(codes: Tensor | None, config: DecoderConfig, batch: int, frames_total: int, window: int | None) -> Tensor:
    """The codes int64 [B,K,T0] that the first window begins with; ValueError where lengths or codes are wrong."""
    if frames_total < 1:
        raise ValueError(f"frames_total must be 1 or more, got {frames_total}")
    if window is not None and window < 1:
        raise ValueError(f"a window must be 1 frame or more, got {window}")
    if codes is None:
        return torch.empty(batch, config.codebooks, 0, dtype=torch.long)
    if codes.ndim != 3 or codes.shape[:2] != (batch, config.codebooks) or codes.dtype != torch.long:
        raise ValueError(
            f"given codes must be int64 [{batch}, {config.codebooks}, frames], got {codes.dtype} {tuple(codes.shape)}"
        )
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < config.entries:
        raise ValueError(f"given codes must lie between 0 and {config.entries - 1}")
    return codes[:, :, codes.shape[2] - kept_of(codes.shape[2], frames_total, window) :]
