"""From the records of an evaluation to its figures: pure arithmetic, the same for the same records.

Every figure comes with an interval (`bootstrap.py`). Clips, held-out windows and reference windows are halved apart,
each of the three alike for all variants, so that a ratio of two variants compares them on the same prompts, the same
held-out music and the same reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from ..guidance import GUIDANCE, guidance_record
from ..records import Figures
from .bootstrap import DRAWS, bootstrap, proportion
from .limits import compared
from .reference import REAL, ROUND_TRIP, Reference
from .retention import likelihood_kept, prompt_kept, retention, sound_kept
from .scores import LISTENER, SECOND, Row, Scores, Statistic
from .settings import MIN_CLIPS

SPEED = ("first_sound_ms", "ms_per_step", "x_realtime", "total_s", "peak_memory_bytes", "disk_bytes")
LIMITS = {"fad": (0.0, math.inf), "nll": (0.0, math.inf), "perplexity": (1.0, math.inf)}
LIMITS |= {"kl_to_teacher": (0.0, math.inf), "kappa": (-math.inf, 1.0), "clap_score": (-1.0, 1.0)}
ANY, POSITIVE = (-math.inf, math.inf), (0.0, math.inf)
FIGURES = ("nll", "perplexity", "kl_to_teacher", "fad", "fad_infinity", "kad", "kappa", "clap_score")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures of an evaluation; `as_dict` is the JSON record that the command prints.

    Attributes:
        settings: what was asked for.
        context: with which judges, reference and versions.
        variants: `model`, `hash`, `guidance` (the scale, the passes a step takes, and what is built in), `sampling`,
            `figures` of speed and size, and `quality` with intervals; one a model.
        baselines: `name` and `quality` of real music, and of real music through the codec.
        codec: what the codec's round trip costs, by measure, with intervals.
        judges: how often listener and second opinion are right about music of which the truth is known.
        retention: "student/teacher" -> the headline and its parts, the plain ratio of every figure, and how much more
            often than the other the one is what the same prompts ask for.
        steadiness: whether clips of 20 s and more stay one piece of music, as `limits.compared` has it, and `seconds`,
            the length of the real music's windows; None for shorter clips.
    """

    settings: Mapping
    context: Mapping
    variants: tuple[Mapping, ...]
    baselines: tuple[Mapping, ...]
    codec: Mapping
    judges: Mapping
    retention: Mapping[str, Mapping]
    steadiness: Mapping | None

    def as_dict(self) -> dict:
        """All of it, ready for JSON."""
        return asdict(self)


class Intervals:
    """Figures with intervals, all from the same halves.

    Args:
        clips, windows, reference: how many of each there are; 0 windows where nothing is known of them.
        seed: of the halves.
        draws: how many.
    """

    def __init__(self, clips: int, windows: int, reference: int, seed: int, draws: int):
        counts = (clips, windows or clips, reference)
        self._columns = tuple(np.arange(count, dtype=np.int32) for count in counts)
        self._how = {"seed": seed, "n": draws, "paired": ("clips", "windows", "reference"), "least": 10}

    def __call__(self, statistic: Statistic, n: int, limits: tuple[float, float] = ANY) -> dict:
        """A figure that stands on `n` clips or windows: value, low, high, n."""
        found = bootstrap(statistic, *self._columns, limits=limits, **self._how)
        return asdict(replace(found, n=n))


def summarise(
    settings: Mapping,
    context: Mapping,
    rows: Sequence[Row],
    reference: Reference,
    listener_accuracy: Mapping,
    seed: int = 0,
    draws: int = DRAWS,
) -> Evaluation:
    """All figures.

    Args:
        settings, context: go into the record as they are.
        rows: one a variant, the teacher first; as many clips and windows each.
        reference: what they are compared with.
        listener_accuracy: as the listener tells it.
        seed, draws: of the intervals.
    """
    scores = [Scores(row, reference, seed) for row in rows]
    windows = max(each.windows for each in scores)
    intervals = Intervals(len(rows[0].clips), windows, len(reference.embeddings), seed, draws)
    variants = [
        {"model": row.model, "hash": row.hash, **_drawn(row), "figures": row.figures.as_dict()}
        | row.figures.more()
        | {"quality": quality(each, intervals)}
        for row, each in zip(rows, scores, strict=True)
    ]
    return Evaluation(
        settings,
        dict(context) | {"reference": reference.name, "total_variance": scores[0].variance(slice(None))},
        tuple(variants),
        tuple(_baselines(reference, seed, draws)),
        {name: _mean_of(values, seed, draws) for name, values in (reference.fidelity or {}).items()},
        {LISTENER: listener_accuracy, SECOND: _opinions_right(reference)},
        _retention(rows, scores, intervals),
        _steadiness(rows, reference, seed, draws),
    )


