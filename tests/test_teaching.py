"""What a student is taught: guided logits in one pass, hidden states, windows of its own, logits from the disk."""

import json
import shutil

import pytest
import torch
from test_distill import SMALL, log_of, write_clips

import tinymusician_core as tm
from tinymusician_core.distill import policy
from tinymusician_core.distill.cached import cut_to, restored
from tinymusician_core.distill.data import Batches, Drawn, delayed
from tinymusician_core.distill.divergence import forward_kl, kl
from tinymusician_core.distill.session import Session
from tinymusician_core.distill.source import read_teacher
from tinymusician_core.distill.spec import DistillSpec
from tinymusician_core.distill.student import Shape, make_student
from tinymusician_core.distill.teaching import Teaching, hidden_distance, matched
from tinymusician_core.engine.decoder import Decoder
from tinymusician_core.engine.sampling import guide
from tinymusician_core.processes import OneProcess
from tinymusician_core.records import Cancelled, SamplingSpec


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("tokens"))


@pytest.fixture
def family(tiny_family, tmp_path):
    return shutil.copytree(tiny_family, tmp_path / "models")


@pytest.fixture(scope="module")
def teacher(tiny_family):
    return read_teacher(tiny_family / "teacher")


def batches_of(teacher, tokens, dropout=0.0):
    return Batches(tokens, "train", teacher.text_encoder, teacher.delays, teacher.start, 20, dropout)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_guided_logits_are_what_the_engine_draws_from(teacher, tokens, tiny_family):
    batches = batches_of(teacher, tokens)
    batch = batches.batch(batches.draw(rng(), 3))
    found, _ = Teaching(teacher, 3.0)(batch)
    engine, states = tm.load(tiny_family / "teacher").decoder, batch.states(teacher.text_encoder.projection)
    with torch.inference_mode():
        halves = [engine.logits(batch.inputs, s, batch.mask) for s in (states, torch.zeros_like(states))]
        wanted = guide(torch.cat(halves), 3.0)
    torch.testing.assert_close(found, wanted.clone(), atol=1e-4, rtol=1e-3)
    plain, _ = Teaching(teacher)(batch)
    torch.testing.assert_close(plain, halves[0].clone(), atol=1e-4, rtol=1e-3)


def passes(monkeypatch) -> list[int]:
    """The number of rows of every batch that a decoder prepares for."""
    seen, prepare = [], Decoder.prepare

    def counted(self, states, *more, **named):
        seen.append(states.shape[0])
        return prepare(self, states, *more, **named)

    monkeypatch.setattr(Decoder, "prepare", counted)
    return seen


def test_a_student_with_guidance_built_in_takes_one_pass(family, tokens, monkeypatch):
    options = {"guidance": "fixed:3", "learning_rate": 0.01, **SMALL}
    done = tm.distill(family / "teacher", tokens, 2, family / "mine", steps=40, **options)
    assert done.guidance == 3.0
    assert log_of(family / "mine")[-1]["validation_kl"] < log_of(family / "mine")[0]["validation_kl"]
    assert json.loads((family / "mine" / "config.json").read_text())["distilled_guidance"] == 3.0
    student, two_passes = tm.load(family / "mine"), tm.load(family / "teacher")
    assert student.guidance == 3.0
    assert two_passes.guidance is None
    rows = passes(monkeypatch)
    clip = student.generate("a calm piano", SamplingSpec(seconds=1, cfg=3.0))
    assert clip.sampling.cfg == 3.0
    two_passes.generate("a calm piano", SamplingSpec(seconds=1, cfg=3.0))
    assert rows == [1, 2]
    for cfg in (1.0, 4.0):
        with pytest.raises(ValueError, match=f"mine has guidance of 3 built in; cfg must be 3, got {cfg:g}"):
            student.generate("a calm piano", SamplingSpec(seconds=1, cfg=cfg))
    with pytest.raises(ValueError, match="has guidance of 3 built in already; leave guidance out"):
        tm.distill(family / "mine", tokens, 1, family / "again", steps=1, **options)
    smaller = tm.distill(family / "mine", tokens, 1, family / "smaller", steps=1, **SMALL)
    assert smaller.guidance == tm.load(family / "smaller").guidance == 3.0


def test_quantized_it_still_takes_one_pass(family, tokens, monkeypatch):
    tm.distill(family / "teacher", tokens, 1, family / "mine", steps=1, guidance="fixed:3", **SMALL)
    tm.quantize(family / "mine", "int8", family / "small")
    small, rows = tm.load(family / "small"), passes(monkeypatch)
    assert small.guidance == 3.0
    small.generate("a calm piano", SamplingSpec(seconds=1))
    assert rows == [1]


