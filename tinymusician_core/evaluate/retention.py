"""How much of a teacher a smaller variant keeps, as one number. Declared before anything was measured.

    likelihood = exp(NLL_teacher - NLL_variant)
    sound      = (1 - FADinf_variant / tr S) / (1 - FADinf_teacher / tr S)
    prompt     = kappa_variant / kappa_teacher
    retention  = (likelihood * sound * prompt)^(1/3)

NLL is the mean negative log-likelihood, in nats a token, of held-out music under the model: the first line is a ratio
of perplexities, 1 where the variant foresees music that neither has heard as well as its teacher does.

FADinf is the Fréchet audio distance to the reference, extrapolated to endlessly many clips, and tr S the total variance
of the reference. 1 - FADinf / tr S is 1 for music spread just as the reference is, and 0 for a model that always plays
the average clip: all mean, no spread, FAD = tr S.

kappa is the mean, over the attributes that prompts ask for, of (accuracy - chance) / (1 - chance): 1 where every clip
is what its prompt asked for, 0 where clips follow other clips' prompts as well as their own.

Each of the three is 1 for a variant like its teacher, may be above 1, and is 0 where the variant does no better than
the trivial model. Where the teacher itself does no better, nothing can be kept, and the figure is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

PARTS = ("likelihood", "sound", "prompt")


def likelihood_kept(teacher_nll: float, variant_nll: float) -> float:
    """Ratio of perplexities, from mean negative log-likelihoods in nats."""
    return math.exp(teacher_nll - variant_nll)


def sound_kept(teacher_fad: float, variant_fad: float, variance: float) -> float | None:
    """Share of the reference's variance that a variant reaches, over the teacher's, from two distances.

    Raises:
        ValueError: a reference without variance.
    """
    if not variance > 0:
        raise ValueError(f"the reference must have some variance, got {variance}")
    return _ratio(1.0 - variant_fad / variance, 1.0 - teacher_fad / variance)


def prompt_kept(teacher_kappas: Sequence[float], variant_kappas: Sequence[float]) -> float | None:
    """Mean kappa over the same attributes, variant over teacher.

    Raises:
        ValueError: no attribute, or not the same number for both.
    """
    if not teacher_kappas or len(teacher_kappas) != len(variant_kappas):
        counts = f"{len(teacher_kappas)} and {len(variant_kappas)}"
        raise ValueError(f"teacher and variant need a kappa for each of the same attributes, got {counts}")
    return _ratio(math.fsum(variant_kappas) / len(variant_kappas), math.fsum(teacher_kappas) / len(teacher_kappas))


def _ratio(variant: float, teacher: float) -> float | None:
    return max(0.0, variant) / teacher if teacher > 0 else None


def retention(likelihood: float | None, sound: float | None, prompt: float | None) -> float | None:
    """The geometric mean of the three; None where one of them is not known."""
    parts = (likelihood, sound, prompt)
    return None if None in parts else math.prod(parts) ** (1 / 3)
