"""What a finished student is judged on: windows of as many clips as there are, the same ones every time."""

import json
import shutil
from itertools import islice

import pytest
import torch
from test_distill import SMALL, log_of

import tinymusician_core as tm
from tinymusician_core.distill.data import Batches
from tinymusician_core.distill.divergence import kl, log_probs
from tinymusician_core.distill.session import Session
from tinymusician_core.distill.source import read_teacher
from tinymusician_core.distill.spec import VALIDATION_BATCHES, DistillSpec
from tinymusician_core.processes import OneProcess
from tinymusician_core.tokens import write_tokens

CLIPS, FRAMES = 7, 25


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Seven held-out clips that a window of a second fits into, and one that is too short."""
    folder, random = tmp_path_factory.mktemp("tokens"), torch.Generator().manual_seed(0)
    for split, count in (("train", 6), ("validation", CLIPS)):
        lengths = [*(40 + clip for clip in range(count)), 20]
        clips = [torch.randint(0, 64, (4, length), generator=random) for length in lengths]
        write_tokens(folder, split, clips, [{"captions": ["a calm piano waltz"], "bars": [0, 10]}] * len(clips))
    return folder


@pytest.fixture(scope="module")
def teacher(tiny_family):
    return read_teacher(tiny_family / "teacher")


@pytest.fixture
def batches(teacher, tokens):
    return Batches(tokens, "validation", teacher.text_encoder, teacher.delays, teacher.start, FRAMES, 0.0)


def test_no_clip_comes_again_before_all_have_come(batches):
    order = batches.order(1, 20)
    assert sorted(order[:CLIPS]) == sorted(order[CLIPS : 2 * CLIPS]) == list(range(CLIPS)), "the short one never does"
    assert order[:CLIPS] != order[CLIPS : 2 * CLIPS]
    assert batches.order(1, 5) == order[:5]
    assert batches.order(2, 20) != order


def test_fixed_windows_are_the_same_every_time_and_of_the_clips_in_order(batches):
    first, again, fewer = (list(batches.fixed(1, 4, count)) for count in (3, 3, 2))
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.codes, two.codes)
    for one, two in zip(first, fewer, strict=False):
        assert torch.equal(one.codes, two.codes), "the first are the same however many there are"
    for clip, window in zip(batches.order(1, 12), torch.cat([each.codes for each in first]), strict=True):
        starts = batches.dataset.clip(clip).unfold(1, FRAMES, 1).transpose(0, 1)
        assert bool((starts == window).flatten(1).all(1).any()), "a window of its clip"


def test_a_setting_says_how_many_windows_there_are():
    assert DistillSpec(2, batch=4).validation_batches == VALIDATION_BATCHES == 4
    assert [DistillSpec(2, batch=4, validation_windows=n).validation_batches for n in (1, 4, 5, 24)] == [1, 1, 2, 6]
    with pytest.raises(ValueError, match="validation_windows is 0; a whole number above 0"):
        DistillSpec(2, validation_windows=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_judgement_is_the_divergence_by_hand(teacher, tokens, accumulate):
    spec = DistillSpec(2, batch=4, seconds=1.0, accumulate=accumulate, validation_windows=11, bf16=False)
    session = Session(teacher, tokens, spec, OneProcess())
    means, by_clip = session.judge()
    assert list(by_clip) == list(range(CLIPS))
    sums: dict[int, list[float]] = {}
    order, total, positions = iter(session.held_out.order(1, 12)), 0.0, 0
    for drawn in session.held_out.fixed(1, 4, 3):
        batch = session.held_out.batch(drawn)
        with torch.no_grad():
            wanted, found = session.teaching(batch)[0], session.student(batch, session.shared)[0]
        apart = kl(log_probs(wanted), log_probs(found)) * batch.valid
        total, positions = total + float(apart.double().sum()), positions + int(batch.valid.sum())
        for row, clip in enumerate(islice(order, len(drawn))):
            pair = sums.setdefault(clip, [0.0, 0.0])
            pair[0] += float(apart[row].double().sum())
            pair[1] += int(batch.valid[row].sum())
    assert means["validation_kl"] == pytest.approx(total / positions, rel=1e-5)
    for clip, value in by_clip.items():
        assert value == pytest.approx(sums[clip][0] / sums[clip][1], rel=1e-4)
    assert means["validation_cross_entropy"] > means["validation_teacher_cross_entropy"] - 1.0


def test_more_windows_change_the_last_figure_and_none_on_the_way(tiny_family, tokens, tmp_path):
    family = shutil.copytree(tiny_family, tmp_path / "models")
    options = {"steps": 4, "validate_every": 2, "bf16": False, **SMALL}
    usual, many = (
        tm.distill(family / "teacher", tokens, 2, family / name, **options, **more)
        for name, more in (("usual", {}), ("many", {"validation_windows": 40}))
    )
    before, after = (
        [(r["step"], r["validation_kl"]) for r in log_of(family / name) if "validation_kl" in r and "final" not in r]
        for name in ("usual", "many")
    )
    assert before == after
    assert usual.validation != many.validation
    assert len(usual.clip_kl) == len(many.clip_kl) == CLIPS
    assert many.validation["validation_kl"] == log_of(family / "many")[-1]["validation_kl"]
    assert json.loads((family / "many.training" / "settings.json").read_text())["validation_windows"] == 40


def test_cached_logits_are_kept_for_as_many_windows(teacher, tiny_family, tokens, tmp_path):
    own = read_teacher(tiny_family / "teacher")
    spec = DistillSpec(2, batch=4, seconds=1.0, cache_logits=64, validation_windows=20, bf16=False)
    plain = Session(teacher, tokens, DistillSpec(2, batch=4, seconds=1.0, validation_windows=20), OneProcess())
    session = Session(own, tokens, spec, OneProcess())
    session.cache(tmp_path / "logits")
    assert len(list((tmp_path / "logits").glob("validation-*"))) == 5
    (cached, by_clip), (exact, _) = session.judge(), plain.judge()
    assert cached["validation_kl"] == pytest.approx(exact["validation_kl"], rel=1e-2), "all 64 entries are kept"
    assert list(by_clip) == list(range(CLIPS))
    assert session.validate()["validation_kl"] == pytest.approx(plain.validate()["validation_kl"], rel=1e-2)