def test_a_guided_musicgen_is_a_plain_one_to_be_run_without_guidance(tiny_musicgen, tokens, tmp_path):
    from transformers import AutoTokenizer, MusicgenForConditionalGeneration

    tm.distill(tiny_musicgen, tokens, 2, tmp_path / "student", steps=1, guidance="fixed:2", **SMALL)
    ours = tm.load(tmp_path / "student")
    assert ours.guidance == 2.0
    theirs = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "student")
    assert theirs.generation_config.guidance_scale == 1.0
    inputs = AutoTokenizer.from_pretrained(tmp_path / "student")("lively flute", return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    sound = theirs.generate(**inputs, do_sample=False, max_new_tokens=25 + 3)
    clip = ours.generate("lively flute", SamplingSpec(seconds=0.5, cfg=2.0, greedy=True))
    torch.testing.assert_close(torch.from_numpy(clip.audio), sound[0].clamp(-1, 1), atol=1e-4, rtol=0)
    other = MusicgenForConditionalGeneration.from_pretrained(tiny_musicgen)
    assert other.generation_config.guidance_scale != 1.0  # the teacher's own folder stays as it is


def test_a_damaged_guidance_is_named(family, tokens):
    config = family / "student" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"distilled_guidance": -2}))
    with pytest.raises(
        tm.ModelError, match="the model student has a guidance of -2: cfg must be a number from 1 to 20"
    ):
        tm.load(family / "student")


def test_each_layer_answers_to_the_one_before_the_next_copy():
    assert matched((0, 4, 7), 8) == (3, 6, 7)
    assert matched((0,), 4) == (3,)
    assert matched((0, 1, 2, 3), 4) == (0, 1, 2, 3)


def test_hidden_distances_are_what_they_say():
    theirs, ours = [torch.randn(2, 5, 8, generator=rng(1))], [torch.randn(2, 5, 4, generator=rng(2))]
    channels, weights = torch.tensor([0, 3, 4, 7]), torch.rand(2, 3, 5, generator=rng(3))
    weights[:, :, 4] = 0.0
    ours[0][:, 4] = 1e6  # what weighs nothing counts nothing
    whole, mse, cosine = float(weights.sum()), 0.0, 0.0
    for b in range(2):
        for p in range(5):
            t, s, w = theirs[0][b, p, channels], ours[0][b, p], float(weights[b, :, p].sum())
            mse += w * float((t - s).square().sum() / t.square().sum())
            cosine += w * (1 - float(t @ s / (t.norm() * s.norm())))
    found = hidden_distance(theirs, ours, channels, weights, "mse", whole)
    assert float(found) == pytest.approx(mse / whole, rel=1e-5)
    found = hidden_distance(theirs, ours, channels, weights, "cosine", whole)
    assert float(found) == pytest.approx(cosine / whole, rel=1e-5)
    assert float(hidden_distance(theirs, [theirs[0][..., channels]], channels, weights, "mse", whole)) == 0.0


def test_a_student_of_all_layers_is_at_no_distance_from_its_teacher(teacher, tokens):
    session = Session(teacher, tokens, DistillSpec(4, hidden="mse", **SMALL), OneProcess())
    parts = [part() for part in session.loss(rng(), 0.0)]
    assert float(parts[0]["hidden"]) == pytest.approx(0.0, abs=1e-9)
    assert float(parts[0]["distillation"]) == pytest.approx(0.0, abs=1e-6)
    assert float(parts[0]["cross_entropy"]) > 1.0


def test_accumulated_parts_are_the_whole_batch(teacher, tokens):
    losses = {}
    for accumulate in (1, 2, 4):
        options = {"hidden": "cosine:0.5", "codebook_weights": (3, 2, 0.5, 0), "accumulate": accumulate, **SMALL}
        session = Session(teacher, tokens, DistillSpec(2, **options), OneProcess())
        parts = session.loss(rng(), 0.5)
        assert len(parts) == accumulate
        found = [part() for part in parts]
        losses[accumulate] = {name: float(sum(part[name].detach() for part in found)) for name in found[0]}
    for accumulate in (2, 4):
        assert losses[accumulate] == pytest.approx(losses[1], rel=1e-5)


