"""Narrower students: what the declared rules of weight transfer must keep, and what they must refuse."""

import copy
import json
import shutil

import pytest
import torch
from test_distill import write_clips
from torch import nn

import tinymusician_core as tm
from tinymusician_core.distill.narrow import LAYERS, Size, cut, cut_text, important_channels, narrow
from tinymusician_core.distill.source import read_teacher
from tinymusician_core.distill.student import Shape, check_units, make_student
from tinymusician_core.records import ModelError, SamplingSpec


@pytest.fixture(scope="module")
def teacher(tiny_family):
    return read_teacher(tiny_family / "teacher")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_cut_product_is_the_best_of_its_rank_and_shares_its_size_out_evenly():
    left, right = random(9, 6), random(6, 14, seed=1)
    u, s, v = torch.linalg.svd(left @ right, full_matrices=False)
    for rank in (2, 5, 6):
        a, b = cut(left, right, rank)
        assert (a.shape, b.shape) == ((9, rank), (rank, 14))
        torch.testing.assert_close(a @ b, (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a.norm(dim=0), b.norm(dim=1), atol=1e-4, rtol=1e-4)
    a, b = cut(left, right, 8)  # more room than there is to fill
    torch.testing.assert_close(a @ b, left @ right, atol=1e-5, rtol=1e-4)


def test_dead_channels_are_the_first_to_go(teacher):
    state = {name: tensor.clone() for name, tensor in teacher.decoder.state_dict().items()}
    dead = torch.tensor([1, 5, 17, 30])
    for name, tensor in state.items():
        if "embed_tokens" in name:
            tensor[:, dead] = 0.0
        elif name.endswith(("out_proj.weight", "fc2.weight")):
            tensor[dead] = 0.0
    kept = important_channels(state, Size((0, 1, 2, 3), 28, 4, 48))
    assert kept.tolist() == [c for c in range(32) if c not in dead.tolist()]


def test_attention_keeps_the_heads_that_weigh_most_and_their_scores(teacher):
    """At the teacher's head width a kept head scores and writes between the kept channels as it did."""
    size = Size((0, 2), 16, 2, 48)
    made = narrow(teacher.decoder.state_dict(), 4, size, teacher.text_encoder.projection)
    state, prefix = teacher.decoder.state_dict(), f"{LAYERS}2.self_attn."
    q, k, v = (state[f"{prefix}{n}_proj.weight"][:, made.channels].view(4, 8, 16) for n in "qkv")
    out = state[f"{prefix}out_proj.weight"][made.channels].view(16, 4, 8)
    writes = torch.stack([out[:, h] @ v[h] for h in range(4)])
    heads = writes.flatten(1).norm(dim=1).topk(2).indices.sort().values
    ours = {n: made.state[f"{LAYERS}1.self_attn.{n}_proj.weight"] for n in ("q", "k", "v", "out")}
    for place, head in enumerate(heads):
        rows = slice(8 * place, 8 * place + 8)
        torch.testing.assert_close(ours["q"][rows].T @ ours["k"][rows], q[head].T @ k[head])
        torch.testing.assert_close(ours["out"][:, rows] @ ours["v"][rows], writes[head])


def test_narrower_heads_are_cut_by_svd_and_score_as_loudly(teacher):
    made = narrow(teacher.decoder.state_dict(), 4, Size((0,), 32, 4, 48), None)
    halved = narrow(teacher.decoder.state_dict(), 4, Size((0,), 16, 4, 48), teacher.text_encoder.projection)
    assert torch.equal(made.channels, torch.arange(32))
    q, k = (made.state[f"{LAYERS}0.self_attn.{n}_proj.weight"][:, halved.channels].view(4, 8, 16) for n in "qk")
    ours = [halved.state[f"{LAYERS}0.self_attn.{n}_proj.weight"].view(4, 4, 16) for n in "qk"]
    for head in range(4):
        u, s, v = torch.linalg.svd(q[head].T @ k[head] / 8**0.5)
        found = ours[0][head].T @ ours[1][head] / 4**0.5
        torch.testing.assert_close(found, (u[:, :4] * s[:4]) @ v[:4], atol=1e-5, rtol=1e-4)


def test_the_cut_of_the_text_alone_is_exact_at_the_text_encoders_width_and_one(teacher):
    state = {name: tensor.clone() for name, tensor in teacher.decoder.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in state.items()}
    projection, text = teacher.text_encoder.projection, random(5, 24)
    made = cut_text(state, Size((0, 3), 26, 2, 48), projection)
    for index in (0, 3):
        for part in "kv":
            name = f"{LAYERS}{index}.encoder_attn.{part}_proj.weight"
            torch.testing.assert_close(
                made(text) @ state[name].T, projection(text) @ before[name].T, atol=1e-4, rtol=1e-3
            )
    plain = cut_text(dict(before), Size((0, 3), 16, 2, 48), None)  # one width of text encoder and decoder
    assert plain.weight.shape == (16, 32)
    assert not plain.bias.any()


def test_a_narrow_student_checks_itself_and_only_a_width_brings_a_projection(teacher):
    student = make_student(teacher.decoder, Shape(2, width=16, ffn=20), teacher.text_encoder.projection)
    config = student.decoder.config
    sizes = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.ffn_dim)
    assert sizes == (2, 16, 2, 20)
    assert len(student.channels) == 16
    assert all(p.requires_grad for p in student.parameters())
    assert isinstance(student.projection, nn.Linear)
    thin = make_student(teacher.decoder, Shape((1, 3), ffn=20), teacher.text_encoder.projection)
    assert thin.chosen == (1, 3)
    assert thin.projection is None
    made = narrow(teacher.decoder.state_dict(), 4, Size((1, 3), 32, 4, 20), None)
    check_units(teacher.decoder, thin.decoder, (1, 3), made)
    spoiled = copy.deepcopy(thin.decoder)
    with torch.no_grad():
        spoiled.model.decoder.layers[1].fc2.weight[3] *= 1.1
    with pytest.raises(ModelError, match="the student's layer 1 is off by .* from what it kept of layer 3"):
        check_units(teacher.decoder, spoiled, (1, 3), made)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 64}, "the student's width is 64; at most 32 is allowed, the teacher's"),
        ({"heads": 8}, "the student's heads is 8; at most 4"),
        ({"ffn": 100}, "the student's ffn is 100; at most 48"),
        ({"width": 24, "heads": 2}, "a width of 24 with 2 heads; .* at most 8 for each"),
        ({"width": 18, "heads": 4}, "a width of 18 with 4 heads"),
        ({"width": 0}, "the student's width is 0; a whole number above 0"),
        ({"layers": (0, 4)}, "the student's layer 4 is not there; the teacher has 0 to 3"),
        ({"layers": (2, 1)}, "the layers .2, 1.; different whole numbers from 0 on are allowed, in order"),
    ],
)
def test_sizes_that_a_teacher_cannot_give_are_named(teacher, options, words):
    with pytest.raises(ValueError, match=words):
        Shape(**{"layers": 2, **options}).of(teacher.decoder.config)


