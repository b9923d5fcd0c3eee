import json
import shutil

import pytest
import torch

import tinymusician_core as tm
from tinymusician_core.distill.data import Batches
from tinymusician_core.distill.source import read_teacher
from tinymusician_core.distill.train import DistillSpec, distill
from tinymusician_core.engine import frames
from tinymusician_core.records import Cancelled, ModelError, SamplingSpec
from tinymusician_core.tokens import write_tokens

SMALL = {"batch": 4, "seconds": 1.0}


def write_clips(folder, codebooks=4, entries=64):
    """Clips that repeat a short pattern, so that there is something to learn."""
    random = torch.Generator().manual_seed(0)
    for split, count in (("train", 6), ("validation", 2), ("test", 1)):
        motif = torch.randint(0, entries, (count, codebooks, 5), generator=random)
        clips = [motif[i].repeat(1, 20)[:, : 60 + i] for i in range(count)]
        captions = ["a calm piano waltz", "lively flute in g major"]
        write_tokens(folder, split, clips, [{"captions": captions, "bars": [0, 10, 20], "facts": {}}] * count)
    return folder


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("tokens"))


@pytest.fixture
def family(tiny_family, tmp_path):
    """A copy of the tiny family that can be written beside."""
    return shutil.copytree(tiny_family, tmp_path / "models")


def log_of(out) -> list[dict]:
    path = out.with_name(f"{out.name}.training") / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_student_comes_closer_to_its_teacher_and_plays(family, tokens):
    out = family / "mine"
    told = []
    done = distill(family / "teacher", tokens, 2, out, steps=60, learning_rate=0.01, on_progress=told.append, **SMALL)
    assert done.layers == (0, 3)
    assert done.steps == 60
    first, last = log_of(out)[0], log_of(out)[-1]
    assert first["step"] == 0
    assert last["final"] == 1
    assert done.validation["validation_kl"] == last["validation_kl"] < 0.9 * first["validation_kl"]
    assert {"loss", "cross_entropy", "distillation"} <= set(log_of(out)[1])
    assert [p.step for p in told] == [10, 20, 30, 40, 50, 60]
    assert told[-1].fraction == 1.0
    student = tm.load(out)
    assert student.name == "mine"
    assert len(student.decoder.layers) == 2
    assert student.disk_bytes < tm.load(family / "teacher").disk_bytes
    assert student.generate("a calm piano", SamplingSpec(seconds=1)).audio.shape == (1, 32000)
    assert json.loads((out / "config.json").read_text())["text"] == "../text"


def test_a_student_keeps_the_window_that_its_teacher_was_trained_on(family, tokens):
    config = family / "teacher" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"window_s": 20.0}))
    distill(family / "teacher", tokens, 1, family / "mine", steps=1, **SMALL)
    assert tm.load(family / "mine").window_s == 20.0


def test_elsewhere_a_student_has_all_that_it_needs(tiny_family, tokens, tmp_path):
    out = tmp_path / "far" / "student"
    distill(tiny_family / "teacher", tokens, 1, out, steps=1, **SMALL)
    moved = shutil.copytree(out, tmp_path / "moved")
    shutil.rmtree(tmp_path / "far")
    clip = tm.load(moved).generate("a calm piano", SamplingSpec(seconds=1))
    assert clip.audio.shape == (1, 32000)


def test_a_musicgen_folder_gives_a_musicgen_folder(tiny_musicgen, tokens, tmp_path):
    done = distill(tiny_musicgen, tokens, 2, tmp_path / "student", steps=2, **SMALL)
    assert done.layers == (0, 2)
    assert json.loads((tmp_path / "student" / "config.json").read_text())["model_type"] == "musicgen"
    student = tm.load(tmp_path / "student")
    assert len(student.decoder.layers) == 2
    assert student.generate("lively flute", SamplingSpec(seconds=1)).audio.shape == (1, 32000)