def test_the_student_goes_on_from_a_window_itself(teacher, tokens):
    batches = batches_of(teacher, tokens, dropout=0.3)
    student = make_student(teacher.decoder, Shape(2))
    drawn, seeds = policy.choose_begin(batches.draw(rng(5), 6), rng(1))
    assert 0 <= drawn.begin <= 10
    first = policy.go_on(student, teacher, batches, drawn, seeds)
    assert torch.equal(first.codes[:, :, : drawn.begin], drawn.codes[:, :, : drawn.begin])
    assert (first.codes != drawn.codes).any()
    assert torch.equal(policy.go_on(student, teacher, batches, drawn, seeds).codes, first.codes)
    assert torch.equal(policy.go_on(student, teacher, batches, drawn.rows(2, 4), seeds[2:4]).codes, first.codes[2:4])
    valid = batches.valid(first)
    assert int(valid.sum()) == 6 * 4 * (20 - drawn.begin)
    # they are likelier to the student than windows that others made: it drew them
    own, data = (batches.batch(d) for d in (first, drawn))
    nll = []
    for batch in (own, data):
        with torch.no_grad():
            found = torch.log_softmax(student(batch, teacher.text_encoder.projection)[0], -1)
        nll.append(-float(found.gather(-1, batch.targets.clamp_max(63)[..., None])[batch.valid].mean()))
    assert nll[0] < nll[1] - 0.5


def test_a_window_counts_from_where_the_student_begins():
    codes = torch.arange(8).view(1, 2, 4)
    _, _, valid = delayed(codes, (0, 1), 99, begin=2)
    assert valid.tolist() == [[[False, False, True, True, False], [False, False, False, True, True]]]


def test_on_policy_steps_learn_from_the_teacher_alone(family, tokens):
    options = {"on_policy": 1.0, "learning_rate": 0.01, **SMALL}
    tm.distill(family / "teacher", tokens, 2, family / "mine", steps=20, **options)
    log = log_of(family / "mine")
    assert "cross_entropy" not in log[1]
    assert log[2]["distillation"] < log[1]["distillation"]
    tm.distill(family / "teacher", tokens, 2, family / "half", steps=10, **{**options, "on_policy": 0.5})
    assert "cross_entropy" in log_of(family / "half")[1]


def test_what_is_kept_of_logits_is_restored():
    full = torch.randn(3, 5, 40, generator=rng(1)) * 3
    for keep in (1, 8, 39):
        values, picked = cut_to(full, keep)
        assert (values.dtype, picked.dtype) == (torch.float16, torch.int16)
        back = restored(values, picked, 40)
        torch.testing.assert_close(back.exp().sum(-1), torch.ones(3, 5))
        exact = torch.log_softmax(full, -1)
        torch.testing.assert_close(back.gather(-1, picked.long()), exact.gather(-1, picked.long()), atol=0.01, rtol=0)
        others = back.scatter(-1, picked.long(), float("nan"))
        assert torch.nanquantile(others, 1.0, dim=-1).equal(torch.nanquantile(others, 0.0, dim=-1))
    assert kl(exact, restored(*cut_to(full, 40), 40)).max() < 1e-4
    lost = [float(forward_kl(full, restored(*cut_to(full, keep), 40)).mean()) for keep in (1, 4, 16, 40)]
    assert lost == sorted(lost, reverse=True)


def test_cached_logits_stand_in_for_the_teacher(family, tokens):
    options = {"cache_logits": 64, "learning_rate": 0.01, **SMALL}
    done = tm.distill(family / "teacher", tokens, 2, family / "mine", steps=40, **options)
    log, summary = log_of(family / "mine"), done.cache
    assert log[-1]["validation_kl"] < 0.95 * log[0]["validation_kl"]
    plain = tm.distill(family / "teacher", tokens, 2, family / "plain", steps=1, **SMALL)
    first = log_of(family / "plain")[0]
    assert log[0]["validation_kl"] == pytest.approx(first["validation_kl"], rel=1e-3)  # all 64 entries are kept
    assert plain.cache is None
    folder = family / "mine.training" / "logits"
    assert json.loads((folder / "cache.json").read_text()) == summary
    assert summary["tokens_kept"] == 64
    assert summary["windows"] == 16  # 375 frames of clips, windows of 25, in files of a batch
    assert summary["kl_nats"] < 1e-3
    assert summary["kept"] == pytest.approx(1.0, abs=1e-3)
    assert summary["bytes"] == sum(p.stat().st_size for p in folder.glob("train-*.safetensors"))
    per_window = 4 * 28 * 64 * 4
    assert 16 * per_window < summary["bytes"] < 16 * per_window * 1.1
    assert log[0]["cache_kl_nats"] == summary["kl_nats"]