def test_a_narrow_student_plays_from_its_own_folder(tiny_family, tmp_path):
    family, tokens = shutil.copytree(tiny_family, tmp_path / "models"), write_clips(tmp_path / "tokens")
    log = family / "mine.training" / "log.jsonl"
    options = {"width": 16, "ffn": 24, "batch": 4, "seconds": 1.0, "learning_rate": 0.01, "hidden": "mse:0.5"}
    tm.distill(family / "teacher", tokens, (0, 3), family / "mine", steps=40, **options)
    student = tm.load(family / "mine")
    assert (student.decoder.config.width, student.decoder.config.heads, student.decoder.config.ffn) == (16, 2, 24)
    assert student.text_encoder.projection.weight.shape == (16, 24)
    assert student.generate("a calm piano", SamplingSpec(seconds=1)).audio.shape == (1, 32000)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert records[-1]["validation_kl"] < records[0]["validation_kl"]
    assert records[4]["hidden"] < records[1]["hidden"]


def test_a_narrow_musicgen_loads_in_plain_transformers(tiny_musicgen, tmp_path):
    from transformers import MusicgenForConditionalGeneration

    tokens, small = write_clips(tmp_path / "tokens"), {"batch": 4, "seconds": 1.0, "steps": 1}
    tm.distill(tiny_musicgen, tokens, 2, tmp_path / "student", width=16, **small)
    theirs, info = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.enc_to_dec_proj.weight.shape == (16, 24)
    ours = tm.load(tmp_path / "student")
    states, _ = ours.text_encoder.encode(["lively flute"])
    tokens = ours.text_encoder.tokenize(["lively flute"])
    with torch.no_grad():
        wanted = theirs.enc_to_dec_proj(theirs.text_encoder(*tokens).last_hidden_state)
    torch.testing.assert_close(states, wanted)
    with pytest.raises(ValueError, match="the student's width is 24, the text encoder's, .* any other width"):
        tm.distill(tiny_musicgen, tmp_path / "tokens", 2, tmp_path / "other", width=24, **small)
