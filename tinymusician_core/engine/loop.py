"""The loop: decode one position, sample, and hand out each frame as soon as its last codebook is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..delay import valid
from ..records import Cancelled, SamplingSpec
from .decoder import Decoder
from .sampling import Sampler, guide


def steps_for(decoder: Decoder, frames_total: int) -> int:
    """Decoder steps that `frames_total` frames take: the delay pattern adds its longest delay."""
    return frames_total + max(decoder.config.delays)


def _with_unconditional(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Text states and mask of twice the batch: the second half is all zeros, as transformers does guidance."""
    return torch.cat([states, torch.zeros_like(states)]), torch.cat([mask, torch.zeros_like(mask)])


@torch.inference_mode()
def frames(
    decoder: Decoder,
    states: Tensor,
    mask: Tensor,
    spec: SamplingSpec,
    frames_total: int,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[Tensor]:
    """Generate `frames_total` frames for a batch of prompts.

    Args:
        decoder: the step decoder.
        states: text states [B,S,D].
        mask: [B,S], 1 or True where there is text.
        spec: how to draw; guidance runs as a batch of 2B when `spec.cfg` is above 1. `spec.seconds` is not used here.
        frames_total: T, at least 1.
        should_stop: asked before every step.

    Yields:
        int64 [B,K]: frame after frame, the delay already undone.

    Raises:
        ValueError: fewer than 1 frame, or text states of the wrong shape.
        Cancelled: `should_stop` said so.
    """
    if frames_total < 1:
        raise ValueError(f"frames_total must be 1 or more, got {frames_total}")
    config = decoder.config
    batch, device = states.shape[0], states.device
    guided = spec.cfg > 1.0
    if guided:
        states, mask = _with_unconditional(states, mask)
    steps, longest = steps_for(decoder, frames_total), max(config.delays)
    cache = decoder.prepare(states, mask, steps)
    sampler = Sampler(spec, device)
    holds_code = valid(config.delays, frames_total).to(device).unbind(1)
    shifts = torch.tensor(config.delays, device=device)
    books = torch.arange(config.codebooks, device=device)
    delayed = torch.full((batch, config.codebooks, steps), config.pad, device=device)
    tokens = torch.full((batch, config.codebooks), config.pad, device=device)
    for step in range(steps):
        if should_stop is not None and should_stop():
            raise Cancelled(f"stopped after {step} of {steps} steps")
        logits = decoder.step(torch.cat([tokens, tokens]) if guided else tokens, cache)
        tokens = sampler(guide(logits, spec.cfg) if guided else logits)
        if step < longest or step >= frames_total:
            tokens = torch.where(holds_code[step], tokens, config.pad)
        delayed[:, :, step] = tokens
        if step >= longest:
            yield delayed[:, books, shifts + (step - longest)]