def test_a_cache_that_was_cut_off_goes_on(family, tokens):
    options, calls = {"cache_logits": 8, **SMALL}, []

    def stop():
        calls.append(0)
        return len(calls) == 3

    with pytest.raises(Cancelled, match="stopped after 2 of 4 parts of the cache; resume goes on from there"):
        tm.distill(family / "teacher", tokens, 2, family / "parts", steps=6, should_stop=stop, **options)
    folder = family / "parts.training" / "logits"
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert len(before) == 2
    tm.distill(family / "teacher", tokens, 2, family / "parts", steps=6, resume=True, **options)
    assert all((folder / name).stat().st_mtime_ns == at for name, at in before.items())
    tm.distill(family / "teacher", tokens, 2, family / "whole", steps=6, **options)
    assert (family / "parts" / "model.safetensors").read_bytes() == (
        family / "whole" / "model.safetensors"
    ).read_bytes()


def test_no_teacher_runs_once_its_logits_are_cached(teacher, tokens, tiny_family, tmp_path):
    own = read_teacher(tiny_family / "teacher")
    session = Session(own, tokens, DistillSpec(2, cache_logits=8, **SMALL), OneProcess())
    session.cache(tmp_path / "logits")
    assert all(p.is_meta for p in own.decoder.parameters())
    parts = [part() for part in session.loss(rng(), 0.0)]
    parts[0]["loss"].backward()
    assert session.student.decoder.lm_heads[0].weight.grad.abs().max() > 0
    assert session.validate()["validation_kl"] > 0


def test_shorter_windows_come_in_larger_numbers(teacher, tokens):
    spec = DistillSpec(2, batch=2, seconds=1.6, shortest=0.4, accumulate=2)
    session, random = Session(teacher, tokens, spec, OneProcess()), rng()
    drawn = [session._draw(random) for _ in range(30)]
    assert {tuple(d.codes.shape) for d in drawn} == {(2, 4, 40), (4, 4, 20), (8, 4, 10)}
    assert len(session.loss(random, 0.0)) == 2
    assert DistillSpec(2, seconds=10.0, shortest=3.0).parts == (1, 2)
    assert DistillSpec(2, seconds=10.0).parts == (1,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"guidance": "free"},
            "guidance is 'free'; fixed with a scale, as fixed:3, or input with a range of them, as input:1-6",
        ),
        ({"guidance": "fixed:1"}, "guidance is fixed:1, which is none at all"),
        ({"guidance": "fixed:99"}, "cfg must be a number from 1 to 20"),
        ({"guidance": "fixed:1-6"}, "guidance is 'fixed:1-6'"),
        ({"guidance": "input:3"}, "guidance is 'input:3'"),
        ({"guidance": "input:6-1"}, "guidance goes from 6 to 1; the lower scale first"),
        ({"guidance": "input:0-6"}, "cfg must be a number from 1 to 20"),
        ({"guidance": "input:1-6", "loss": "cross-entropy"}, "guidance need one that does"),
        ({"hidden": "mean:1"}, "hidden is 'mean:1'; mse or cosine"),
        ({"hidden": "mse:-1"}, "hidden is 'mse:-1'"),
        ({"on_policy": 1.5}, "on_policy is 1.5; 0 to 1"),
        ({"on_policy": 0.5, "cache_logits": 8}, "cached logits stand in for the teacher"),
        ({"loss": "cross-entropy", "on_policy": 0.5}, "the loss cross-entropy asks no teacher"),
        ({"shortest": 5.0, "cache_logits": 8}, "cached logits stand in for the teacher, on windows of one length"),
        ({"shortest": 20.0}, "shortest is 20.0; above 0 and at most 10"),
        ({"cache_logits": 0}, "cache_logits is 0; a whole number above 0"),
        ({"batch": 6, "accumulate": 4}, "a batch of 6 in 4 parts; a divisor"),
        ({"codebook_weights": (1, -1)}, "the codebook weights are .1, -1.; numbers of 0 or more"),
        ({"patience": 0}, "patience is 0"),
        ({"temperature": "x"}, "a temperature must be numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        DistillSpec(2, **options)


def test_codebook_weights_must_be_as_many_as_codebooks(teacher, tokens):
    with pytest.raises(ValueError, match="there are 2 codebook weights; the teacher has 4 codebooks"):
        Session(teacher, tokens, DistillSpec(2, codebook_weights=(1, 2), **SMALL), OneProcess())


def test_rows_of_drawn_windows():
    drawn = Drawn(torch.arange(12).view(3, 2, 2), ("a", "b", "c"), torch.tensor([True, False, True]), 1, (7, 8, 9))
    part = drawn.rows(1, 3)
    assert (part.captions, part.picks, part.begin, len(part)) == (("b", "c"), (8, 9), 1, 2)
    assert part.codes[0].tolist() == [[4, 5], [6, 7]]
    assert part.left_out.tolist() == [False, True]
