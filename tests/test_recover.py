"""Four bits that are trained: grids that are what is stored, and a recovery that wins back what rounding lost."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import save_tiny_musicgen
from torch import nn

import tinymusician_core as tm
from tinymusician_core.evaluate.likelihood import divergence_to, token_likelihood
from tinymusician_core.quant import calibration, lessons, recover
from tinymusician_core.quant.apply import quantize, recipe_of
from tinymusician_core.quant.embeddings import Int4Embedding
from tinymusician_core.quant.int4 import Int4Linear
from tinymusician_core.quant.lessons import lessons_of
from tinymusician_core.quant.plan import Plan
from tinymusician_core.quant.recover import Session, tensors_of, trainable
from tinymusician_core.quant.schemes import from_tensors, to_tensors
from tinymusician_core.quant.straight import Passing, StraightEmbedding, StraightLinear, grid_of
from tinymusician_core.quant.trial import Harm, Judge
from tinymusician_core.quant.twin import shared_copy, twin
from tinymusician_core.records import Cancelled
from tinymusician_core.tokens import TokenDataset, write_tokens

UNIFORM = Plan.of({"*": "fp16", "decoder.*": "int4"}, "uniform")
MIXED = Plan.of(
    {
        "*": "fp16",
        "decoder.*": "int4-row",
        "text_encoder.*": "int8",
        "decoder.heads": "int8",
        "decoder.embeddings.*": "int4",
    }
    | {"decoder.layers.0.fc1": "int4", "decoder.layers.1.out": "bf16", "decoder.layers.1.fc2": "fp32"},
    "mixed",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path_factory):
    """Few and short clips, in a cache of their own."""
    monkeypatch.setenv("TINYMUSICIAN_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(calibration, "SECONDS", 0.5)
    monkeypatch.setattr(recover, "CLIPS", 10)
    monkeypatch.setattr(recover, "HELD_OUT_WINDOWS", 4)


@pytest.fixture
def student(tiny_family):
    return tm.load(tiny_family / "student")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("tokens"), torch.Generator().manual_seed(0)
    for split, count in (("train", 24), ("validation", 8)):
        clips = [torch.randint(0, 64, (4, 40), generator=generator) for _ in range(count)]
        write_tokens(folder, split, clips, [{"captions": ["a calm piano"], "bars": [0, 10]}] * count)
    return folder


def layer(inputs: int, outputs: int, seed: int = 0) -> nn.Linear:
    made, generator = nn.Linear(inputs, outputs), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.weight.copy_(torch.randn(outputs, inputs, generator=generator))
    return made.requires_grad_(False)


def moment_of(inputs: int) -> torch.Tensor:
    rows = torch.randn(4 * inputs, inputs, generator=torch.Generator().manual_seed(1))
    return rows.T @ rows


@pytest.mark.parametrize("scheme", ["int4", "int4-row"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("inputs", [64, 80])
def test_a_grid_begins_as_what_is_stored_and_multiplies_as_it(scheme, rounding, inputs):
    linear = layer(inputs, 24)
    tensors = to_tensors(linear, scheme, moment_of(inputs) if rounding == "gptq" else None)
    straight, x = StraightLinear(grid_of(linear.weight, tensors), linear.bias), torch.randn(5, inputs)
    stored = straight.stored()
    assert set(stored) == set(tensors)
    assert all(torch.equal(stored[name], tensors[name]) for name in tensors)
    packed = from_tensors(linear, scheme, tensors)
    torch.testing.assert_close(straight(x), packed(x), rtol=0.02, atol=0.1)


@pytest.mark.parametrize("scheme", ["int4", "int4-row"])
def test_what_was_trained_is_what_is_stored(scheme):
    linear, generator = layer(80, 24), torch.Generator().manual_seed(3)
    straight = StraightLinear(grid_of(linear.weight, to_tensors(linear, scheme)), linear.bias)
    with torch.no_grad():
        for parameter in straight.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    packed = from_tensors(linear, scheme, straight.stored())
    bias = linear.bias
    identity = torch.eye(80)
    torch.testing.assert_close(straight(identity) - bias, packed(identity) - bias, rtol=0.01, atol=0.02)
    again = StraightLinear(grid_of(straight.grid().detach(), straight.stored()), bias)
    torch.testing.assert_close(again.grid(), straight.grid(), rtol=0, atol=0)


def test_an_embedding_on_a_grid_looks_up_what_the_packed_one_does():
    table = nn.Embedding(9, 48)
    tensors, tokens = to_tensors(table, "int4"), torch.tensor([[0, 8, 3]])
    straight = StraightEmbedding(grid_of(table.weight, tensors))
    assert torch.equal(straight(tokens), Int4Embedding.restore(table, tensors)(tokens))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in straight.stored().items())


def test_the_gradient_goes_straight_through_the_rounding():
    linear = layer(64, 16)
    grid = grid_of(linear.weight, to_tensors(linear, "int4"))
    wanted = torch.randn(16, 64, generator=torch.Generator().manual_seed(5))
    (grid() * wanted).sum().backward()
    scale = grid.scale.unsqueeze(2)
    torch.testing.assert_close(grid.place.grad.flatten(1), (wanted.unflatten(1, (-1, 64)) * scale).flatten(1))
    torch.testing.assert_close(grid.shift.grad, wanted.sum(1, keepdim=True) * grid.scale)
    each = (wanted * (grid.numbers().flatten(1) - 8.0)).sum(1, keepdim=True)
    torch.testing.assert_close(grid.stretch.grad, each * grid.scale / 8.0, rtol=1e-4, atol=1e-4)


def test_a_packed_layer_lets_the_gradient_of_its_float_self_pass():
    linear = layer(64, 16)
    packed = Int4Linear.pack(linear)
    x, y = torch.randn(3, 64, requires_grad=True), torch.randn(3, 16)
    passing = Passing(packed, linear.weight)
    assert torch.equal(passing(x), packed(x.detach()))
    (passing(x) * y).sum().backward()
    torch.testing.assert_close(x.grad, y @ linear.weight)


@pytest.mark.parametrize("plan", [UNIFORM, MIXED])
def test_a_twin_is_what_a_load_gives_and_leaves_the_model_alone(student, tmp_path, plan):
    before = {name: tensor.clone() for name, tensor in student.modules.state_dict().items()}
    recipe = recipe_of(student, plan)
    made = twin(student, recipe.schemes, tensors_of(student, recipe))
    assert all(torch.equal(before[name], tensor) for name, tensor in student.modules.state_dict().items())
    quantize(student, plan, tmp_path / "q")
    loaded, codes = tm.load(tmp_path / "q"), torch.randint(0, 64, (2, 4, 9))
    logits = [model.decoder.logits(codes, *model.text_encoder.encode(["a calm", "flute"])) for model in (made, loaded)]
    assert torch.equal(*logits)


def test_a_copy_shares_tensors_and_keeps_ties():
    one = nn.Linear(4, 4)
    tree = nn.ModuleDict({"a": one, "b": nn.Sequential(one)})
    other = shared_copy(tree)
    assert other["a"] is other["b"][0] is not one
    assert other["a"].weight is one.weight
    other["a"]._parameters["bias"] = None
    assert one.bias is not None


@pytest.mark.parametrize("plan", [UNIFORM, MIXED])
def test_the_student_begins_as_the_plan_and_only_four_bits_learn(student, tokens, plan):
    recipe = recipe_of(student, plan)
    session = Session(student, recipe.schemes, tensors_of(student, recipe), lessons_of(student, tokens, False), None)
    trained = {
        name.rpartition(".grid.")[0] for name, p in session.student.modules.named_parameters() if p.requires_grad
    }
    assert trained == set(trainable(recipe.schemes))
    found = session.trained()
    assert all(torch.equal(found[n][k], t) for n in found for k, t in tensors_of(student, recipe)[n].items())
    (part,) = session.loss(torch.Generator().manual_seed(0), 0.0)
    part()["loss"].backward()
    assert all(p.grad is not None for p in session.student.modules.parameters() if p.requires_grad)


def test_true_tokens_become_likelier_where_they_count(student, tokens, monkeypatch):
    recipe, unlikely = recipe_of(student, UNIFORM), []
    dataset = TokenDataset(tokens, "validation")
    for weight in (0.0, lessons.TRUE_TOKENS):
        monkeypatch.setattr(lessons, "TRUE_TOKENS", weight)
        after, _ = recover.recover(student, recipe, steps=40, data=tokens)
        made = twin(student, recipe.schemes, after.tensors)
        unlikely.append(token_likelihood(made, dataset).mean())
    assert unlikely[1] < unlikely[0]


def test_what_the_model_played_itself_counts_by_its_answers_alone(student, tokens):
    recipe = recipe_of(student, UNIFORM)
    schemes = dict.fromkeys(recipe.schemes, "fp32") | {"decoder.heads": "int4"}
    losses = []
    for true_tokens in (False, True):
        given = lessons_of(student, tokens, true_tokens)
        session = Session(student, schemes, tensors_of(student, replace(recipe, schemes=schemes)), given, None)
        (part,) = session.loss(torch.Generator().manual_seed(0), 0.0)
        losses.append(part()["loss"].item())
    assert 0 < losses[0] < 0.1 * losses[1]


def test_the_teacher_comes_nearer_where_it_counts(student, tiny_family, tokens, monkeypatch):
    monkeypatch.setattr(lessons, "TEACHERS", 0.01)  # random models are far apart
    teacher, recipe, apart = tm.load(tiny_family / "teacher"), recipe_of(student, UNIFORM), []
    dataset = TokenDataset(tokens, "validation")
    for counts in (None, teacher):
        after, found = recover.recover(student, recipe, steps=40, teacher=counts)
        apart.append(divergence_to(teacher, twin(student, recipe.schemes, after.tensors), dataset).mean())
        assert (found.teacher_kl_before is None) == (counts is None)
        assert ("and that to the teacher from" in found.sentence()) == (counts is not None)
    assert apart[1] < apart[0]
    assert found.kept


@pytest.mark.parametrize(("counts", "kept"), [(1e-9, False), (1e9, True)])
def test_what_is_kept_is_judged_as_it_was_trained(student, tiny_family, monkeypatch, counts, kept):
    apart = iter([0.1, 3.0, 0.2, 2.0])  # from the student and from the teacher, before and after
    monkeypatch.setattr(lessons, "TEACHERS", counts)
    monkeypatch.setattr(Judge, "divergence_of", lambda self, other: Harm((next(apart),) * 4, 0.0))
    recipe = recipe_of(student, UNIFORM)
    _, found = recover.recover(student, recipe, steps=1, teacher=tm.load(tiny_family / "teacher"))
    assert found.kept == kept
    told = (found.kl_before, found.teacher_kl_before, found.kl_after, found.teacher_kl_after)
    assert told == pytest.approx((0.1, 3.0, 0.2, 2.0))


@pytest.mark.parametrize(("max_kl", "kept"), [(0.25, True), (0.2, True), (0.15, False), (0.05, False)])
def test_a_teacher_does_not_take_the_divergence_beyond_its_budget(student, tiny_family, monkeypatch, max_kl, kept):
    apart = iter([0.1, 3.0, 0.2, 2.0])
    monkeypatch.setattr(lessons, "TEACHERS", 1e9)
    monkeypatch.setattr(Judge, "divergence_of", lambda self, other: Harm((next(apart),) * 4, 0.0))
    teacher = tm.load(tiny_family / "teacher")
    _, found = recover.recover(student, recipe_of(student, UNIFORM), steps=1, teacher=teacher, max_kl=max_kl)
    assert found.kept == kept
    assert (f"more than the budget of {max_kl}, so the weights from before" in found.sentence()) != kept


@pytest.mark.parametrize(("before", "after", "crossed"), [(0.1, 0.2, True), (0.3, 0.2, False), (0.1, 0.12, False)])
def test_what_was_beyond_a_budget_before_may_come_nearer(before, after, crossed):
    assert recover.crosses(before, after, 0.15) == crossed
    assert not recover.crosses(before, after, None)


def test_the_progress_shows_the_divergence_alone(student, tokens):
    recipe, told = recipe_of(student, UNIFORM), []
    judge = Judge(student, calibration.from_folder(student, tokens, "validation", 2, 8))
    recover.recover(student, recipe, steps=2, data=tokens, judge=judge, on_progress=lambda what, *_: told.append(what))
    shown = [float(what.rpartition(" ")[2]) for what in told if what.startswith("recovering, KL ")]
    before = judge.divergence_of(twin(student, recipe.schemes, tensors_of(student, recipe))).mean_kl()
    assert shown
    assert all(0 < kl < 10 * before for kl in shown)


@pytest.mark.parametrize("plan", [UNIFORM, MIXED])
def test_the_divergence_falls_and_nothing_else_changes(student, tokens, tmp_path, plan):
    recipe = recipe_of(student, plan)
    judge = Judge(student, calibration.from_folder(student, tokens, "validation", 2, 8))
    after, found = recover.recover(student, recipe, steps=40, data=tokens, judge=judge)
    assert found.kept
    assert found.kl_after < 0.8 * found.kl_before
    assert found.steps == 40
    assert judge.harm({k: v for k, v in recipe.schemes.items() if k[:5] != "codec"}).mean_kl() == pytest.approx(
        found.kl_before, rel=1e-3
    )
    assert "brought the KL from" in found.sentence()
    assert (after.plan, after.schemes) == (recipe.plan, recipe.schemes)
    first, second = tensors_of(student, recipe), tensors_of(student, after)
    changed = {n for n in first if any(not torch.equal(first[n][key], second[n][key]) for key in first[n])}
    assert changed <= set(trainable(recipe.schemes))
    shapes = [{(n, k): (t.dtype, t.shape) for n in some for k, t in some[n].items()} for some in (first, second)]
    assert shapes[0] == shapes[1]


def test_what_is_no_better_is_not_kept(student, tokens, monkeypatch):
    monkeypatch.setattr(recover, "LEARNING_RATE", 50.0)
    recipe = recipe_of(student, UNIFORM)
    after, found = recover.recover(student, recipe, steps=12, data=tokens)
    assert not found.kept
    assert found.kl_after >= found.kl_before
    assert "that is no better, so the weights from before it were kept" in found.sentence()
    wanted = tensors_of(student, recipe)
    assert all(torch.equal(after.tensors[n][key], wanted[n][key]) for n in wanted for key in wanted[n])


def test_a_recovered_model_has_the_size_of_the_plain_one_and_plays_the_same_in_a_fresh_process(student, tmp_path):
    plain = quantize(student, UNIFORM, tmp_path / "plain" / "q")
    made = quantize(student, UNIFORM, tmp_path / "q", recover=0.02)
    assert made.recovery["kl_after"] < made.recovery["kl_before"]
    assert (made.disk_bytes, made.schemes) == (plain.disk_bytes, plain.schemes)
    assert json.loads((tmp_path / "q" / "recovery.json").read_text())["note"] == made.note
    weights = [(folder / "model.safetensors").read_bytes() for folder in (plain.folder, made.folder)]
    assert weights[0] != weights[1]
    loaded = tm.load(tmp_path / "q")
    code = (
        "import sys, tinymusician_core as tm; m = tm.load(sys.argv[1]);"
        "print(tm.generate(m, 'a calm piano', seconds=0.5).codes.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "q")], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == tm.generate(loaded, "a calm piano", seconds=0.5).codes.tolist()


def test_a_musicgen_with_its_text_before_the_music_is_recovered_row_by_row(tmp_path):
    model = tm.load(save_tiny_musicgen(tmp_path / "melody", melody=True))
    recipe = recipe_of(model, Plan.of({"decoder.layers.*": "int4"}))
    _, found = recover.recover(model, recipe, steps=3)
    assert found.steps == 3
    assert found.tokens == "9 clips that the model played itself"


def test_what_cannot_be_recovered_is_said_before_any_work(student, tiny_family, tokens, tmp_path):
    with pytest.raises(ValueError, match="the plan has no int4 in the decoder, so there is nothing to recover"):
        quantize(student, "int8", tmp_path / "q", recover=1)
    for wrong in (0, -1, float("nan"), True, "1"):
        with pytest.raises(ValueError, match="a number of minutes above 0 is allowed"):
            quantize(student, UNIFORM, tmp_path / "q", recover=wrong)
    with pytest.raises(ValueError, match="data and weights are for a search or a recovery"):
        quantize(student, UNIFORM, tmp_path / "q", data=tokens)
    with pytest.raises(ValueError, match="a teacher is for a recovery; give recover with it"):
        quantize(student, UNIFORM, tmp_path / "q", teacher=student)
    stranger = tm.load(save_tiny_musicgen(tmp_path / "stranger"))
    for asked in ({"plan": UNIFORM}, {"max_mb": 1}):
        with pytest.raises(ValueError, match="reads other tokens than student; the model's own teacher is allowed"):
            quantize(student, out_dir=tmp_path / "q", recover=1, teacher=stranger, **asked)
    guided = tm.load(tiny_family / "student")
    guided.guidance = 3.0
    with pytest.raises(ValueError, match="differ in their guidance; leave the teacher out"):
        quantize(guided, UNIFORM, tmp_path / "q", recover=1, teacher=student)
    with pytest.raises(Cancelled, match="steps of recovery"):
        quantize(student, UNIFORM, tmp_path / "q", recover=1, data=tokens, should_stop=lambda: True)
    assert not (tmp_path / "q").exists()