def test_a_musicgen_student_plays_in_plain_transformers(tiny_musicgen, tokens, tmp_path):
    from transformers import AutoTokenizer, MusicgenForConditionalGeneration

    distill(tiny_musicgen, tokens, 2, tmp_path / "student", steps=1, **SMALL)
    theirs, info = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = AutoTokenizer.from_pretrained(tmp_path / "student")("lively flute", return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    sound = theirs.generate(**inputs, do_sample=False, guidance_scale=1.0, max_new_tokens=12 + 3)
    ours = tm.load(tmp_path / "student")
    states, mask = ours.text_encoder.encode(["lively flute"])
    made = list(frames(ours.decoder, states, mask, SamplingSpec(cfg=1.0, greedy=True), 12))
    torch.testing.assert_close(ours.codec.decode(torch.stack(made, dim=2)), sound, atol=1e-4, rtol=0)


def test_an_audiocraft_teacher_gives_a_student_in_transformers_format(tiny_audiocraft, tokens, tmp_path):
    done = distill(tiny_audiocraft, tokens, 2, tmp_path / "student", steps=2, **SMALL)
    assert done.layers == (0, 2)
    assert json.loads((tmp_path / "student" / "config.json").read_text())["model_type"] == "musicgen"
    student, teacher = tm.load(tmp_path / "student"), tm.load(tiny_audiocraft)
    codes = torch.randint(0, 64, (1, 4, 20), generator=torch.Generator().manual_seed(1))
    assert torch.equal(student.codec.decode(codes), teacher.codec.decode(codes))
    prompt = ["a calm piano"]
    assert torch.equal(student.text_encoder.encode(prompt)[0], teacher.text_encoder.encode(prompt)[0])
    assert student.generate(prompt[0], SamplingSpec(seconds=1)).audio.shape == (1, 32000)


def test_a_stopped_run_resumes_to_the_same_weights(family, tokens):
    whole, parts = family / "whole", family / "parts"
    common = {"steps": 8, "seed": 5, **SMALL}
    distill(family / "teacher", tokens, 2, whole, **common)
    calls = []
    with pytest.raises(Cancelled, match="stopped after 3 steps; resume goes on"):
        distill(family / "teacher", tokens, 2, parts, should_stop=lambda: calls.append(0) or len(calls) == 4, **common)
    assert not parts.exists()
    with pytest.raises(ValueError, match="holds an earlier run; resume it"):
        distill(family / "teacher", tokens, 2, parts, **common)
    with pytest.raises(ValueError, match="was begun with layers 2, not 3"):
        distill(family / "teacher", tokens, 3, parts, resume=True, **common)
    with pytest.raises(ValueError, match="was begun with teacher"):
        distill(family / "student", tokens, 2, parts, resume=True, **common)
    distill(family / "teacher", tokens, 2, parts, resume=True, **common)
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert sum(record["step"] == 0 for record in log_of(parts)) == 1


def test_a_student_goes_on_from_an_earlier_one(family, tokens):
    common = {"learning_rate": 0.01, **SMALL}
    distill(family / "teacher", tokens, 2, family / "first", steps=60, **common)
    begun = distill(family / "teacher", tokens, 2, family / "next", start_from=family / "first", steps=1, **common)
    before, last = log_of(family / "next")[0], log_of(family / "first")[-1]
    assert before["validation_kl"] == pytest.approx(last["validation_kl"], rel=0.02)  # it was written in half precision
    assert begun.layers == (0, 3)
    with pytest.raises(ValueError, match="was begun with start_from"):
        distill(family / "teacher", tokens, 2, family / "next", steps=2, resume=True, **common)
    with pytest.raises(ValueError, match="has other sizes than the student that is asked for"):
        distill(family / "teacher", tokens, 3, family / "other", start_from=family / "first", steps=1, **common)


@pytest.mark.parametrize(
    "loss", ["forward-kl", "reverse-kl", "skew-kl", "skew-reverse-kl", "jsd", "alpha-beta:0.4,0.5", "cross-entropy"]
)
def test_every_loss_trains(family, tokens, loss):
    done = distill(family / "teacher", tokens, 2, family / "mine", steps=2, loss=loss, **SMALL)
    assert done.validation["validation_kl"] > 0
    with_teacher = [record["distillation"] > 0 for record in log_of(family / "mine") if "distillation" in record]
    assert all(found == (loss != "cross-entropy") for found in with_teacher)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "magic"}, "no such loss: 'magic'; allowed: stage-mixed"),
        ({"batch": 0}, "batch is 0"),
        ({"seconds": -1.0}, "seconds is -1.0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; muon or adamw is allowed"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"steps": 0}, "must be above zero"),
        ({"minutes": 1.0, "steps": 1}, "either in minutes or in steps"),
    ],
)
def test_bad_settings_are_named_before_anything_is_written(family, tokens, options, words):
    with pytest.raises(ValueError, match=words):
        distill(family / "teacher", tokens, 2, family / "mine", **options)
    assert not list(family.glob("mine*"))


