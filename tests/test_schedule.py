import pytest
import torch

from tinymusician_core.distill import divergence
from tinymusician_core.distill.loss import LOSSES, LossSpec, distillation_loss, loss_named, stage_mixed
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
    assert schedule.at(0.0) == Stage(skewed=0.0, temperature=2.0)
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
        (lambda: LossSpec(alpha=1.0), "alpha is 1.0"),
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
    spec = LossSpec(forward_share=0.7, skew_forward_share=0.2, alpha=0.3)
    stage = Stage(skewed=0.4, temperature=1.5)
    expected = (
        0.6 * 0.7 * divergence.forward_kl(teacher, student, 1.5)
        + 0.6 * 0.3 * divergence.reverse_kl(teacher, student, 1.5)
        + 0.4 * 0.2 * divergence.skew_forward_kl(teacher, student, 1.5, 0.3)
        + 0.4 * 0.8 * divergence.skew_reverse_kl(teacher, student, 1.5, 0.3)
    )
    assert torch.allclose(stage_mixed(teacher, student, stage, spec), expected, atol=1e-6)
    assert stage_mixed(teacher, teacher, stage, spec).abs().max() < 1e-6


def test_the_named_losses_are_the_divergences_they_name():
    teacher, student, targets, valid = batch()
    for name, function in {
        "forward-kl": divergence.forward_kl,
        "reverse-kl": divergence.reverse_kl,
        "skew-kl": divergence.skew_forward_kl,
        "skew-reverse-kl": divergence.skew_reverse_kl,
    }.items():
        found = distillation_loss(teacher, student, targets, valid, LOSSES[name], progress=0.3).distillation
        assert found == pytest.approx(float(function(teacher, student)[valid].mean()), rel=1e-5), name


def test_codebooks_count_alike_and_padding_counts_nothing():
    teacher, student, targets, valid = batch()
    spec = LossSpec(cross_entropy=0.25, distillation=2.0)
    found = distillation_loss(teacher, student, targets, valid, spec, progress=0.5)
    soft = stage_mixed(teacher, student, spec.schedule.at(0.5), spec)
    hard = torch.nn.functional.cross_entropy(student.movedim(-1, 1), targets, reduction="none")
    by_book = [[part[:, k][valid[:, k]].mean() for k in range(4)] for part in (soft, hard)]
    soft_mean, hard_mean = (float(sum(books) / 4) for books in by_book)
    assert float(found.distillation) == pytest.approx(soft_mean, rel=1e-5)
    assert float(found.cross_entropy) == pytest.approx(hard_mean, rel=1e-5)
    assert float(found.total) == pytest.approx(0.25 * hard_mean + 2.0 * soft_mean, rel=1e-5)
    student[~valid.unsqueeze(-1).expand_as(student)] = float("nan")
    targets[~valid] = 999  # what stands on padding is never read
    again = distillation_loss(teacher, student, targets, valid, spec, progress=0.5)
    assert torch.equal(again.total, found.total)


def test_cross_entropy_alone_needs_no_teacher_and_nothing_valid_is_an_error():
    _, student, targets, valid = batch()
    found = distillation_loss(None, student.requires_grad_(), targets, valid, LOSSES["cross-entropy"], progress=0.0)
    assert found.total.requires_grad
    assert float(found.distillation) == 0.0
    with pytest.raises(ValueError, match="no teacher logits"):
        distillation_loss(None, student, targets, valid, LossSpec(), progress=0.0)
    with pytest.raises(ValueError, match="no position"):
        distillation_loss(None, student, targets, valid & False, LOSSES["cross-entropy"], progress=0.0)
