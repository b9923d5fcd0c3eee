"""Divergences between a teacher's and a student's next-token distributions.

Every function takes two logit tensors [..., V] and returns one value a position [...], in nats: reduction, masks and
weights belong to the caller (`distill.loss`). Everything stays in log space; a mixture of two distributions is a
logsumexp of their log-probabilities, so that logits of any finite size give finite values and gradients.

With p the teacher's and q the student's distribution at temperature T:

    forward_kl        KL(p || q)                        Hinton et al., "Distilling the Knowledge in a Neural Network"
    reverse_kl        KL(q || p)                        Gu et al., "MiniLLM", ICLR 2024
    skew_forward_kl   KL(p || a p + (1 - a) q)          Ko et al., "DistiLLM", ICML 2024, with a = 0.1
    skew_reverse_kl   KL(q || (1 - a) p + a q)          the same
    jensen_shannon    b KL(p || m) + (1 - b) KL(q || m) Agarwal et al., "GKD", ICLR 2024; m = b p + (1 - b) q
    alpha_beta        see there                         Wang et al., "ABKD", ICML 2025

Each value is multiplied by T squared, which keeps the size of its gradient independent of T (Hinton et al., section 2).
Half-precision logits are read as float32; float64 stays float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SKEW = 0.1  # DistiLLM's alpha: the share of the distribution's own side in the mixture
ALPHA, BETA = 0.2, 0.7  # what ABKD's authors distil GPT-2 with


def log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [..., V] of `logits` [..., V] at a temperature, in float32 or better and never minus infinity.

    A logit of minus infinity (a token that may never be drawn) becomes a very large negative log-probability, so that
    0 * log 0 is 0 and no gradient is NaN. Raises ValueError for a temperature that is not a positive finite number.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}; a finite number above 0 is allowed")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    floor = torch.finfo(wide.dtype).min / 1024  # room for the difference of two, for T squared and for a sum
    return torch.log_softmax(wide / temperature, dim=-1).clamp_min(floor)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) [...] from log-probabilities [..., V]: the sum of p (log p - log q)."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """Log-probabilities [..., V] of share * p + (1 - share) * q, by logsumexp.

    Raises ValueError unless 0 < share < 1: at the ends there is no mixture, and the plain KL says what is meant.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"a mixture's share is {share}; a number between 0 and 1, both excluded, is allowed")
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def skew_kl(log_p: Tensor, log_q: Tensor, alpha: float = SKEW) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q) [...] from log-probabilities [..., V]; at most log(1 / alpha)."""
    return kl(log_p, log_mixture(log_p, log_q, alpha))


def js(log_p: Tensor, log_q: Tensor, share: float = 0.5) -> Tensor:
    """share KL(p || m) + (1 - share) KL(q || m) [...] with m = share p + (1 - share) q; at most log 2."""
    middle = log_mixture(log_p, log_q, share)
    return share * kl(log_p, middle) + (1.0 - share) * kl(log_q, middle)


def ab(log_p: Tensor, log_q: Tensor, alpha: float = ALPHA, beta: float = BETA) -> Tensor:
    """The alpha-beta divergence [...] from log-probabilities [..., V]; see `alpha_beta`.

    Written around the larger of the two probabilities, so that powers stay at or below 1 and what cancels near identity
    cancels exactly: with d = log p - log q and s = alpha + beta a token gives, over alpha beta s,
    q^s (alpha (e^(s d) - 1) - s (e^(alpha d) - 1)) for d <= 0, and
    p^s (beta (e^(-s d) - 1) - s (e^(-beta d) - 1)) for d > 0.
    """
    if not (0.0 < alpha < math.inf and 0.0 < beta < math.inf):
        raise ValueError(
            f"alpha is {alpha} and beta {beta}; finite numbers above 0 are allowed "
            "(1 and 0 would be the forward KL, 0 and 1 the reverse KL)"
        )
    both, apart = alpha + beta, log_p - log_q
    below, above = apart.clamp_max(0.0), -apart.clamp_min(0.0)
    parts = (both * log_q).exp() * (alpha * (both * below).expm1() - both * (alpha * below).expm1())
    parts = parts + (both * log_p).exp() * (beta * (both * above).expm1() - both * (beta * above).expm1())
    return parts.sum(dim=-1) / (alpha * beta * both)


def forward_kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p || q) times T squared [...]: the student must cover all that the teacher does. Hinton et al., 2015."""
    log_p, log_q = _pair(teacher, student, temperature)
    return kl(log_p, log_q) * temperature**2


def reverse_kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(q || p) times T squared [...]: the student must not do what the teacher does not. MiniLLM, 2024."""
    log_p, log_q = _pair(teacher, student, temperature)
    return kl(log_q, log_p) * temperature**2


def skew_forward_kl(teacher: Tensor, student: Tensor, temperature: float = 1.0, alpha: float = SKEW) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q) times T squared [...]. DistiLLM, 2024, equation 3."""
    log_p, log_q = _pair(teacher, student, temperature)
    return skew_kl(log_p, log_q, alpha) * temperature**2


def skew_reverse_kl(teacher: Tensor, student: Tensor, temperature: float = 1.0, alpha: float = SKEW) -> Tensor:
    """KL(q || (1 - alpha) p + alpha q) times T squared [...]. DistiLLM, 2024, section 3.1."""
    log_p, log_q = _pair(teacher, student, temperature)
    return skew_kl(log_q, log_p, alpha) * temperature**2


def jensen_shannon(teacher: Tensor, student: Tensor, temperature: float = 1.0, share: float = 0.5) -> Tensor:
    """The generalized Jensen-Shannon divergence times T squared [...]: symmetric for a share of 0.5.

    GKD, arXiv 2306.13649, section 2 ("generalized JSD").
    """
    log_p, log_q = _pair(teacher, student, temperature)
    return js(log_p, log_q, share) * temperature**2


def alpha_beta(
    teacher: Tensor, student: Tensor, temperature: float = 1.0, alpha: float = ALPHA, beta: float = BETA
) -> Tensor:
    """The alpha-beta divergence times T squared [...].

    D(p || q) = -1 / (alpha beta) sum(p^alpha q^beta - alpha / (alpha + beta) p^(alpha + beta)
                                                     - beta / (alpha + beta) q^(alpha + beta))

    The definition of the alpha-beta divergence in ABKD, arXiv 2505.04560, after Cichocki, Cruces and Amari,
    "Generalized Alpha-Beta Divergences", Entropy 2011, 13, 134-170. It goes to the forward KL for (1, 0) and to the
    reverse KL for (0, 1); between them alpha says how much large errors count, and beta how much the student's own
    confidence does.
    """
    log_p, log_q = _pair(teacher, student, temperature)
    return ab(log_p, log_q, alpha, beta) * temperature**2


def _pair(teacher: Tensor, student: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher logits are {list(teacher.shape)} and student logits {list(student.shape)}; one shape is allowed"
        )
    return log_probs(teacher, temperature), log_probs(student, temperature)
