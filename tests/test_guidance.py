"""A student that takes the guidance scale as an input: what it is untrained, what it learns, and that it lasts."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_distill import SMALL, write_clips
from test_teaching import passes

import tinymusician_core as tm
from tinymusician_core.distill import policy
from tinymusician_core.distill.data import Batches, delayed
from tinymusician_core.distill.divergence import kl, log_probs
from tinymusician_core.distill.session import Session
from tinymusician_core.distill.source import read_teacher
from tinymusician_core.distill.spec import DistillSpec
from tinymusician_core.distill.student import Shape, make_student
from tinymusician_core.distill.teaching import Teaching
from tinymusician_core.engine.sampling import guide
from tinymusician_core.files import sha256_of
from tinymusician_core.guidance import FEATURES, ScaleInput, ScaleRange
from tinymusician_core.processes import OneProcess
from tinymusician_core.quant import calibration
from tinymusician_core.records import SamplingSpec
from tinymusician_core.tokens import TokenDataset

SCALES = ScaleRange(1.0, 6.0)
LOW, HIGH = 1.0, 6.0


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def family(tiny_family, tokens, tmp_path_factory):
    """The tiny family with a student that was trained to take a scale, and its quantized twin. Read only."""
    models = shutil.copytree(tiny_family, tmp_path_factory.mktemp("guided") / "models")
    options = {"guidance": "input:1-6", "loss": "forward-kl", "cross_entropy": 0.0, "bf16": False, **SMALL}
    done = tm.distill(models / "teacher", tokens, 3, models / "mine", steps=150, learning_rate=0.01, **options)
    assert done.guidance == SCALES
    at = [done.validation[f"validation_kl_at_{scale}"] for scale in (1, 3, 6)]
    assert min(at) < done.validation["validation_kl"] < max(at)  # which is at scales that were drawn
    tm.quantize(models / "mine", "int8", models / "small")
    return models


@pytest.fixture(scope="module")
def teacher(tiny_family):
    return read_teacher(tiny_family / "teacher")


@pytest.fixture(scope="module")
def drawn(teacher, tokens):
    frames = Batches(tokens, "train", teacher.text_encoder, teacher.delays, teacher.start, 20, 0.0, SCALES)
    return frames, frames.draw(torch.Generator().manual_seed(0), 5)


def window(tokens) -> tuple[torch.Tensor, list[str]]:
    codes, captions = TokenDataset(tokens, "validation").batch(torch.Generator().manual_seed(3), 8, 20)
    return codes, list(captions)


def logits_at(model, tokens, scale: float) -> torch.Tensor:
    """What a model draws from at a scale [N,V]: two passes, or one that is told."""
    codes, captions = window(tokens)
    config = model.decoder.config
    inputs, _, valid = delayed(codes, config.delays, config.pad)
    states, mask = model.text_encoder.encode(captions, model.text_scale(SamplingSpec(cfg=scale)))
    with torch.no_grad():
        found = model.decoder.logits(inputs, states, mask)
        if model.guidance is None:
            found = guide(
                torch.cat([found, model.decoder.logits(inputs, torch.zeros_like(states), torch.zeros_like(mask))]),
                scale,
            )
    return found[valid]


def apart(teacher, student, tokens, scale: float, told: float) -> float:
    """KL in nats a token from the teacher's two passes at a scale to a student's one that is told another."""
    exact, found = (log_probs(logits_at(*each)) for each in ((teacher, tokens, scale), (student, tokens, told)))
    return float(kl(exact, found).mean())


def test_before_training_it_is_the_student_without_guidance(teacher, drawn):
    batches, rows = drawn
    batch, shared = batches.batch(rows), teacher.text_encoder.projection
    assert batch.scales.shape == (5,)
    assert len(set(batch.scales.tolist())) == 5
    for shape in (Shape(2), Shape(2, width=16)):
        plain, told = (make_student(teacher.decoder, shape, shared, scales) for scales in (None, SCALES))
        with torch.no_grad():
            assert torch.equal(plain(batch, shared)[0], told(batch, shared)[0])
        again = told.copy(told.state_dict())
        with torch.no_grad():
            told.guidance.weight.normal_()
            assert not torch.equal(plain(batch, shared)[0], told(batch, shared)[0])
            assert torch.equal(plain(batch, shared)[0], again(batch, shared)[0])


def test_at_its_base_the_input_changes_nothing():
    told, states = ScaleInput(SCALES, 8), torch.randn(3, 2, 8)
    torch.nn.init.normal_(told.weight)
    assert torch.equal(told(states, torch.full((3,), SCALES.base)), states)
    scale = torch.tensor([1.0, 2.2, 6.0])
    found = told(states, scale)
    for row in range(3):
        turns = torch.arange(1, FEATURES + 1) * torch.pi
        features = (turns * (scale[row] - 1) / 5).cos() - (turns * (3.0 - 1) / 5).cos()
        gain, shift = (features @ told.weight).chunk(2)
        torch.testing.assert_close(found[row], states[row] * (1 + gain) + shift)


def test_a_range_says_where_it_stands_without_being_told():
    assert [ScaleRange(*pair).base for pair in ((1, 6), (4, 8), (1, 2))] == [3.0, 4.0, 2.0]
    assert 1.0 in SCALES
    assert 6.5 not in SCALES
    drawn = SCALES.draw(torch.Generator().manual_seed(0), 4000)
    assert 1.0 <= drawn.min() < 1.01 < 5.99 < drawn.max() <= 6.0
    assert float(drawn.mean()) == pytest.approx(3.5, abs=0.1)
    with pytest.raises(ValueError, match="a base of 7 is not in it"):
        ScaleRange(1, 6, 7)


def test_every_row_is_taught_at_its_own_scale(teacher, drawn):
    batches, rows = drawn
    found, _ = Teaching(teacher, SCALES)(batches.batch(rows))
    for row in range(len(rows)):
        wanted, _ = Teaching(teacher, float(rows.scales[row]))(batches.batch(rows.rows(row, row + 1)))
        torch.testing.assert_close(found[row], wanted[0], atol=1e-4, rtol=1e-4)


def test_it_learns_low_and_high_scales(family, tokens):
    two_passes, student = tm.load(family / "teacher"), tm.load(family / "mine")
    tm.distill(family / "teacher", tokens, 3, family / "first", steps=1, guidance="input:1-6", **SMALL)
    first = tm.load(family / "first")
    for scale, other in ((LOW, HIGH), (HIGH, LOW)):
        learnt = apart(two_passes, student, tokens, scale, scale)
        assert learnt < 0.4 * apart(two_passes, first, tokens, scale, scale)
        assert learnt < 0.3 * apart(two_passes, student, tokens, scale, other)  # it listens to what it is told


def test_cfg_picks_the_scale_in_one_pass(family, monkeypatch):
    student, rows = tm.load(family / "mine"), passes(monkeypatch)
    assert student.guidance == SCALES
    assert student.usual_cfg == 3.0
    made = {cfg: student.generate("a calm piano", SamplingSpec(1, cfg=cfg, greedy=True)) for cfg in (1.0, 3.0, 6.0)}
    assert rows == [1, 1, 1]
    assert made[6.0].sampling.cfg == 6.0
    assert (made[1.0].codes != made[6.0].codes).any()
    pair = student.generate_batch(["a calm piano"] * 2, [SamplingSpec(1, cfg=6.0, greedy=True)] * 2)
    assert all((clip.codes == made[6.0].codes).all() for clip in pair)
    with pytest.raises(ValueError, match="the model mine takes cfg from 1 to 6, got 7"):
        student.generate("a calm piano", SamplingSpec(1, cfg=7.0))


def test_quantized_it_still_takes_the_scale(family, tokens, monkeypatch):
    student, small = tm.load(family / "mine"), tm.load(family / "small")
    record = {"low": 1.0, "high": 6.0, "base": 3.0}
    for name in ("mine", "small"):
        assert json.loads((family / name / "config.json").read_text())["distilled_guidance"] == record
    assert small.guidance == SCALES
    torch.testing.assert_close(
        small.text_encoder.guidance.weight, student.text_encoder.guidance.weight, atol=1e-3, rtol=1e-3
    )
    for scale, other in ((LOW, HIGH), (HIGH, LOW)):
        assert apart(student, small, tokens, scale, scale) < 0.2 * apart(student, small, tokens, scale, other)
    rows = passes(monkeypatch)
    small.generate("a calm piano", SamplingSpec(1, cfg=5.0))
    assert rows == [1]


@pytest.mark.parametrize(("guidance", "cfg"), [("fixed:2", 2.0), ("input:4-8", 4.0)])
def test_a_quantizer_without_data_has_it_play_at_a_scale_that_it_takes(tiny_family, tokens, tmp_path, guidance, cfg):
    models = shutil.copytree(tiny_family, tmp_path / "models")
    tm.distill(models / "teacher", tokens, 1, models / "mine", steps=1, guidance=guidance, **SMALL)
    student = tm.load(models / "mine")
    assert student.usual_cfg == cfg
    assert len(calibration.sampled(student, windows=2).prompts) == 2


def test_transformers_plays_a_musicgen_at_the_base(tiny_musicgen, tokens, tmp_path):
    from transformers import AutoTokenizer, MusicgenForConditionalGeneration

    options = {"guidance": "input:2-5", "learning_rate": 0.05, "bf16": False, **SMALL}
    tm.distill(tiny_musicgen, tokens, 2, tmp_path / "student", steps=5, **options)
    ours = tm.load(tmp_path / "student")
    assert ours.guidance == ScaleRange(2.0, 5.0)
    assert ours.text_encoder.guidance.weight.abs().max() > 0
    theirs = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "student")
    inputs = AutoTokenizer.from_pretrained(tmp_path / "student")("lively flute", return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    sound = theirs.generate(**inputs, do_sample=False, max_new_tokens=25 + 3)
    clip = ours.generate("lively flute", SamplingSpec(seconds=0.5, cfg=3.0, greedy=True))
    torch.testing.assert_close(torch.from_numpy(clip.audio), sound[0].clamp(-1, 1), atol=1e-4, rtol=0)


def test_where_no_scale_is_given_a_student_plays_with_what_its_teacher_is_made_for(tiny_family, tokens, tmp_path):
    models = shutil.copytree(tiny_family, tmp_path / "models")
    record = models / "teacher" / "config.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "guidance_scale": 2.0}))
    tm.distill(models / "teacher", tokens, 2, models / "told", steps=1, guidance="input:1-6", **SMALL)
    assert tm.load(models / "told").guidance == ScaleRange(1.0, 6.0, 2.0)
    assert ScaleRange(4.0, 6.0).around(2.0).base == 4.0


def test_cached_logits_know_their_scales(teacher, tokens, tiny_family, tmp_path):
    own = read_teacher(tiny_family / "teacher")
    spec = DistillSpec(2, cache_logits=64, guidance="input:1-6", **SMALL)
    session = Session(own, tokens, spec, OneProcess())
    session.cache(tmp_path / "logits")
    rows = session.caches["train"].draw(torch.Generator().manual_seed(1), 3)
    assert len(set(rows.scales.tolist())) == 3
    exact = log_probs(Teaching(teacher, SCALES)(session.batches.batch(rows))[0])
    found = session.caches["train"].wanted(rows)
    assert float(kl(exact, found).max()) < 1e-3
    parts = [part() for part in session.loss(torch.Generator().manual_seed(0), 0.0)]
    parts[0]["loss"].backward()
    assert session.student.guidance.weight.grad.abs().max() > 0


def test_its_own_windows_are_played_at_their_scales(teacher, drawn):
    batches, rows = drawn
    student = make_student(teacher.decoder, Shape(2), None, SCALES)
    torch.nn.init.normal_(student.guidance.weight, generator=torch.Generator().manual_seed(0))
    rows, seeds = policy.choose_begin(rows, torch.Generator().manual_seed(1))
    made = policy.go_on(student, teacher, batches, rows, seeds)
    assert torch.equal(policy.go_on(student, teacher, batches, rows.rows(1, 3), seeds[1:3]).codes, made.codes[1:3])
    torch.nn.init.zeros_(student.guidance.weight)
    assert not torch.equal(policy.go_on(student, teacher, batches, rows, seeds).codes, made.codes)


def test_it_is_no_teacher_itself(family, tokens):
    with pytest.raises(ValueError, match="the teacher takes its guidance as an input; one that needs two passes"):
        tm.distill(family / "mine", tokens, 1, family / "again", steps=1, **SMALL)


def damaged(family, tmp_path, record=None, drop=False):
    models = shutil.copytree(family, tmp_path / "models")
    folder = models / "mine"
    config = json.loads((folder / "config.json").read_text())
    if drop:
        state = load_file(folder / "model.safetensors")
        state.pop("guidance.weight")
        save_file(state, folder / "model.safetensors")
        config["files"]["model.safetensors"] = sha256_of(folder / "model.safetensors")
    config["distilled_guidance"] = config["distilled_guidance"] if record is None else record
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"low": 6, "high": 1}, "the model mine has a guidance of .*the lower scale first"),
        ({"low": 1}, "the model mine has a guidance of .*missing 1 required"),
        ({"low": 1, "high": "much"}, "the model mine has a guidance of .*cfg must be a number"),
    ],
)
def test_a_damaged_range_is_named(family, tmp_path, record, words):
    with pytest.raises(tm.ModelError, match=words):
        tm.load(damaged(family, tmp_path, record))


def test_an_input_without_weights_is_named(family, tmp_path):
    with pytest.raises(tm.ModelError, match="the guidance's input must be .8, 64., they are missing"):
        tm.load(damaged(family, tmp_path, drop=True))
