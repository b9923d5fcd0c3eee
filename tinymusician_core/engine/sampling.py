"""From logits to tokens: guidance, temperature, top-k and top-p, in the order that transformers applies them.

B batch, K codebooks, V codebook size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..records import SamplingSpec


def guide(logits: Tensor, cfg: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598, as MusicGen has it).

    The result is unconditional + cfg * (conditional - unconditional).

    Args:
        logits: [2B,K,V], the conditional half first. Its memory is reused.
        cfg: the guidance scale.

    Returns:
        [B,K,V].
    """
    conditional, unconditional = logits.chunk(2)
    return unconditional.add_(conditional.sub_(unconditional), alpha=cfg)


class Sampler:
    """Draws one token a codebook. All randomness comes from a generator of its own, seeded from `spec.seed`.

    A draw is the arg max of logits / temperature - log E with E exponential, which is a draw from their softmax
    (the Gumbel-max trick).
    """

    def __init__(self, spec: SamplingSpec, device: torch.device | str = "cpu"):
        self.spec = spec
        self._generator = torch.Generator(device=device).manual_seed(spec.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits float32 [B,K,V] -> tokens int64 [B,K]."""
        if self.spec.greedy:
            return logits.argmax(-1)
        scores, tokens = self._keep(logits)
        noise = torch.empty_like(scores).exponential_(generator=self._generator).log_()
        choice = scores.sub(noise).argmax(-1)
        return choice if tokens is None else tokens.gather(-1, choice.unsqueeze(-1)).squeeze(-1)

    def _keep(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """What may be drawn: scores, and the token of each score where they are no longer in the vocabulary's order."""
        spec, tokens = self.spec, None
        top_p = spec.top_p or 0.0  # None where nobody asked and no model was asked
        if 0 < spec.top_k < logits.shape[-1]:
            logits, tokens = logits.topk(spec.top_k)
        scores = logits / spec.temperature
        if 0.0 < top_p < 1.0:
            if tokens is None:
                scores, tokens = scores.sort(dim=-1, descending=True)
            share = scores.softmax(-1)
            scores = scores.masked_fill(share.cumsum(-1) - share >= top_p, float("-inf"))
        return scores, tokens
