"""From a budget to a model, on a tiny one; and the measurements that it rests on."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import save_tiny_musicgen
from torch import nn

import tinymusician_core as tm
from tinymusician_core.engine.decoder import DecoderLayer
from tinymusician_core.quant import calibration, cost, sensitivity, workbench
from tinymusician_core.quant.adaptive import adapt
from tinymusician_core.quant.apply import apply_plan, quantize
from tinymusician_core.quant.cachefile import Measured
from tinymusician_core.quant.calibration import Calibration, from_folder, sampled
from tinymusician_core.quant.plan import Plan, packable
from tinymusician_core.quant.report import best_of
from tinymusician_core.quant.search import ImpossibleBudget
from tinymusician_core.quant.sensitivity import ShortWay, groups, sensitivities
from tinymusician_core.quant.trial import Harm, Judge, inputs_of, tried
from tinymusician_core.records import Cancelled, SamplingSpec
from tinymusician_core.tokens import write_tokens

SCHEMES = ["fp32", "fp16", "int8", "int4"]


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path_factory):
    """Few and short measurements, in a cache of their own."""
    monkeypatch.setenv("TINYMUSICIAN_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(calibration, "SECONDS", 0.5)
    for name, windows in (("MOMENT_WINDOWS", 4), ("JUDGE_WINDOWS", 3), ("HELD_OUT_WINDOWS", 2)):
        monkeypatch.setattr(workbench, name, windows)
    monkeypatch.setattr(cost, "LEAST_S", 0.0)
    monkeypatch.setattr(cost, "LEAST_PASSES", 2)
    monkeypatch.setattr(workbench, "CLIP_S", 0.5)
    monkeypatch.setattr(cost, "CLIPS", 1)


@pytest.fixture
def student(tiny_family):
    return tm.load(tiny_family / "student")


@pytest.fixture
def tokens(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "validation"):
        clips = [torch.randint(0, 64, (4, 40), generator=generator) for _ in range(3)]
        write_tokens(tmp_path / "tokens", split, clips, [{"captions": ["a calm piano"], "bars": [0, 10]}] * 3)
    return tmp_path / "tokens"


def test_what_was_measured_is_kept_and_a_cut_line_is_not(tmp_path):
    kept = Measured("some", tmp_path)
    kept.put("a", {"x": 1})
    kept.put("b", {"x": 2})
    with open(kept.path, "a") as file:
        file.write('{"key": "c", "x"')
    again = Measured("some", tmp_path)
    assert (again.get("a"), again.get("b"), again.get("c")) == ({"x": 1}, {"x": 2}, None)
    again.put("c", {"x": 3})
    assert Measured("some", tmp_path).get("c") == {"x": 3}


def test_tokens_of_a_folder_are_what_the_decoder_reads(student, tokens):
    found = from_folder(student, tokens, "train", seed=1, windows=5)
    assert found.codes.shape == (5, 4, 12)
    assert found.inputs.shape == found.valid.shape == (5, 4, 15)
    assert bool((found.inputs[:, :, 0] == 64).all())
    assert torch.equal(found.inputs[:, 2, 3:15], found.codes[:, 2])
    assert found.valid.sum() == found.codes.numel()
    assert found.hash == from_folder(student, tokens, "train", seed=1, windows=5).hash
    assert found.hash != from_folder(student, tokens, "train", seed=2, windows=5).hash


def test_tokens_of_another_model_are_refused(student):
    with pytest.raises(ValueError, match="4 codebooks with codes up to 99; this model has 4 of 64 entries"):
        Calibration.of(torch.full((1, 4, 5), 99), ["a"], (0, 1, 2, 3), 64, "")


def test_a_model_plays_its_own_tokens(student):
    found = sampled(student, windows=3)
    assert found.codes.shape == (3, 4, 12)
    assert 0 <= int(found.codes.min()) <= int(found.codes.max()) < 64
    assert not [word for prompt in found.prompts for word in student.unknown_words(prompt)]
    assert found.hash == sampled(student, windows=3).hash
    assert torch.equal(found.part(1, 3).codes, found.codes[1:])
    for seed, (prompt, codes) in enumerate(zip(found.prompts, found.codes, strict=True)):
        clip = student.generate(prompt, SamplingSpec(seconds=calibration.SECONDS, seed=seed))
        assert torch.equal(torch.from_numpy(clip.codes), codes)


@pytest.mark.parametrize("source", ["tiny_family", "tiny_musicgen"])
def test_a_trial_leaves_no_trace_and_is_what_the_plan_does(request, source):
    folder = request.getfixturevalue(source)
    model = tm.load(folder / "student" if source == "tiny_family" else folder)
    before = {name: tensor.clone() for name, tensor in model.modules.state_dict().items()}
    schemes = Plan.of({"*": "fp16", "decoder.*": "int8"}).assign(model.modules)
    spec = SamplingSpec(seconds=0.5)
    plain = model.generate("a calm piano", spec).audio
    for _ in range(2):
        with tried(model.modules, schemes):
            tried_audio = model.generate("a calm piano", spec).audio
    assert all(torch.equal(before[name], tensor) for name, tensor in model.modules.state_dict().items())
    assert np.array_equal(model.generate("a calm piano", spec).audio, plain)
    apply_plan(model.modules, Plan.of({"*": "fp16", "decoder.*": "int8"}))
    assert np.array_equal(model.generate("a calm piano", spec).audio, tried_audio)


def test_harm_is_the_divergence_by_hand_and_nothing_for_the_float_model(student, tokens):
    found = from_folder(student, tokens, windows=5)
    judge = Judge(student, found)
    assert judge.harm({}) == judge.harm({"decoder.heads": "fp32"}) == Harm((0.0,) * 4, 0.0)
    states, mask = student.text_encoder.encode_each(found.prompts)
    schemes = {"decoder.heads": "int4", "codec.decoder.magnitude": "int4"}
    logits, sounds = [], []
    for plan in ({}, schemes):
        with tried(student.modules, plan), torch.inference_mode():
            logits.append(student.decoder.logits(found.inputs, states, mask).log_softmax(-1))
            sounds.append(student.codec.decode(found.codes[:4]))
    wanted = (logits[0].exp() * (logits[0] - logits[1])).sum(-1)
    harm = judge.harm(schemes)
    for k in range(4):
        assert harm.kl[k] == pytest.approx(float(wanted[:, k][found.valid[:, k]].mean()), rel=1e-4)
    noise = float((sounds[1] - sounds[0]).square().sum() / sounds[0].square().sum() / 2)
    assert harm.codec == pytest.approx(noise, rel=1e-3)
    assert judge.harm({"codec.decoder.magnitude": "int4"}).kl == (0.0,) * 4
    for window, value in enumerate(harm.windows):
        each = [float(wanted[window, k][found.valid[window, k]].mean()) for k in range(4)]
        assert value == pytest.approx(sum(each) / 4, rel=1e-4)
    assert len(harm.windows) == 5
    assert harm.mean_kl() == pytest.approx(sum(harm.kl) / 4)
    weighted = Judge(student, found, weights=(3, 1, 1, 1)).harm(schemes)
    assert weighted.kl == harm.kl
    assert weighted.mean_kl() == pytest.approx((3 * harm.kl[0] + harm.kl[1] + harm.kl[2] + harm.kl[3]) / 6)
    for wrong in ((1, 1, 1), (1, 1, 1, 0)):
        with pytest.raises(ValueError, match="weights must be 4 numbers above 0, one a codebook"):
            Judge(student, found, weights=wrong)


@pytest.mark.parametrize("source", ["tiny_family", "tiny_musicgen"])
@pytest.mark.parametrize("name", ["embeddings.1", "layers.0.qkv", "layers.1.cross_kv", "layers.1.fc2", "heads"])
def test_what_lies_before_a_changed_layer_is_not_computed_again(request, source, name, monkeypatch):
    folder = request.getfixturevalue(source)
    model = tm.load(folder / "student" if source == "tiny_family" else folder)
    found = sampled(model, windows=3)
    judge, schemes = Judge(model, found), {f"decoder.{name}": "int4"}
    states, mask = model.text_encoder.encode_each(found.prompts)
    plain = model.decoder.logits(found.inputs, states, mask).log_softmax(-1).detach()
    with tried(model.modules, schemes), torch.inference_mode():
        other = model.decoder.logits(found.inputs, states, mask).log_softmax(-1)
    apart = (plain.exp() * (plain - other)).sum(-1)
    wanted = [float(apart[:, k][found.valid[:, k]].mean()) for k in range(apart.shape[1])]
    ran, span, layers = [], DecoderLayer.span, len(model.decoder.layers)
    monkeypatch.setattr(DecoderLayer, "span", lambda layer, *given: ran.append(layer) or span(layer, *given))
    first = {"embeddings.1": 0, "heads": layers}.get(name, int(name.startswith("layers.1.")))
    for _ in range(2):
        ran.clear()
        assert judge.harm(schemes).kl == pytest.approx(wanted, rel=1e-2, abs=1e-7)
        assert len(ran) == layers - first
    assert max(wanted) > 0


def test_moments_are_those_of_the_inputs(student, tokens):
    found = from_folder(student, tokens, windows=2)
    inputs = inputs_of(student, found)
    moments = inputs.moments
    linears = {name: m for name, m in packable(student.modules).items() if isinstance(m, nn.Linear)}
    assert set(moments) == set(linears)
    assert all(moments[name].shape == (m.in_features, m.in_features) for name, m in linears.items())
    seen = []
    hook = student.decoder.heads.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.inference_mode():
        student.decoder.logits(found.inputs, *student.text_encoder.encode_each(found.prompts))
    hook.remove()
    torch.testing.assert_close(moments["decoder.heads"], seen[0].T @ seen[0], rtol=1e-4, atol=1e-3)
    rows = inputs.rows["decoder.heads"]
    assert 2 <= len(rows) <= 256
    assert all(bool((row == seen[0]).all(dim=1).any()) for row in rows)


def test_groups_hold_every_module_once(student):
    found = [name for group in groups(student.modules) for name in group.modules]
    assert sorted(found) == sorted(packable(student.modules))
    assert "decoder.rest" in [group.name for group in groups(student.modules)]


def test_a_search_that_was_stopped_goes_on_from_there(student, tokens):
    judge = Judge(student, from_folder(student, tokens, windows=2))
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 9

    with pytest.raises(Cancelled, match="stopped after 9 of"):
        sensitivities(student, judge, "k", SCHEMES, None, stop)
    told = []
    judge.harm, measure = (lambda plan: told.append(plan) or measure(plan)), judge.harm
    options = sensitivities(student, judge, "k", SCHEMES)
    assert len(told) + 9 >= len(options) > len(told)
    assert sensitivities(student, judge, "k", SCHEMES) == options
    assert len(told) + 9 >= len(options)


def test_other_rounding_is_measured_anew(student, tokens, monkeypatch):
    judge, told = Judge(student, from_folder(student, tokens, windows=1)), []
    judge.harm, measure = (lambda plan: told.append(plan) or measure(plan)), judge.harm
    sensitivities(student, judge, "k", ["fp32", "int4"])
    first = len(told)
    sensitivities(student, judge, "k", ["fp32", "int4"])
    assert len(told) == first
    monkeypatch.setattr(sensitivity, "ARITHMETIC", (*sensitivity.ARITHMETIC, calibration))  # as if it had other source
    sensitivities(student, judge, "k", ["fp32", "int4"])
    assert len(told) == 2 * first


def test_the_short_way_comes_near_the_long_one(student, tokens):
    found = from_folder(student, tokens, windows=8)
    inputs = inputs_of(student, found)
    judge = Judge(student, found, inputs.moments)
    long = {(o.group.name, o.scheme): o.harm.total for o in sensitivities(student, judge, "long", SCHEMES)}
    told = []
    judge.harm, measure = (lambda plan: told.append(plan) or measure(plan)), judge.harm
    short = ShortWay(student, judge, inputs.rows, found.prompts, SCHEMES)
    options = sensitivities(student, judge, "short", SCHEMES, short=short)
    text, layers = [], []
    for option in options:
        if option.group.name.startswith("text_encoder."):
            text.append(option)
        elif option.group.name in inputs.rows:
            layers.append(option)
    names = {option.group.name for option in layers}
    assert len([plan for plan in told if set(plan) & names]) == len(names)
    assert len([plan for plan in told if any(name.startswith("text_encoder.") for name in plan)]) == 1
    for some in (text, layers):
        assert {option.harm.total for option in some if option.scheme == "fp32"} == {0.0}
        for scheme in ("int8", "int4"):
            near = [option.harm.total for option in some if option.scheme == scheme]
            far = [long[option.group.name, option.scheme] for option in some if option.scheme == scheme]
            assert 0.5 < sum(near) / sum(far) < 2.0


def test_costs_are_measured_once_and_kept(student, monkeypatch):
    table = cost.CostTable(student)
    assert table.stage("decoder.layers.0.qkv") == "step"
    assert table.stage("decoder.layers.0.cross_kv") == "text"
    assert table.stage("codec.decoder.spread") == "codec"
    assert table.stage("decoder.norm") is None
    first = table.call_s("decoder.layers.0.qkv", "int8")
    assert first > 0 == table.call_s("decoder.norm", "fp16")
    monkeypatch.setattr(cost, "measure", lambda *_: pytest.fail("measured again"))
    assert table.call_s("decoder.layers.1.qkv", "int8") == first
    assert cost.CostTable(student).call_s("decoder.layers.0.qkv", "int8") == first
    other = cost.Cost(12.5, 1, False)
    monkeypatch.setattr(cost, "measure", lambda *_: other)
    monkeypatch.setattr(cost, "FRESH_S", -1.0)
    assert cost.CostTable(student).call_s("decoder.layers.0.qkv", "int8") == 12.5, "those of long ago are measured anew"


def test_a_budget_leads_to_a_model_that_keeps_it(student, tokens, tmp_path):
    whole = quantize(student, Plan.of({"*": "fp16"}), tmp_path / "half").disk_bytes
    made = quantize(student, out_dir=tmp_path / "q", max_mb=0.8 * whole / 1e6, data=tokens, schemes=SCHEMES[1:])
    assert made.disk_bytes == made.search["foreseen"]["disk_bytes"] == made.search["measured"]["disk_bytes"]
    assert 0.6 * whole < made.disk_bytes <= 0.8 * whole
    loaded = tm.load(tmp_path / "q")
    assert loaded.disk_bytes == made.disk_bytes
    plan = json.loads((tmp_path / "q" / "plan.json").read_text())
    assert plan["base"] == {"name": "student", "hash": student.hash}
    assert plan["versions"]["torch"] == torch.__version__
    assert plan["modules"] == made.schemes
    report = json.loads((tmp_path / "q" / "report.json").read_text())
    assert report["measured"] == made.search["measured"]
    assert {row["module"] for row in report["modules"]} == {group.name for group in groups(student.modules)}
    assert "| decoder.heads |" in (tmp_path / "q" / "report.md").read_text()
    code = (
        "import sys, tinymusician_core as tm; m = tm.load(sys.argv[1]);"
        "print(tm.generate(m, 'a calm piano', seconds=0.5).codes.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "q")], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == tm.generate(loaded, "a calm piano", seconds=0.5).codes.tolist()


def test_a_musicgen_in_transformers_format_takes_a_budget_the_short_way(tiny_musicgen, tmp_path, monkeypatch):
    monkeypatch.setattr(workbench, "MANY_WEIGHTS", 1)
    made = quantize(tiny_musicgen, out_dir=tmp_path / "q", max_kl=0.05, schemes=SCHEMES)
    assert made.disk_bytes == made.search["foreseen"]["disk_bytes"]
    assert max(made.search["measured"]["kl"], made.search["measured"]["codec_error"]) <= 0.05
    assert tm.load(tmp_path / "q").generate("a calm piano", SamplingSpec(seconds=0.5)).codes.shape == (4, 25)


def test_a_model_with_its_text_before_the_music_is_judged_prompt_by_prompt(tmp_path):
    model = tm.load(save_tiny_musicgen(tmp_path / "melody", melody=True))
    codes = torch.randint(0, 64, (2, 4, 10), generator=torch.Generator().manual_seed(0))
    prompts = ["a calm piano", "the lively flute and drums in g major"]
    found = Calibration.of(codes, prompts, model.decoder.config.delays, 64, "")
    both = Judge(model, found).harm({"decoder.heads": "int4"})
    alone = [Judge(model, found.part(i, i + 1)).harm({"decoder.heads": "int4"}) for i in range(2)]
    assert both.mean_kl() == pytest.approx((alone[0].mean_kl() + alone[1].mean_kl()) / 2, rel=1e-4)
    assert "decoder.heads" in inputs_of(model, found).moments


def test_what_is_written_does_the_harm_that_was_measured(student, tokens, tmp_path):
    adapted = adapt(student, "q", max_kl=0.01, data=tokens, schemes=SCHEMES)
    assert max(adapted.best.measured.harm.mean_kl(), adapted.best.measured.harm.codec) <= 0.01
    made = quantize(student, out_dir=tmp_path / "q", max_kl=0.01, data=tokens, schemes=SCHEMES)
    loaded, found = tm.load(tmp_path / "q"), adapted.bench.tokens.judge
    logits = []
    for model in (student, loaded):
        states, mask = model.text_encoder.encode_each(found.prompts)
        with torch.inference_mode():
            logits.append(model.decoder.logits(found.inputs, states, mask).log_softmax(-1))
    kl = (logits[0].exp() * (logits[0] - logits[1])).sum(-1)[found.valid].mean()
    assert float(kl) == pytest.approx(made.search["measured"]["kl"], rel=0.02)


def test_plans_are_compared_and_drawn(student, tokens, tmp_path):
    made = quantize(student, out_dir=tmp_path / "q", max_kl=0.5, data=tokens, schemes=SCHEMES, compare=True)
    report, text = json.loads((made.folder / "report.json").read_text()), (made.folder / "report.md").read_text()
    families = {plan["family"] for plan in report["compared"]}
    assert families == {"uniform", "paper", "layers", "adaptive"}
    assert len(report["compared"]) >= 12
    assert (made.folder / "plans.png").read_bytes()[:4] == b"\x89PNG"
    points = {plan["name"]: (plan["disk_bytes"], plan["kl"] + plan["codec_error"]) for plan in report["compared"]}
    assert set(best_of(points)) <= set(points)
    _check_size_by_size(report, text)
    _check_seconds(report, text)


def _check_size_by_size(report, text):
    """Every uniform plan's size is held against an adaptive plan that has no more bytes, and no more KL."""
    uniform = [plan for plan in report["compared"] if plan["family"] == "uniform"]
    held = [each for each in report["size_by_size"] if each["rival"]["family"] == "uniform"]
    assert {each["rival"]["disk_bytes"] for each in held} == {plan["disk_bytes"] for plan in uniform}
    for each in report["size_by_size"]:
        rival, mine, best = each["rival"], each["adaptive"], each["best_fixed"]
        if "max_mb" in each["limits"]:
            assert mine["disk_bytes"] <= rival["disk_bytes"] == round(1e6 * each["limits"]["max_mb"])
        word = "better" if mine["kl"] < best["kl"] else "worse"
        assert each["measured"] in ((word,) if mine["kl"] != best["kl"] else ("equal", "the same plan"))
        assert each["apart_held_out"]["kl"] == pytest.approx(mine["held_out"]["kl"] - best["held_out"]["kl"], abs=1e-6)
        if rival["family"] == "uniform":
            smaller = [plan["kl"] for plan in uniform if plan["disk_bytes"] <= rival["disk_bytes"]]
            assert mine["kl"] <= best["kl"] == min(smaller)
    said = report["verdict"]
    assert said["sizes"] == len(held) == said["better"] + said["equal"] + said["the same plan"]
    assert isinstance(said["beats_the_papers_map_in_size_speed_and_kl"], bool)
    assert f"Of {len(held)} sizes of plans of one scheme, the adaptive plan has the lower KL at" in text
    assert "the paper's map in size, speed and KL at once" in text


