"""Prompts -> tokens, for what needs no sound: training data and calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .engine.loop import frames
from .engine.threads import step_threads
from .pipeline import Pipeline
from .records import SamplingSpec


def play(
    model: Pipeline,
    prompts: Sequence[str],
    specs: Sequence[SamplingSpec],
    should_stop: Callable[[], bool] | None = None,
) -> Tensor:
    """The codes int64 [B,K,T] of a clip of each prompt, those that `Pipeline.generate` gives it; all at once where the
    model can.

    Args:
        model: from `load`.
        prompts: what to play.
        specs: one for each prompt, alike in `seconds` and `cfg`.
        should_stop: asked before every step.

    Raises:
        ValueError: a cfg that a model with guidance built in does not take.
        Cancelled: `should_stop` said so.
    """
    specs = [model.settled(spec) for spec in specs]
    total = max(1, round(specs[0].seconds * model.frame_rate_hz))
    draws, scale = [model.engine_spec(spec) for spec in specs], model.text_scale(specs[0])
    rows = list(range(len(prompts)))
    made = []
    for group in [rows] if model.decoder.config.text == "cross" else [[row] for row in rows]:
        states, mask = model.text_encoder.encode_each([prompts[row] for row in group], scale)
        draw = [draws[row] for row in group]
        with step_threads(model.decoder.config):
            found = frames(model.decoder, states, mask, draw, total, should_stop, None, model.window_frames)
            made.append(torch.stack(list(found), dim=2))
    return torch.cat(made).cpu()
