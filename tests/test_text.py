import pytest
import torch
from conftest import PROMPTS, WORDS, make_tokenizer, scramble, text_config
from torch import nn
from transformers import T5EncoderModel

from tinymusician_core.text import TextEncoder, check_known


@pytest.fixture(scope="module")
def encoder():
    projection = scramble(nn.Linear(24, 32), 2)
    return TextEncoder(make_tokenizer(), scramble(T5EncoderModel(text_config()), 1), projection).eval()


def test_states_are_projected_padded_and_zero_where_there_is_no_text(encoder):
    states, mask = encoder.encode(PROMPTS)
    lengths = [len(prompt.split()) + 1 for prompt in PROMPTS]
    assert states.shape == (3, max(lengths), 32)
    assert states.dtype == torch.float32
    assert mask.sum(1).tolist() == lengths
    assert states[mask == 0].abs().max() == 0
    assert states[mask == 1].abs().amax(-1).min() > 0


def test_a_prompt_has_the_same_states_alone_and_in_a_batch(encoder):
    together, mask = encoder.encode(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        alone, _ = encoder.encode([prompt])
        torch.testing.assert_close(together[i, mask[i] == 1], alone[0], atol=1e-5, rtol=1e-4)


def test_without_a_projection_the_states_are_the_encoders_own():
    plain = TextEncoder(make_tokenizer(), scramble(T5EncoderModel(text_config()), 1))
    tokens, mask = plain.tokenize(["a jig"])
    expected = plain.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(plain.encode(["a jig"])[0], expected.detach())


def test_bad_prompts_are_refused(encoder):
    for bad in ([], "a jig"):
        with pytest.raises(ValueError, match="list of at least one text"):
            encoder.encode(bad)
    with pytest.raises(ValueError, match="prompt is empty"):
        encoder.encode(["a jig", "  "])


def test_unknown_words_are_told_once_in_order_and_without_punctuation(encoder):
    prompt = "a Calm, Didgeridoo waltz; (zither) and didgeridoo... 🎹!"
    assert encoder.unknown_words(prompt) == ["Didgeridoo", "zither", "🎹"]
    assert encoder.unknown_words(" ".join(WORDS)) == []


def test_a_known_word_inside_an_unknown_one_still_counts():
    check_known("pianoforte piano", ["pianoforte"])
    with pytest.raises(ValueError, match="no word"):
        check_known("pianoforte", ["pianoforte"])
