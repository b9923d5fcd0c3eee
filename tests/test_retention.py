"""The headline number against arithmetic done by hand."""

import math

import numpy as np
import pytest

from tinymusician_core.evaluate.frechet import frechet_distance, total_variance
from tinymusician_core.evaluate.retention import likelihood_kept, prompt_kept, retention, sound_kept


def test_a_variant_like_its_teacher_keeps_all():
    assert likelihood_kept(4.2, 4.2) == 1
    assert sound_kept(30.0, 30.0, 100.0) == 1
    assert prompt_kept([0.5, 0.7], [0.7, 0.5]) == pytest.approx(1)
    assert retention(1, 1, 1) == 1


def test_by_hand():
    assert likelihood_kept(4.0, 4.0 + math.log(1.25)) == pytest.approx(0.8)
    assert sound_kept(20.0, 40.0, 100.0) == pytest.approx(0.6 / 0.8)
    assert prompt_kept([0.9, 0.3], [0.5, 0.1]) == pytest.approx(0.5)
    assert retention(0.8, 0.75, 0.5) == pytest.approx(0.3 ** (1 / 3))
    assert retention(0.8, 0.75, 0.5) == pytest.approx(0.6694329500821695)


def test_a_variant_may_be_better_than_its_teacher():
    assert likelihood_kept(4.0, 3.0) == pytest.approx(math.e)
    assert sound_kept(40.0, -1.0, 100.0) == pytest.approx(1.01 / 0.6)
    assert prompt_kept([0.4], [0.5]) == pytest.approx(1.25)


def test_no_better_than_the_trivial_model_is_nothing():
    assert sound_kept(20.0, 130.0, 100.0) == 0
    assert prompt_kept([0.4, 0.2], [-0.3, 0.1]) == 0
    assert retention(0.9, 0.0, 0.5) == 0


def test_where_the_teacher_keeps_nothing_there_is_no_ratio():
    assert sound_kept(100.0, 50.0, 100.0) is None
    assert prompt_kept([0.1, -0.1], [0.3, 0.2]) is None
    assert retention(0.9, None, 0.5) is None


def test_a_model_that_always_plays_the_average_clip_has_no_sound():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(300, 8)) * rng.uniform(0.5, 3, size=8)
    average = reference.mean(0) + 1e-9 * rng.normal(size=(300, 8))
    distance = frechet_distance(average, reference)
    assert distance == pytest.approx(total_variance(reference), rel=1e-6)
    assert sound_kept(0.0, distance, total_variance(reference)) == pytest.approx(0, abs=1e-6)
    assert sound_kept(0.0, frechet_distance(reference, reference), total_variance(reference)) == 1


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="some variance, got 0"):
        sound_kept(1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="got 2 and 1"):
        prompt_kept([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="got 0 and 0"):
        prompt_kept([], [])
