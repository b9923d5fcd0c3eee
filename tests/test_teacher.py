"""The tokenizer and the training of the teacher, on models of a few thousand weights."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from tinymusician_core.bundle import load_parts
from tinymusician_core.pretrain import teacher
from tinymusician_core.pretrain.facts import FACTS, classes_of
from tinymusician_core.pretrain.notes import Companies, HarmonyStates, Vocabulary
from tinymusician_core.pretrain.teacher import (
    TeacherConfig,
    TeacherTraining,
    carry_over,
    let_others_play,
    validation,
    words_of,
)
from tinymusician_core.pretrain.vocabulary import build_tokenizer
from tinymusician_core.tokens import TokenDataset, write_tokens
from tinymusician_core.training import CHECKPOINT, Trainer, TrainSettings, kept_state

ASSETS = Path(__file__).resolve().parent.parent / "assets"
FIRST = dict.fromkeys(FACTS, "a")
SECOND = dict.fromkeys(FACTS, "b")
SMALL = {"width": 32, "layers": 1, "heads": 2, "ffn": 48, "codebook_size": 16, "text_width": 16, "text_layers": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["a calm piano waltz in b flat major at 100 bpm"])


def test_the_tokenizer_reads_prompts_as_people_write_them(tokenizer):
    words = tokenizer.tokenize("A calm Piano-waltz, in B♭ major!! 😀")
    assert words == ["a", "calm", "piano", "waltz", "in", "b", "flat", "major", "<unk>"]
    assert tokenizer("piano")["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.tokenize("100bpm")[1:] == ["bpm"]


def test_the_teacher_starts_at_chance_and_learns(tokenizer):
    torch.manual_seed(0)
    model, rng = small_teacher(tokenizer, layers=2), torch.Generator().manual_seed(0)
    codes = (torch.arange(30)[None, None] + torch.arange(4)[None, :, None]).remainder(16).repeat(2, 1, 1)
    codes[1, :, 20:] = -1
    captions = ["a calm piano waltz", "piano"]
    first = float(model(codes, captions, rng)["ce"].detach())
    assert first == pytest.approx(np.log(16), rel=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        losses = model(codes, captions, rng)
        losses["loss"].backward()
        optimizer.step()
    assert losses["ce"] < 0.3 * first


def test_a_dropped_caption_is_zero_states(tokenizer):
    model = small_teacher(tokenizer, condition_dropout=1.0)
    states, mask = model.text_states(["a calm piano waltz", "piano"], torch.Generator())
    assert not states.any()
    assert mask.all()


def small_teacher(tokenizer, classes=None, **changes):
    return TeacherTraining(TeacherConfig(**SMALL | changes), tokenizer, classes)


@pytest.fixture
def earlier(tmp_path):
    """The folder of a teacher that knows few words, after a step of training."""
    model = small_teacher(build_tokenizer(["a calm piano waltz"]))
    settings = TrainSettings(learning_rate=0.01, steps=1, bf16=False, ema=0.9)
    codes = torch.arange(12).repeat(1, 4, 1)
    trainer = Trainer(model, settings, tmp_path / "earlier")
    trainer.run(lambda rng, _: model(codes, ["a calm piano waltz"], rng))
    model.tokenizer.save_pretrained(tmp_path / "earlier" / "tokenizer")
    model.load_state_dict(trainer.average)
    return tmp_path / "earlier", model.eval()


def test_a_teacher_starts_from_an_earlier_one_that_knew_fewer_words(earlier):
    folder, before = earlier
    after = small_teacher(build_tokenizer(["a calm banjo waltz", "piano", "allegro"])).eval()
    assert carry_over(after, folder) == 2
    codes = torch.arange(12).repeat(2, 4, 1)
    captions = ["a calm piano waltz", "piano a"]
    with torch.no_grad():
        assert torch.equal(before(codes, captions, None)["loss"], after(codes, captions, None)["loss"])
        assert not torch.equal(
            after.text_states(["a calm banjo"], None)[0], after.text_states(["a calm allegro"], None)[0]
        )


def test_a_teacher_starts_from_a_published_one():
    published = ASSETS / "models" / "teacher"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(published.parent / "text")
    torch.manual_seed(0)
    model = TeacherTraining(TeacherConfig(), tokenizer).eval()
    assert carry_over(model, published) == 0
    with torch.inference_mode():
        states, _ = model.text_states(["a calm piano waltz"], None)
        expected, _ = load_parts(published).text_encoder.encode(["a calm piano waltz"])
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-4)
    stored = load_file(published / "model.safetensors")
    own = model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in stored.items())


def test_a_teacher_cannot_start_from_nothing_or_from_another_size(earlier, tmp_path):
    folder, before = earlier
    with pytest.raises(ValueError, match="holds no teacher to start from"):
        carry_over(small_teacher(before.tokenizer), tmp_path)
    with pytest.raises(ValueError, match="has other sizes than this one: "):
        carry_over(small_teacher(before.tokenizer, ffn=64), folder)
    with pytest.raises(ValueError, match="has other sizes than this one: more weights"):
        carry_over(small_teacher(before.tokenizer, text_layers=0), folder)


def test_a_teacher_goes_on_with_its_own_words_only(earlier, tmp_path):
    folder, before = earlier
    own = before.tokenizer.get_vocab()
    assert words_of(["a calm waltz"], folder).get_vocab() == own
    with pytest.raises(ValueError, match=r"words that the teacher in .* was not begun with \(lively, polka\)"):
        words_of(["a lively polka"], folder)
    assert set(words_of(["a lively polka"], tmp_path).get_vocab()) - set(own) == {"lively", "polka"}


def test_validation_reports_usual_and_longest_windows(tokenizer, tmp_path):
    clips = [torch.randint(16, (4, 90), generator=torch.Generator().manual_seed(n)) for n in range(3)]
    write_tokens(tmp_path, "validation", clips, [{"captions": ["piano"], "bars": [0, 10], "facts": FIRST}] * 3)
    model = small_teacher(tokenizer, classes_of([FIRST, SECOND]))
    found = validation(model, TokenDataset(tmp_path, "validation"), 20)
    assert found == validation(model, TokenDataset(tmp_path, "validation"), 20)
    assert {"validation_ce", "validation_ce3", "validation_text_facts", "validation_long_ce"} <= set(found)
    assert found["validation_ce"] == pytest.approx(np.log(16), rel=0.1)
    assert found["validation_long_ce"] == pytest.approx(np.log(16), rel=0.1)


def test_codebooks_count_by_their_weights_and_those_are_checked(tokenizer):
    codes, captions = torch.arange(24).remainder(16).repeat(2, 4, 1), ["piano", "a waltz"]
    losses = small_teacher(tokenizer, codebook_weights=(0.0, 0.0, 0.0, 2.0))(codes, captions, None)
    assert losses["loss"] == losses["ce3"] != losses["ce0"]
    for wrong in ((1.0, 2.0), (1.0, 1.0, 1.0, -1.0), (0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, float("nan"))):
        with pytest.raises(ValueError, match="4 numbers of 0 or more, not all 0, are allowed"):
            TeacherConfig(codebook_weights=wrong)


def test_probes_that_only_look_learn_and_teach_nothing(tokenizer):
    facts, codes, captions = [FIRST, SECOND], torch.arange(24).remainder(16).repeat(2, 4, 1), ["piano", "a waltz"]
    model = small_teacher(tokenizer, classes_of(facts))

    def gradients(**probed) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(codes, captions, None, **probed)["loss"].backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain, looking, teaching = gradients(), gradients(facts=facts, probes_teach=False), gradients(facts=facts)
    assert all(torch.equal(looking[name], plain[name]) for name in plain)
    assert any(looking[name].any() for name in looking.keys() - plain.keys())
    assert any(not torch.equal(teaching[name], plain[name]) for name in plain)


def test_probes_train_with_the_teacher_and_stay_out_of_what_starts_from_it(tokenizer, tmp_path):
    facts = [FIRST, SECOND]
    torch.manual_seed(0)
    model = small_teacher(tokenizer, classes_of(facts))
    codes, captions = torch.arange(12).repeat(2, 4, 1), ["a calm piano waltz", "piano"]
    plain, probed = model(codes, captions, None), model(codes, captions, None, facts)
    assert probed["ce"] == plain["ce"]
    assert probed["loss"] > plain["loss"]
    settings = TrainSettings(learning_rate=0.02, steps=60, warm_up_steps=1, bf16=False, ema=0.5)
    trainer = Trainer(model, settings, tmp_path)
    trainer.run(lambda rng, _: model(codes, captions, None, facts))
    after = model(codes, captions, None, facts)
    assert after["text_facts"] < 0.2 * probed["text_facts"]
    assert after["music_facts"] < 0.5 * probed["music_facts"]
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    heir = small_teacher(tokenizer)
    assert carry_over(heir, tmp_path) == 0
    model.load_state_dict(trainer.average)
    assert torch.equal(heir(codes, captions, None)["loss"], model(codes, captions, None)["loss"])


class Enough(Exception):
    """Raised to stop a training in its middle."""


@pytest.fixture
def lessons(tmp_path, monkeypatch):
    """`lessons(minutes, ...)` trains a small teacher in a work folder, for 20 steps at most: whether its probes taught,
    step by step."""
    clips = [torch.randint(16, (4, 90), generator=torch.Generator().manual_seed(n)) for n in range(3)]
    for split in ("train", "validation"):
        records = [{"captions": ["a calm piano waltz"], "bars": [0, 10], "facts": fact} for fact in (FIRST, SECOND)]
        write_tokens(tmp_path / "tokens", split, clips[:2], records)
    Vocabulary(HarmonyStates(((), (97,))), Companies(((0,),))).write(tmp_path / "notes.json")
    monkeypatch.setattr(teacher, "TeacherConfig", lambda **given: TeacherConfig(**SMALL | given))
    plain = TeacherTraining.forward

    def train(minutes: float, **how) -> list[bool]:
        taught: list[bool] = []

        def forward(self, codes, captions, rng, *rest, **options):
            if rng is not None:
                if len(taught) == 20:
                    raise Enough
                taught.append(options["probes_teach"])
            return plain(self, codes, captions, rng, *rest, **options)

        monkeypatch.setattr(TeacherTraining, "forward", forward)
        with suppress(Enough):
            teacher.train_teacher(tmp_path, minutes, batch=2, **how)
        return taught

    return train


def test_probes_teach_unless_the_teacher_began_from_another(lessons, earlier, tmp_path):
    folder, _ = earlier
    assert set(lessons(60)) == {True}, "one that begins from nothing"
    assert not (tmp_path / "teacher" / CHECKPOINT).exists()
    assert set(lessons(60, start_from=folder)) == {False}, "one that goes on from another"
    assert lessons(1e-4, start_from=folder)
    assert (tmp_path / "teacher" / CHECKPOINT).exists()
    assert set(lessons(60)) == {False}, "the same, resumed"
    assert set(lessons(60, probes="teach")) == {True}, "and told to"
    with pytest.raises(ValueError, match="probes are to 'rest'; teach or look is allowed"):
        lessons(60, probes="rest")


def test_patience_is_with_the_cross_entropy_whatever_the_probes_learn(lessons, tmp_path, monkeypatch):
    found = iter(enumerate([0.5, 0.4, 0.6, 0.6, 0.3]))

    def judged(*_):
        count, value = next(found)
        return {"validation_loss": 1.0 - count / 10, "validation_ce": value}

    monkeypatch.setattr(teacher, "validation", judged)
    monkeypatch.setattr(teacher, "TrainSettings", lambda **given: TrainSettings(validate_every=1, **given))
    assert len(lessons(60, patience=2)) == 4
    assert kept_state(tmp_path / "teacher")["best"]["value"] == 0.4


def test_others_play_from_beginning_to_end_and_what_is_then_untrue_is_not_learnt(tokenizer):
    codes = torch.randint(16, (200, 4, 6), generator=torch.Generator().manual_seed(0))
    codes[:, 2] = 3
    codes[:, :, 5] = -1
    changed, untrue = let_others_play(codes, 40, torch.Generator().manual_seed(1))
    others = (changed[:, 2, 0] != 3) & untrue[:, 2, 0]
    assert 10 < others.sum() < 50
    assert changed[:, 2].max() > 30
    assert (changed[:, 2, :5] == changed[:, 2, :1]).all()
    assert (changed[:, :, 5] == -1).all()
    for kept in (0, 1, 3):
        assert torch.equal(changed[:, kept], codes[:, kept])
    assert not untrue[:, :2].any()
    assert not untrue[:, 2, 1:].any()
    assert torch.equal(untrue[:, 3].all(1), untrue[:, 2, 0])
    assert torch.equal(untrue[:, 3].any(1), untrue[:, 2, 0])


def test_untrue_codes_are_read_and_not_learnt(tokenizer):
    torch.manual_seed(0)
    model = small_teacher(tokenizer)
    codes = torch.randint(16, (1, 4, 8), generator=torch.Generator().manual_seed(0))
    untrue = torch.zeros(1, 4, 8, dtype=torch.bool)
    untrue[:, 3] = True
    losses = model(codes, ["piano"], None, untrue=untrue)
    assert losses["ce3"] == 0
    other = codes.clone()
    other[:, 3, -1] = (other[:, 3, -1] + 1) % 16  # which no step reads any more
    assert torch.equal(model(other, ["piano"], None, untrue=untrue)["loss"], losses["loss"])
    other[:, 3, 0] = (other[:, 3, 0] + 1) % 16
    assert not torch.equal(model(other, ["piano"], None, untrue=untrue)["loss"], losses["loss"])
    untrue[:, 3], untrue[:, 2, 0] = False, True
    assert model(codes, ["piano"], None, untrue=untrue)["ce2"] != model(codes, ["piano"], None)["ce2"]