def test_bad_teachers_tokens_and_folders_are_named(family, tokens, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="a student of 9 layers; 1 to 4 are allowed"):
        distill(family / "teacher", tokens, 9, out, steps=1)
    with pytest.raises(ValueError, match="no such model: got 'nobody'"):
        distill("nobody", tokens, 2, out, steps=1)
    with pytest.raises(ValueError, match="holds no train tokens"):
        distill(family / "teacher", tmp_path, 2, out, steps=1)
    wrong = write_clips(tmp_path / "wrong", entries=100)
    with pytest.raises(ValueError, match="the teacher has 4 of 64 entries"):
        distill(family / "teacher", wrong, 2, out, steps=1)
    with pytest.raises(ValueError, match="wrong holds files that are no model"):
        distill(family / "teacher", tokens, 2, wrong, steps=1)
    tm.quantize(family / "student", "int8", tmp_path / "q")
    with pytest.raises(ValueError, match="a teacher is a float model"):
        distill(tmp_path / "q", tokens, 2, out, steps=1)
    weights = family / "teacher" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ModelError, match="is not the file it was"):
        distill(family / "teacher", tokens, 2, out, steps=1)
    assert not list(tmp_path.glob("out*"))


def test_the_text_encoder_stays_frozen_and_captions_are_left_out(tiny_family, tokens):
    teacher = read_teacher(tiny_family / "teacher")
    common = (teacher.text_encoder, teacher.delays, teacher.start, 20)
    batches = Batches(tokens, "train", *common, 0.5)
    drawn = batches.draw(torch.Generator().manual_seed(0), 64)
    batch = batches.batch(drawn)
    states = batch.states(teacher.text_encoder.projection)
    assert batch.inputs.shape == batch.targets.shape == batch.valid.shape == (64, 4, 23)
    empty = (states == 0).flatten(1).all(dim=1)
    assert torch.equal(empty, drawn.left_out)
    assert 16 < int(empty.sum()) < 48
    assert (batch.mask[empty] == 1).all()
    assert not states.requires_grad
    assert not states.is_inference()
    wanted, mask = teacher.text_encoder.encode([drawn.captions[i] for i in range(64) if not empty[i]])
    torch.testing.assert_close(states[~empty], wanted)
    assert torch.equal(batch.mask[~empty], mask)
    batches.dropout = 0.0
    assert not batches.draw(torch.Generator().manual_seed(0), 64).left_out.any()


def test_a_spec_is_frozen():
    with pytest.raises(AttributeError):
        DistillSpec(2).layers = 3


def test_a_run_that_gets_no_better_ends_early_with_the_best_student(family, tokens):
    options = {"learning_rate": 1.0, "patience": 2, "validate_every": 1, **SMALL}
    done = distill(family / "teacher", tokens, 4, family / "mine", steps=50, **options)  # a copy can only get worse
    assert done.steps < 50
    seen = [(r["step"], r["validation_kl"]) for r in log_of(family / "mine") if "validation_kl" in r and r["step"]]
    best = min(value for _, value in seen)
    assert done.validation["validation_kl"] == pytest.approx(best, rel=1e-6)
    assert done.steps == next(step for step, value in seen if value == best) + 2
    again = distill(family / "teacher", tokens, 4, family / "mine", steps=50, resume=True, **options)
    assert (again.steps, again.validation) == (done.steps, done.validation)