def _check_seconds(report, text):
    spent, parts = report["seconds"], report["seconds"]["parts"]
    assert None not in parts.values(), "all that a comparison does was done"
    assert all(part["seconds"] > 0 for part in parts.values())
    assert sum(part["seconds"] for part in parts.values()) <= spent["total_s"]
    assert parts["sensitivity"]["measured"] > 0 == parts["sensitivity"]["from_earlier_runs"]
    assert f"{parts['sensitivity']['measured']} measured, 0 from earlier runs" in text


def test_a_search_says_what_an_earlier_one_had_measured(student, tokens, tmp_path):
    for name in ("a", "b"):
        quantize(student, out_dir=tmp_path / name, max_kl=0.5, data=tokens, schemes=SCHEMES)
    first, again = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("a", "b"))
    for part in ("sensitivity", "cost"):
        before, after = first["seconds"]["parts"][part], again["seconds"]["parts"][part]
        assert before["measured"] > 0 == before["from_earlier_runs"]
        assert (after["measured"], after["from_earlier_runs"]) == (0, before["measured"])
    assert again["seconds"]["parts"]["comparing"] is None
    text = (tmp_path / "b" / "report.md").read_text()
    assert f"0 measured, {before['measured']} from earlier runs" in text
    assert "| not done |" in next(line for line in text.splitlines() if line.startswith("| comparing: "))


def test_best_of_keeps_what_nothing_beats():
    points = {"small": (1, 5.0), "worse": (2, 6.0), "middle": (3, 2.0), "same": (4, 2.0), "best": (5, 1.0)}
    assert best_of(points) == ["small", "middle", "best"]


def test_what_cannot_be_is_said(student, tokens, tmp_path):
    with pytest.raises(ImpossibleBudget, match="max_mb 0.001 cannot be kept, .* megabytes is the least"):
        quantize(student, out_dir=tmp_path / "q", max_mb=0.001, data=tokens, schemes=SCHEMES)
    with pytest.raises(ValueError, match="no such scheme: 'int3'"):
        quantize(student, out_dir=tmp_path / "q", max_mb=1, data=tokens, schemes=["int3"])
    with pytest.raises(ValueError, match="either a plan or a budget"):
        quantize(student, out_dir=tmp_path / "q")
    with pytest.raises(ValueError, match="either a plan or a budget"):
        quantize(student, "int8", tmp_path / "q", max_mb=1)
    assert not (tmp_path / "q").exists()
