import pytest
import torch

from tinymusician_core.distill import divergence
from tinymusician_core.distill.loss import (
    LOSSES,
    LossSpec,
    distillation_loss,
    loss_named,
    position_weights,
    soft_loss,
)
from tinymusician_core.distill.schedule import Ramp, Stage, StageSchedule


@pytest.mark.parametrize("shape", ["linear", "cosine", "step"])
def test_a_ramp_holds_still_outside_and_never_turns_back(shape):
    ramp = Ramp(2.0, 1.0, begin=0.25, end=0.75, shape=shape)
    values = [ramp.at(step / 100) for step in range(101)]
    assert values[:25] == [2.0] * 25
    assert values[75:] == [1.0] * 26
    assert all(later <= earlier for earlier, later in zip(values, values[1:], strict=False))
    assert Ramp(0.0, 1.0, shape="linear").at(0.25) == 0.25
    assert Ramp(0.0, 1.0, shape="cosine").at(0.5) == pytest.approx(0.5)


def test_the_default_schedule_goes_from_bidirectional_to_skewed_and_cools():
    schedule = StageSchedule()
    assert schedule.at(0.0) == Stage(skewed=0.0, temperature=4.0)
    assert schedule.at(1.0) == Stage(skewed=1.0, temperature=1.0)
    assert 0.0 < schedule.at(0.5).skewed < 1.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ramp(0.0, 1.0, shape="wavy"), "wavy"),
        (lambda: Ramp(0.0, float("nan")), "nan"),
        (lambda: Ramp(0.0, 1.0, begin=0.6, end=0.5), "0.6 to 0.5"),
        (lambda: Ramp(0.0, 1.0).at(1.5), "progress is 1.5"),
        (lambda: StageSchedule(skewed=Ramp(0.0, 2.0)), "stage weight is 2.0"),
        (lambda: StageSchedule(temperature=Ramp(2.0, 0.0)), "temperature is 0.0"),
        (lambda: LossSpec(cross_entropy=0.0, distillation=0.0), "both 0"),
        (lambda: LossSpec(forward_share=2.0), "forward_share is 2.0"),
        (lambda: LossSpec("skew-kl", (1.0,)), "parameters of skew-kl are 1; numbers between 0 and 1"),
        (lambda: LossSpec("jsd", (0.2, 0.3)), "jsd takes 1 parameters, got 0.2, 0.3"),
        (lambda: loss_named("forward-kl:0.2"), "forward-kl takes 0 parameters, got 0.2"),
        (lambda: loss_named("alpha-beta:0.2,x"), "parameters of alpha-beta must be numbers, got '0.2,x'"),
        (lambda: loss_named("jsd", temperature="3:2:1"), "a temperature is '3:2:1'; one number, or two"),
        (lambda: loss_named("jsd", temperature="0"), "a temperature is 0.0; above 0"),
        (lambda: loss_named("jsd", temperature="warm"), "a temperature must be numbers, got 'warm'"),
        (lambda: LossSpec(cross_entropy=-1.0), "cross_entropy is -1.0"),
        (lambda: loss_named("magic"), "'magic'; allowed: stage-mixed"),
    ],
)
def test_bad_schedules_and_losses_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def batch(seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    teacher = torch.randn(2, 4, 6, 16, generator=random)
    student = torch.randn(2, 4, 6, 16, generator=random)
    targets = torch.randint(0, 16, (2, 4, 6), generator=random)
    valid = torch.ones(2, 4, 6, dtype=torch.bool)
    for book in range(4):  # a delay pattern of three frames: book k starts k steps late
        valid[:, book, :book] = False
        valid[:, book, book + 3 :] = False
    return teacher, student, targets, valid


def test_the_mix_is_the_weighted_sum_of_its_parts():
    teacher, student, _, _ = batch()
    spec = LossSpec(parameters=(0.3,), forward_share=0.7, skew_forward_share=0.2)
    stage = Stage(skewed=0.4, temperature=1.5)
    expected = (
        0.6 * 0.7 * divergence.forward_kl(teacher, student, 1.5)
        + 0.6 * 0.3 * divergence.reverse_kl(teacher, student, 1.5)
        + 0.4 * 0.2 * divergence.skew_forward_kl(teacher, student, 1.5, 0.3)
        + 0.4 * 0.8 * divergence.skew_reverse_kl(teacher, student, 1.5, 0.3)
    )
    assert torch.allclose(soft_loss(teacher, student, stage, spec), expected, atol=1e-6)
    assert soft_loss(teacher, teacher, stage, spec).abs().max() < 1e-6


NAMED = {
    "forward-kl": divergence.forward_kl,
    "reverse-kl": divergence.reverse_kl,
    "skew-kl": divergence.skew_forward_kl,
    "skew-reverse-kl": divergence.skew_reverse_kl,
    "jsd": divergence.jensen_shannon,
    "alpha-beta": divergence.alpha_beta,
}


def test_the_named_losses_are_the_divergences_they_name():
    teacher, student, targets, valid = batch()
    assert {*NAMED, "stage-mixed", "cross-entropy"} == set(LOSSES)
    for name, function in NAMED.items():
        spec = loss_named(name, temperature="1")
        found = distillation_loss(teacher, student, targets, valid.float(), spec, progress=0.3).distillation
        assert found == pytest.approx(float(function(teacher, student)[valid].mean()), rel=1e-5), name


def test_parameters_and_temperatures_stand_in_the_name_and_beside_it():
    teacher, student, _, _ = batch()
    spec = loss_named("alpha-beta:0.5,0.4", temperature="4:2", cross_entropy=0.25)
    assert spec.cross_entropy == 0.25
    assert (spec.schedule.at(0.0).temperature, spec.schedule.at(0.8).temperature) == (4.0, 2.0)
    found = soft_loss(teacher, student, spec.schedule.at(1.0), spec)
    torch.testing.assert_close(found, divergence.alpha_beta(teacher, student, 2.0, 0.5, 0.4))
    assert {loss_named(name).schedule.at(0.0).temperature for name in LOSSES} == {4.0}
    assert loss_named("jsd", temperature="3").schedule.at(0.5).temperature == 3.0
    skewed = loss_named("skew-kl:0.4", temperature="1")
    found = soft_loss(teacher, student, skewed.schedule.at(0.0), skewed)
    torch.testing.assert_close(found, divergence.skew_forward_kl(teacher, student, alpha=0.4))


def test_codebooks_count_by_their_weights_and_parts_add_up_to_the_whole():
    teacher, student, targets, valid = batch()
    spec, books = LossSpec(cross_entropy=0.25), (3.0, 1.0, 0.5, 0.0)
    weights = position_weights(valid, books)
    soft = soft_loss(teacher, student, spec.schedule.at(0.5), spec)
    expected = sum(float(soft[:, k][valid[:, k]].sum()) * books[k] for k in range(4)) / float(weights.sum())
    found = distillation_loss(teacher, student, targets, weights, spec, progress=0.5)
    assert float(found.distillation) == pytest.approx(expected, rel=1e-5)
    parts = [
        distillation_loss(
            *(x[i : i + 1] for x in (teacher, student, targets, weights)), spec, 0.5, float(weights.sum())
        )
        for i in range(2)
    ]
    for name in ("total", "cross_entropy", "distillation"):
        assert float(sum(getattr(p, name) for p in parts)) == pytest.approx(float(getattr(found, name)), rel=1e-5)


def test_codebooks_count_alike_and_padding_counts_nothing():
    teacher, student, targets, valid = batch()
    spec = LossSpec(cross_entropy=0.25, distillation=2.0)
    found = distillation_loss(teacher, student, targets, valid.float(), spec, progress=0.5)
    soft = soft_loss(teacher, student, spec.schedule.at(0.5), spec)
    hard = torch.nn.functional.cross_entropy(student.movedim(-1, 1), targets, reduction="none")
    by_book = [[part[:, k][valid[:, k]].mean() for k in range(4)] for part in (soft, hard)]
    soft_mean, hard_mean = (float(sum(books) / 4) for books in by_book)
    assert float(found.distillation) == pytest.approx(soft_mean, rel=1e-5)
    assert float(found.cross_entropy) == pytest.approx(hard_mean, rel=1e-5)
    assert float(found.total) == pytest.approx(0.25 * hard_mean + 2.0 * soft_mean, rel=1e-5)
    student[~valid.unsqueeze(-1).expand_as(student)] = float("nan")
    targets[~valid] = 999  # what stands on padding is never read
    again = distillation_loss(teacher, student, targets, valid.float(), spec, progress=0.5)
    assert torch.equal(again.total, found.total)


def test_cross_entropy_alone_needs_no_teacher_and_nothing_valid_is_an_error():
    _, student, targets, valid = batch()
    found = distillation_loss(
        None, student.requires_grad_(), targets, valid.float(), loss_named("cross-entropy"), progress=0.0
    )
    assert found.total.requires_grad
    assert float(found.distillation) == 0.0
    with pytest.raises(ValueError, match="no teacher logits"):
        distillation_loss(None, student, targets, valid.float(), LossSpec(), progress=0.0)
    with pytest.raises(ValueError, match="no position"):
        distillation_loss(None, student, targets, 0 * valid.float(), loss_named("cross-entropy"), progress=0.0)