def _drawn(row: Row) -> dict:
    """How a variant's clips were drawn: its guidance, and the rest, which is the same for all of them."""
    guidance = {"cfg": row.spec.cfg, "passes": 2 if row.guidance is None and row.spec.cfg != 1.0 else 1}
    built_in = guidance_record(row.guidance).get(GUIDANCE)
    sampling = {name: getattr(row.spec, name) for name in ("temperature", "top_k", "top_p", "greedy")}
    return {"guidance": {**guidance, "built_in": built_in}, "sampling": sampling}


def _steadiness(rows: Sequence[Row], reference: Reference, seed: int, draws: int) -> dict | None:
    clips = {row.model: [each.steadiness for each in row.clips] for row in rows}
    found = compared(clips, reference.steady, seed, draws)
    return None if found is None else {"seconds": reference.steady_s, **found}


def quality(scores: Scores, intervals: Intervals) -> dict:
    """The quality of one row by name; None for what was not measured."""
    found: dict = dict.fromkeys(FIGURES)
    for name, statistic in scores.statistics.items():
        found[name] = intervals(statistic, scores.count(name), LIMITS.get(name, ANY))
    for name, values in (("nll_per_codebook", scores.row.nll), ("kl_per_codebook", scores.row.kl)):
        found[name] = None if values is None else [_column(values[:, k], intervals) for k in range(values.shape[1])]
    return found | {"adherence": _adherence(scores, intervals)}


def _column(values: np.ndarray, intervals: Intervals) -> dict:
    return intervals(lambda clips, windows, reference: float(values[windows].mean()), len(values), POSITIVE)


def _adherence(scores: Scores, intervals: Intervals) -> dict:
    """Judge -> attribute -> accuracy (Wilson's interval), chance and kappa."""
    found: dict = {judge: {} for judge, _ in scores.judged()}
    every = np.arange(len(scores.row.clips))
    for judge, attribute in scores.judged():
        score = scores.score(judge, attribute, every)

        def kappa(*at: np.ndarray, judge: str = judge, attribute: str = attribute) -> float | None:
            return scores.score(judge, attribute, at[0]).kappa

        found[judge][attribute] = {
            "accuracy": asdict(proportion(scores.hits(judge, attribute))),
            "chance": score.chance,
            "kappa": intervals(kappa, score.n, LIMITS["kappa"]),
        }
    return found


def _baselines(reference: Reference, seed: int, draws: int) -> list[dict]:
    """Real music and the codec's round trip of it, as far as there are any, in the variants' figures."""
    made = []
    for name, clips in ((REAL, reference.real), (ROUND_TRIP, reference.round_trip)):
        if len(clips) >= MIN_CLIPS:
            scores = Scores(Row(name, None, Figures(), clips), reference, seed)
            intervals = Intervals(len(clips), 0, len(reference.embeddings), seed, draws)
            made.append({"name": name, "quality": quality(scores, intervals)})
    return made


def _opinions_right(reference: Reference) -> dict:
    """How often the second opinion is right about tempo and mode of real music, and of the same after the codec."""
    found: dict = {}
    for attribute in ("tempo", "mode"):
        truth = [facts[attribute] for facts in reference.facts]
        for kind, clips in (("real", reference.real), ("codec", reference.round_trip)):
            hits = [getattr(each.opinion, attribute) == true for each, true in zip(clips, truth, strict=False)]
            found.setdefault(attribute, {})[kind] = asdict(proportion(hits))
    return found


