"""Clips that a teacher plays from prompts alone: whole, resumable, and the teacher's own."""

import json

import pytest
import torch
from test_distill import SMALL

import tinymusician_core as tm
from tinymusician_core.distill.sampled import SampleSpec, built_in_prompts, read_prompts, sample_tokens
from tinymusician_core.records import Cancelled, SamplingSpec
from tinymusician_core.tokens import TokenDataset

PROMPTS = ("a calm piano waltz", "lively flute in g major", "slow violin")


@pytest.fixture(scope="module")
def teacher(tiny_family):
    return tm.load(tiny_family / "teacher")


def test_every_clip_is_what_the_teacher_plays_to_its_prompt_and_seed(teacher, tmp_path):
    spec, told = SampleSpec(PROMPTS, clips=11, seconds=1.0, batch=4, seed=5), []
    folder = sample_tokens(teacher, spec, tmp_path / "tokens", on_progress=lambda done, of: told.append((done, of)))
    train, held_out = TokenDataset(folder, "train"), TokenDataset(folder, "validation")
    assert (len(train), len(held_out)) == (10, 1)
    assert told == [(4, 11), (8, 11), (11, 11)]
    for dataset, index, clip in ((train, 0, 0), (train, 4, 4), (train, 9, 10), (held_out, 0, 9)):
        wanted = teacher.generate(PROMPTS[clip % 3], SamplingSpec(seconds=1.0, seed=5 + clip))
        assert dataset.clip(index).tolist() == wanted.codes.tolist()
        assert dataset.records[index]["captions"] == [PROMPTS[clip % 3]]
        assert dataset.records[index]["facts"] == {"seed": 5 + clip}
    assert sorted(path.name for path in folder.iterdir()) == [
        "sampled.json",
        "train.jsonl",
        "train.safetensors",
        "validation.jsonl",
        "validation.safetensors",
    ]


def test_a_stopped_sampling_goes_on_and_ends_the_same(teacher, tmp_path):
    spec, steps = SampleSpec(PROMPTS, clips=6, seconds=0.5, batch=2), []

    def stop():
        steps.append(0)
        return len(steps) == 40

    with pytest.raises(Cancelled, match="stopped while clip 5 of 6 was made; resume goes on"):
        sample_tokens(teacher, spec, tmp_path / "parts", should_stop=stop)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts" / "parts").iterdir()}
    assert len(parts) == 2
    with pytest.raises(ValueError, match="parts was begun with other clips than now"):
        sample_tokens(teacher, SampleSpec(PROMPTS, clips=8, seconds=0.5, batch=2), tmp_path / "parts")
    count = len(steps)
    sample_tokens(teacher, spec, tmp_path / "parts", should_stop=lambda: steps.append(0))
    assert len(steps) - count == 12 + 3  # one batch of 12 frames and 3 delays, not three
    sample_tokens(teacher, spec, tmp_path / "whole")
    for name in ("train.safetensors", "validation.safetensors", "train.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    count = len(steps)
    sample_tokens(teacher, spec, tmp_path / "parts", should_stop=lambda: steps.append(0))
    assert len(steps) == count  # it is all there
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other is not empty and holds no clips of a teacher's"):
        sample_tokens(teacher, spec, tmp_path / "other")


def test_prompts_of_ten_and_more_are_held_out_whole():
    spec = SampleSpec(tuple(f"piano {i}" for i in range(20)), clips=45, seconds=1.0)
    held = [spec.prompt(clip) for clip in range(45) if spec.held_out(clip)]
    kept = {spec.prompt(clip) for clip in range(45) if not spec.held_out(clip)}
    assert set(held) == {"piano 9", "piano 19"}
    assert not kept & set(held)
    few = SampleSpec(("piano",), clips=4, seconds=1.0)
    assert [few.held_out(clip) for clip in range(4)] == [False, False, False, True]


def test_prompts_come_from_text_and_from_records(tmp_path):
    (tmp_path / "a.txt").write_text("a calm waltz\n\n  fast reel \n")
    assert read_prompts(tmp_path / "a.txt") == ("a calm waltz", "fast reel")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a jig", "seed": 3}\n')
    assert read_prompts(tmp_path / "a.jsonl") == ("a jig",)
    (tmp_path / "b.jsonl").write_text('{"text": "a jig"}\n')
    (tmp_path / "c.txt").write_text("\n")
    for name, words in (("b.jsonl", "cannot be read as prompts"), ("c.txt", "holds no prompts"), ("d", "cannot be")):
        with pytest.raises(ValueError, match=words):
            read_prompts(tmp_path / name)


def test_built_in_prompts_speak_the_models_language(teacher):
    prompts = built_in_prompts(teacher, 6, seed=1)
    assert len(set(prompts)) == 6
    assert not any(teacher.unknown_words(prompt) for prompt in prompts)
    assert prompts == built_in_prompts(teacher, 6, seed=1)
    assert prompts != built_in_prompts(teacher, 6, seed=2)
    with pytest.raises(ValueError, match="the model teacher knows too few words of the built-in prompts"):
        built_in_prompts(teacher, 5000)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts": ()}, "there are no prompts"),
        ({"prompts": ("",)}, "prompt is empty"),
        ({"clips": 1}, "clips is 1; a whole number of 2 or more"),
        ({"batch": 0}, "batch is 0"),
        ({"seconds": 0.1}, "seconds must be a number from 0.5"),
        ({"cfg": 0.0}, "cfg must be a number"),
    ],
)
def test_bad_sampling_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        SampleSpec(**{"prompts": PROMPTS, "clips": 4, "seconds": 1.0, **options})


def test_a_student_is_distilled_without_any_audio(tiny_family, tmp_path):
    told = []
    options = {"prompts": list(PROMPTS), "clips": 8, "learning_rate": 0.01, **SMALL}
    out = tmp_path / "far" / "student"
    done = tm.distill(tiny_family / "teacher", None, 2, out, steps=30, on_stage=lambda *at: told.append(at), **options)
    assert told[-1] == ("the teacher plays", 8, 8)
    log = [json.loads(line) for line in (tmp_path / "far" / "student.training" / "log.jsonl").read_text().splitlines()]
    assert done.validation["validation_kl"] < log[0]["validation_kl"]
    assert tm.load(out).generate("slow violin", SamplingSpec(seconds=1)).audio.shape == (1, 32000)
    with pytest.raises(ValueError, match="holds an earlier run; resume it"):
        tm.distill(tiny_family / "teacher", None, 2, out, steps=30, **options)
    again = tm.distill(tiny_family / "teacher", None, 2, out, steps=40, resume=True, **options)
    assert again.steps == 40
    with pytest.raises(ValueError, match="give either a folder of codec tokens or prompts"):
        tm.distill(tiny_family / "teacher", None, 2, tmp_path / "none")
    with pytest.raises(ValueError, match="prompts are 'mine'; a list of texts, or 'built-in'"):
        tm.distill(tiny_family / "teacher", None, 2, tmp_path / "none", prompts="mine")


def test_a_musicgen_plays_for_its_student_too(tiny_musicgen, tmp_path):
    options = {"prompts": ["lively flute"], "clips": 4, "steps": 1, **SMALL}
    done = tm.distill(tiny_musicgen, None, 2, tmp_path / "student", **options)
    assert done.layers == (0, 2)
    tokens = TokenDataset(tmp_path / "student.training" / "tokens", "train")
    assert torch.equal(tokens.offsets.diff(), torch.full((3,), 50))
