"""Held-out music under a language model: how likely each codec token is, given its caption and the tokens before it.

Teacher-forced and conditional, without guidance, which no likelihood belongs to. Values are means over a clip's frames,
in nats a token, for each codebook apart; exp of their mean over clips is the perplexity. They compare models that read
one codec's tokens, and no others.

K codebooks, T frames, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..distill.data import delayed
from ..distill.divergence import kl, log_probs
from ..pipeline import Pipeline
from ..records import Cancelled

OnClip = Callable[[int, int], None]
"""Told after every clip: how many are done, and of how many."""


class Tokens(Protocol):
    """What is read of a token dataset (`tokens.TokenDataset`): `records` with `captions`, and codes int64 [K,T]."""

    records: Sequence[dict]
    codebooks: int

    def clip(self, index: int) -> Tensor: ...


def token_likelihood(
    pipeline: Pipeline,
    dataset: Tokens,
    clips: Sequence[int] | None = None,
    frames: int | None = None,
    on_progress: OnClip | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Mean negative log-likelihood of clips, conditional on the first caption of each.

    Args:
        pipeline: any model, float or quantized.
        dataset: tokens of the model's own codec.
        clips: which clips, by number; None for all.
        frames: how much of each clip, from its start on; None for as much as the model sees at once. A clip that ends
            sooner is taken whole.
        on_progress: told after every clip how many are done, and of how many.
        should_stop: asked before every clip.

    Returns:
        float64 [n,K], nats a token.

    Raises:
        ValueError: codes that are not the model's, no such clip, or fewer frames than 1 or more than the model sees.
        Cancelled: `should_stop` said so.
    """

    def surprise(codes: Tensor, caption: str) -> Tensor:
        log_p, targets, valid = _read(pipeline, codes, caption)
        return _mean(-log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1), valid)

    return _over_clips([pipeline], dataset, clips, frames, surprise, on_progress, should_stop)


def divergence_to(
    teacher: Pipeline,
    student: Pipeline,
    dataset: Tokens,
    clips: Sequence[int] | None = None,
    frames: int | None = None,
    on_progress: OnClip | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Forward KL(teacher || student) of the next token, at every token of clips: 0 where the two agree.

    Args:
        teacher, student: two models of one codec; each reads the captions with its own text encoder.
        dataset, clips, frames, on_progress, should_stop: as for `token_likelihood`.

    Returns:
        float64 [n,K], nats a token.

    Raises:
        ValueError, Cancelled: as for `token_likelihood`; also where the models differ in codebooks, entries or delays.
    """
    ours, theirs = ((c.codebooks, c.entries, c.delays) for c in (teacher.decoder.config, student.decoder.config))
    if ours != theirs:
        raise ValueError(f"teacher and student must share codebooks, entries and delays, got {ours} and {theirs}")

    def divergence(codes: Tensor, caption: str) -> Tensor:
        log_p, _, valid = _read(teacher, codes, caption)
        return _mean(kl(log_p, _read(student, codes, caption)[0]), valid)

    return _over_clips([teacher, student], dataset, clips, frames, divergence, on_progress, should_stop)


def perplexity(nll: np.ndarray) -> np.ndarray:
    """Perplexity of each codebook [K] from `token_likelihood`'s [n,K]; clips count alike."""
    return np.exp(np.asarray(nll).mean(axis=0))


def _read(pipeline: Pipeline, codes: Tensor, caption: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [K,T] -> log-probabilities float64 [K,P,V] of each next token, the tokens [K,P], and what is valid [K,P].

    P = T + the longest delay. The whole clip is read at once: the numbers of a step at a time, but for rounding.
    """
    config = pipeline.decoder.config
    inputs, targets, valid = (x.to(pipeline.device) for x in delayed(codes.unsqueeze(0), config.delays, config.pad))
    states, mask = pipeline.text_encoder.encode([caption])
    logits = pipeline.decoder.logits(inputs, states, mask)[0]
    return log_probs(logits.double()), targets[0].masked_fill(~valid[0], 0), valid[0]


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid positions of values [K,P] -> float64 [K]."""
    return (values.double() * valid).sum(1) / valid.sum(1)


@torch.inference_mode()
def _over_clips(
    models: Sequence[Pipeline],
    dataset: Tokens,
    clips: Sequence[int] | None,
    frames: int | None,
    measure: Callable[[Tensor, str], Tensor],
    on_progress: OnClip | None,
    should_stop: Callable[[], bool] | None,
) -> np.ndarray:
    count = len(dataset.records)
    chosen = range(count) if clips is None else list(clips)
    rows = []
    for done, codes, caption in _clips(models, dataset, chosen, frames):
        if should_stop is not None and should_stop():
            raise Cancelled(f"stopped after {done} of {len(chosen)} clips")
        rows.append(measure(codes, caption).cpu().numpy())
        if on_progress is not None:
            on_progress(done + 1, len(chosen))
    return np.stack(rows)


def _clips(
    models: Sequence[Pipeline], dataset: Tokens, chosen: Sequence[int], frames: int | None
) -> Iterator[tuple[int, Tensor, str]]:
    """How many clips came before, the codes [K,T] of a clip, and its caption."""
    config, longest = models[0].decoder.config, min(model.window_frames for model in models)
    frames = longest if frames is None else frames
    if not 1 <= frames <= longest:
        raise ValueError(f"frames must be 1 to {longest}, which is what the model sees at once, got {frames}")
    outside = [index for index in chosen if not 0 <= index < len(dataset.records)]
    if outside or not len(chosen):
        got = outside[0] if outside else "none"
        raise ValueError(f"clips must be numbers below {len(dataset.records)}, at least one, got {got}")
    for done, index in enumerate(chosen):
        codes = dataset.clip(index)[:, :frames]
        if codes.shape[0] != config.codebooks or int(codes.min()) < 0 or int(codes.max()) >= config.entries:
            raise ValueError(
                f"clip {index} has {codes.shape[0]} codebooks with codes {int(codes.min())} to {int(codes.max())}; "
                f"the model reads {config.codebooks} of {config.entries} entries"
            )
        yield done, codes, dataset.records[index]["captions"][0]