def _mean_of(values: Sequence[float], seed: int, draws: int) -> dict:
    return asdict(bootstrap(lambda x: float(x.mean()), np.array(values), seed=seed, n=draws))


def _retention(rows: Sequence[Row], scores: Sequence[Scores], intervals: Intervals) -> dict:
    """Every variant over the teacher, and over the variant before it."""
    pairs = [(k, 0) for k in range(1, len(rows))] + [(k, k - 1) for k in range(2, len(rows))]
    return {
        f"{rows[k].model}/{rows[of].model}": _kept(scores[k], scores[of], intervals)
        | {"ratios": _ratios(scores[k], scores[of], intervals), "heard": _heard(scores[k], scores[of], intervals)}
        | {"speed_ratios": _speed(rows[k], rows[of])}
        for k, of in pairs
    }


def _kept(variant: Scores, teacher: Scores, intervals: Intervals) -> dict:
    """The headline and its three parts (`retention.py`)."""
    small, large = variant.statistics, teacher.statistics

    def likelihood(*at: np.ndarray) -> float | None:
        return likelihood_kept(large["nll"](*at), small["nll"](*at)) if "nll" in small and "nll" in large else None

    def sound(*at: np.ndarray) -> float | None:
        return sound_kept(large["fad_infinity"](*at), small["fad_infinity"](*at), variant.variance(at[2]))

    def prompt(*at: np.ndarray) -> float | None:
        kappas = teacher.kappas(at[0]), variant.kappas(at[0])
        return None if None in kappas else prompt_kept(*kappas)

    def headline(*at: np.ndarray) -> float | None:
        return retention(likelihood(*at), sound(*at), prompt(*at))

    clips = len(variant.row.clips)
    return {
        "retention": intervals(headline, clips, POSITIVE),
        "likelihood": intervals(likelihood, variant.windows, POSITIVE),
        "sound": intervals(sound, clips, POSITIVE),
        "prompt": intervals(prompt, clips, POSITIVE),
        "attributes": list(teacher.attributes),
    }


def _ratios(variant: Scores, teacher: Scores, intervals: Intervals) -> dict:
    """Variant over teacher, figure by figure; None where one has no such figure, or the teacher's is not above 0."""
    small, large, found = variant.statistics, teacher.statistics, {}
    for name in FIGURES:
        if name not in small or name not in large:
            found[name] = None
            continue

        def ratio(*at: np.ndarray, name: str = name) -> float | None:
            over, under = small[name](*at), large[name](*at)
            return over / under if over is not None and under is not None and under > 0 else None

        found[name] = intervals(ratio, variant.count(name))
    return found


def _heard(variant: Scores, teacher: Scores, intervals: Intervals) -> dict:
    """Attribute -> the listener's accuracy on the variant's clips less that on the teacher's, of the same prompts."""
    found = {}
    for name in (attribute for judge, attribute in variant.judged() if judge == LISTENER):
        more = variant.hits(LISTENER, name) - teacher.hits(LISTENER, name)

        def gain(*at: np.ndarray, more: np.ndarray = more) -> float | None:
            told = more[at[0]]
            return None if np.isnan(told).all() else float(np.nanmean(told))

        found[name] = intervals(gain, int((~np.isnan(more)).sum()), (-1.0, 1.0))
    return found


def _speed(variant: Row, teacher: Row) -> dict:
    """Ratios of speed and size, by name: of the medians, with the least and the most that the runs of both allow.

    They were measured a few times, not once a clip: these ends are no 95% interval. A size has none.
    """
    small, large = variant.figures, teacher.figures
    return {name: _speed_ratio(name, small, large) for name in SPEED}


def _speed_ratio(name: str, small: Figures, large: Figures) -> dict | None:
    over, under = getattr(small, name), getattr(large, name)
    if over is None or not under:
        return None
    ends = [getattr(each.spread, name, None) for each in (small, large)]
    if None in ends or not ends[1][0]:
        return {"value": over / under, "low": None, "high": None, "n": None}
    (low, high), (least, most) = ends
    return {"value": over / under, "low": low / most, "high": high / least, "n": small.runs}
