"""Likelihood and divergence on tiny random models, against transformers' own loss and against a step at a time."""

import numpy as np
import pytest
import torch
from conftest import PROMPTS, save_tiny_musicgen
from torch.nn import functional

import tinymusician_core as tm
from tinymusician_core.delay import delay
from tinymusician_core.distill import divergence
from tinymusician_core.distill.data import delayed
from tinymusician_core.evaluate.likelihood import divergence_to, perplexity, token_likelihood
from tinymusician_core.records import Cancelled


class Clips:
    """Random codes of the tiny models' shape, with a caption each."""

    def __init__(self, lengths: tuple[int, ...] = (20, 33, 26), codebooks: int = 4, entries: int = 64):
        rng = torch.Generator().manual_seed(5)
        self.codebooks = codebooks
        self._codes = [torch.randint(entries, (codebooks, n), generator=rng) for n in lengths]
        self.records = [{"captions": [PROMPTS[i % len(PROMPTS)], "a harp"]} for i in range(len(lengths))]

    def clip(self, index: int) -> torch.Tensor:
        return self._codes[index]


@pytest.fixture(scope="module")
def musicgen(tiny_musicgen):
    return tm.load(str(tiny_musicgen))


@pytest.fixture(scope="module")
def family(tiny_family):
    return {name: tm.load(str(tiny_family / name)) for name in ("teacher", "student")}


def test_equals_transformers_own_loss(tiny_musicgen, musicgen):
    from transformers import AutoTokenizer, MusicgenForConditionalGeneration

    model = MusicgenForConditionalGeneration.from_pretrained(tiny_musicgen).eval()
    tokenizer, clips = AutoTokenizer.from_pretrained(tiny_musicgen), Clips()
    found = token_likelihood(musicgen, clips)
    assert found.shape == (3, 4)
    assert found.dtype == np.float64
    for index, record in enumerate(clips.records):
        codes, mask = delay(clips.clip(index)[None], (0, 1, 2, 3), 64)
        words = tokenizer([record["captions"][0]], return_tensors="pt")
        inputs = functional.pad(codes, (1, 0), value=64)[..., :-1].flatten(0, 1)
        labels = codes.masked_fill(~mask, -100).transpose(1, 2)
        with torch.no_grad():
            loss = model(
                input_ids=words["input_ids"],
                attention_mask=words["attention_mask"],
                decoder_input_ids=inputs,
                labels=labels,
            ).loss
        assert found[index].mean() == pytest.approx(float(loss), abs=2e-5)


@torch.inference_mode()
def by_steps(model, codes: torch.Tensor, caption: str) -> np.ndarray:
    """The slow twin: one column at a time through the cache, as music is made."""
    config = model.decoder.config
    states, mask = model.text_encoder.encode([caption])
    columns = torch.full((4, codes.shape[1] + max(config.delays) + 1), config.pad)
    for k, shift in enumerate(config.delays):
        columns[k, 1 + shift : 1 + shift + codes.shape[1]] = codes[k]
    cache, total = model.decoder.prepare(states, mask, columns.shape[1]), np.zeros(4)
    for step in range(columns.shape[1] - 1):
        log_p = torch.log_softmax(model.decoder.step(columns[None, :, step], cache)[0].double(), -1)
        for k in range(4):
            if columns[k, step + 1] != config.pad:
                total[k] -= float(log_p[k, columns[k, step + 1]])
    return total / codes.shape[1]


@pytest.mark.parametrize("name", ["teacher", "student", "melody"])
def test_equals_a_step_at_a_time(family, name, tmp_path):
    clips = Clips()
    model = family[name] if name in family else tm.load(str(save_tiny_musicgen(tmp_path / name, melody=True)))
    found = token_likelihood(model, clips, clips=[2, 0])
    for row, index in zip(found, (2, 0), strict=True):
        slow = by_steps(model, clips.clip(index), clips.records[index]["captions"][0])
        assert row == pytest.approx(slow, abs=1e-5)


def test_a_quantized_model_stays_near_its_source(family, tmp_path):
    tm.quantize(family["student"], "int8", tmp_path / "small")
    small, clips = tm.load(str(tmp_path / "small")), Clips()
    ours, theirs = token_likelihood(small, clips), token_likelihood(family["student"], clips)
    assert (ours != theirs).any()
    assert np.abs(ours - theirs).max() < 0.1
    assert 0.0 < divergence_to(family["student"], small, clips).max() < 0.05


def test_a_likelihood_depends_on_the_caption_and_on_nothing_that_comes_later(family):
    clips, other = Clips(), Clips()
    other.records[0] = {"captions": ["lively flute"]}
    first, second = token_likelihood(family["teacher"], clips), token_likelihood(family["teacher"], other)
    assert (first[0] != second[0]).all()
    assert (first[1:] == second[1:]).all()
    short = token_likelihood(family["teacher"], clips, clips=[0], frames=12)
    other = Clips()
    other.clip(0)[:, 12:] = 0
    assert (token_likelihood(family["teacher"], other, clips=[0], frames=12) == short).all()


def test_perplexity_is_exp_of_the_mean():
    nll = np.log(np.array([[2.0, 10.0], [8.0, 10.0]]))
    assert perplexity(nll) == pytest.approx([4.0, 10.0])


def test_divergence_is_zero_at_identity_and_that_of_distillation_elsewhere(family):
    clips, teacher, student = Clips(), family["teacher"], family["student"]
    assert (divergence_to(teacher, teacher, clips) == 0.0).all()
    found = divergence_to(teacher, student, clips)
    assert found.shape == (3, 4)
    assert (found > 0.0).all()
    for index in range(3):
        inputs, _, valid = delayed(clips.clip(index)[None], teacher.decoder.config.delays, 64)
        with torch.inference_mode():
            text = [m.text_encoder.encode([clips.records[index]["captions"][0]]) for m in (teacher, student)]
            logits = [m.decoder.logits(inputs, *t) for m, t in zip((teacher, student), text, strict=True)]
            each = divergence.forward_kl(*logits)[0]
        for k in range(4):
            assert found[index, k] == pytest.approx(float(each[k][valid[0, k]].mean()), abs=1e-6)


def test_reports_every_clip_and_stops_between_clips(family):
    seen = []
    token_likelihood(family["student"], Clips(), on_progress=lambda *told: seen.append(told))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(Cancelled, match="stopped after 2 of 3 clips"):
        token_likelihood(family["student"], Clips(), should_stop=iter([False, False, True]).__next__)


def test_bad_input_is_told_in_one_sentence(family, musicgen):
    teacher, clips = family["teacher"], Clips()
    with pytest.raises(ValueError, match=r"frames must be 1 to \d+, .* got 0"):
        token_likelihood(teacher, clips, frames=0)
    with pytest.raises(ValueError, match="clips must be numbers below 3, at least one, got 3"):
        token_likelihood(teacher, clips, clips=[0, 3])
    with pytest.raises(ValueError, match="at least one, got none"):
        token_likelihood(teacher, clips, clips=[])
    with pytest.raises(ValueError, match="clip 0 has 2 codebooks .* the model reads 4 of 64 entries"):
        token_likelihood(teacher, Clips(codebooks=2))
    wide = Clips(entries=64)
    wide.clip(0)[0, 0], wide.clip(0)[0, 1] = 99, 0
    with pytest.raises(ValueError, match="codes 0 to 99; the model reads 4 of 64 entries"):
        token_likelihood(teacher, wide)
