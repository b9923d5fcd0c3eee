"""Adherence against counting by hand, and its chance against shuffled prompts."""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pytest

from tinymusician_core.domain import INSTRUMENTS, MODES, STYLES, TEMPI
from tinymusician_core.evaluate.adherence import ATTRIBUTES, Score, adherence, hits, hits_of, score
from tinymusician_core.evaluate.asked import Asked
from tinymusician_core.evaluate.second_opinion import Opinion

CLASSES = dict(zip(ATTRIBUTES, (INSTRUMENTS, STYLES, TEMPI, MODES), strict=True))


@dataclass(frozen=True)
class Hears:
    """A judge that hears what it is told to."""

    instrument: str
    style: str
    tempo: str
    mode: str

    def best(self, head):
        return getattr(self, head)


def clips(n, seed, right=0.8):
    """Prompts that leave some attributes open, and clips that follow them with that probability."""
    rng = np.random.default_rng(seed)
    wanted, heard = [], []
    for _ in range(n):
        truth = {name: str(rng.choice(known[:3])) for name, known in CLASSES.items()}
        wanted.append(Asked(**{name: label if rng.random() < 0.7 else None for name, label in truth.items()}))
        heard.append(
            Hears(**{k: v if rng.random() < right else str(rng.choice(CLASSES[k][:3])) for k, v in truth.items()})
        )
    return wanted, heard


def test_by_hand():
    found = score(["a", "b", "a", None, "b"], ["a", "a", "b", "a", "b"])
    assert found.n == 4
    assert found.accuracy == 0.5
    # a is asked for by 1/2 of those that ask and heard in 3/5 of the clips; b by 1/2 and in 2/5.
    assert found.chance == pytest.approx(0.5)
    assert found.kappa == pytest.approx(0.0)
    assert score(["a", "b"], ["a", "b"]) == Score(1.0, 2, 0.5, 1.0)
    assert score(["a", "b"], ["b", "a"]) == Score(0.0, 2, 0.5, -1.0)


def test_chance_is_the_mean_over_every_order_of_the_prompts():
    wanted, heard = ["a", None, "b", "b", "c", None], ["a", "b", "b", None, "a", "c"]
    every = [score(order, heard).accuracy for order in permutations(wanted)]
    assert score(wanted, heard).chance == pytest.approx(np.mean(every))


def test_a_shuffled_prompt_list_drops_adherence_to_chance():
    wanted, heard = clips(150, seed=1)
    own, rng = adherence(wanted, heard), np.random.default_rng(2)
    shuffled = [adherence([wanted[i] for i in rng.permutation(150)], heard) for _ in range(400)]
    for name in ATTRIBUTES:
        accuracies = np.array([each[name].accuracy for each in shuffled])
        error = accuracies.std() / np.sqrt(len(accuracies))
        assert abs(accuracies.mean() - own[name].chance) < 5 * error
        assert {each[name].chance for each in shuffled} == {own[name].chance}
        assert own[name].accuracy > accuracies.max()
        assert own[name].kappa > 0.5
        assert abs(np.mean([each[name].kappa for each in shuffled])) < 0.05


def test_only_clips_whose_prompt_asked_count():
    wanted, heard = clips(60, seed=3)
    found, by_clip = adherence(wanted, heard), hits(wanted, heard)
    for name in ATTRIBUTES:
        asking = [i for i, each in enumerate(wanted) if getattr(each, name) is not None]
        right = [getattr(wanted[i], name) == getattr(heard[i], name) for i in asking]
        assert found[name].n == len(asking) < 60
        assert found[name].accuracy == pytest.approx(np.mean(right))
        assert by_clip[name].dtype == np.float64
        assert np.isnan(by_clip[name]).sum() == 60 - len(asking)
        assert np.nanmean(by_clip[name]) == pytest.approx(found[name].accuracy)


def test_what_was_not_measured_is_none():
    assert score([None, None], ["a", "b"]) == Score(None, 0, None, None)
    assert score([], []) == Score(None, 0, None, None)
    assert score(["a", "a"], ["a", "a"]) == Score(1.0, 2, 1.0, None)


def test_a_judge_that_cannot_say_has_not_heard_it():
    assert hits_of(["a", None, "b"], [None, None, "b"])[[0, 2]].tolist() == [0.0, 1.0]
    assert score(["a", "b"], [None, None]) == Score(0.0, 2, 0.0, 0.0)


def test_a_second_opinion_is_asked_for_tempo_and_mode_alone():
    wanted = [Asked("piano", "reel", "fast", "major"), Asked("harp", "air", "slow", "minor")]
    opinions = [Opinion(150.0, False, "fast", 0, "major"), Opinion(150.0, False, "fast", 0, "minor")]
    found = adherence(wanted, opinions)
    assert set(found) == set(hits(wanted, opinions)) == {"tempo", "mode"}
    assert found["tempo"] == Score(0.5, 2, 0.5, 0.0)
    assert found["mode"].accuracy == 1


def test_clips_without_prompts_are_refused():
    with pytest.raises(ValueError, match="got 1 and 2"):
        score(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="got 2 and 3"):
        adherence(*(x[:n] for x, n in zip(clips(3, seed=0), (2, 3), strict=True)))
