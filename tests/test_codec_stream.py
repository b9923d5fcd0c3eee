"""Streams against decodes of the whole: the same sound, whatever the chunks."""

import functools
import math
from pathlib import Path

import pytest
import torch
from conftest import scramble
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EncodecConfig, EncodecModel

from tinymusician_core.codec import Codec
from tinymusician_core.codec.encodec import EncodecCodec
from tinymusician_core.codec.spectral import SpectralCodec, SpectralConfig
from tinymusician_core.codec.stream import OverlapAdd, Window, lookahead

SHIPPED = Path(__file__).parents[1] / "assets" / "models" / "codec"
OFTEN = settings(max_examples=60, deadline=None)
CHUNKS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@functools.cache
def encodec(seed: int = 0, channels: int = 1, **sizes) -> tuple[EncodecModel, EncodecCodec]:
    """A random EncodecModel, and our codec of its weights."""
    torch.manual_seed(seed)
    ratios = sizes.get("upsampling_ratios", (8, 5, 4, 4))
    small = {
        "target_bandwidths": (1.2,),
        "sampling_rate": 50 * math.prod(ratios),
        "hidden_size": 6,
        "num_filters": 2,
        "upsampling_ratios": ratios,
        "codebook_size": 64,
        "use_causal_conv": False,
    }
    model = EncodecModel(EncodecConfig(**small | sizes)).eval().requires_grad_(False)
    for name, weight in model.named_parameters():  # original0 is a weight's norm, original1 its direction
        mean, scale = (1.0, 0.2) if "original0" in name else (0.0, 0.1 if "bias" in name else 0.4)
        weight.copy_(torch.randn(weight.shape) * scale + mean)
    for layer in model.quantizer.layers:
        layer.codebook.embed.copy_(torch.randn(layer.codebook.embed.shape))
    return model, EncodecCodec(model, channels)


@functools.cache
def spectral(seed: int = 0, **sizes) -> SpectralCodec:
    small = {
        "codebook_size": 64,
        "score_dim": 4,
        "harmony_dim": 4,
        "players_dim": 4,
        "latent_dim": 6,
        "oscillators": 24,
    }
    small |= {"decoder_dim": 16, "decoder_blocks": 2, "oscillators": 24}
    torch.manual_seed(seed)
    return scramble(SpectralCodec(SpectralConfig(**small | sizes)), seed)


def some_codes(codec: Codec, frames: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, codec.codebook_size, (batch, codec.codebooks, frames), generator=generator)


def streamed(codec: Codec, codes: torch.Tensor, chunks: list[int]) -> list[torch.Tensor]:
    stream = codec.stream(codes.shape[0])
    return [*(stream.push(part) for part in codes.split(chunks, dim=2)), stream.finish()]


def check_stream(codec: Codec, chunks: list[int], batch: int, seed: int = 0, whole=None) -> None:
    """The stream is the whole, and no sound comes later than `lookahead_frames` allows, nor any too early."""
    codes = some_codes(codec, sum(chunks), batch, seed)
    sounds = streamed(codec, codes, chunks)
    expected = codec.decode(codes) if whole is None else whole(codes)
    torch.testing.assert_close(torch.cat(sounds, dim=2), expected, atol=1e-5, rtol=1e-5)
    pushed = given = 0
    hop = expected.shape[2] // codes.shape[2]
    for chunk, sound in zip(chunks, sounds, strict=False):
        pushed, given = pushed + chunk, given + sound.shape[2]
        assert (pushed - codec.lookahead_frames) * hop <= given <= pushed * hop


encodec_sizes = st.fixed_dictionaries(
    {
        "use_causal_conv": st.booleans(),
        "pad_mode": st.sampled_from(["reflect", "constant"]),
        "upsampling_ratios": st.sampled_from([(8, 5, 4, 4), (2,), (3, 2), (1, 5)]),
        "kernel_size": st.sampled_from([1, 3, 4, 7]),
        "last_kernel_size": st.sampled_from([2, 7]),
        "residual_kernel_size": st.sampled_from([1, 2, 3]),
        "num_residual_layers": st.integers(0, 2),
        "num_lstm_layers": st.integers(1, 2),
        "use_conv_shortcut": st.booleans(),
        "audio_channels": st.integers(1, 2),
    }
)


@OFTEN
@given(encodec_sizes, CHUNKS, st.integers(1, 3), st.integers(0, 9))
def test_any_encodec_decodes_as_transformers_does_whole_and_in_any_chunks(sizes, chunks, batch, seed):
    model, codec = encodec(seed, **sizes)

    @torch.inference_mode()
    def transformers(codes):
        return model.decode(codes.unsqueeze(0), [None]).audio_values

    codes = some_codes(codec, sum(chunks), batch, seed)
    torch.testing.assert_close(codec.decode(codes), transformers(codes), atol=1e-5, rtol=1e-5)
    check_stream(codec, chunks, batch, seed, transformers)


@OFTEN
@given(CHUNKS, st.integers(1, 3))
def test_a_stereo_stream_is_its_two_mono_streams(chunks, batch):
    (_, mono), (_, stereo) = encodec(), encodec(channels=2)
    codes = some_codes(stereo, sum(chunks), batch)
    left, right = (torch.cat(streamed(mono, codes[:, i::2], chunks), dim=2) for i in (0, 1))
    torch.testing.assert_close(torch.cat(streamed(stereo, codes, chunks), dim=2), torch.cat([left, right], dim=1))
    check_stream(stereo, chunks, batch)


spectral_sizes = st.fixed_dictionaries(
    {
        "n_fft": st.sampled_from([1280, 320, 400]),
        "hop": st.sampled_from([320, 100, 80]),
        "stride": st.integers(1, 4),
        "decoder_blocks": st.integers(0, 3),
    }
).filter(lambda sizes: sizes["n_fft"] >= 2 * sizes["hop"])


@OFTEN
@given(spectral_sizes, CHUNKS, st.integers(1, 3), st.integers(0, 9))
def test_any_spectral_codec_streams_what_it_decodes(sizes, chunks, batch, seed):
    check_stream(spectral(seed, **sizes), chunks, batch, seed)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 2))
def test_the_demo_familys_codec_streams_what_it_decodes(chunks, batch):
    codec = SpectralCodec.from_folder(SHIPPED)
    assert codec.lookahead_frames == 6
    check_stream(codec, chunks, batch)


@pytest.mark.parametrize("codec", [encodec()[1], encodec(channels=2)[1], spectral()])
def test_frames_may_come_one_by_one_and_each_gives_a_frame_once_the_lookahead_is_there(codec):
    check_stream(codec, [1] * 40, 2)
    sounds = streamed(codec, some_codes(codec, 40), [1] * 40)
    lengths = [sound.shape[2] for sound in sounds]
    hop = round(codec.sample_rate_hz / codec.frame_rate_hz)
    late = codec.lookahead_frames
    assert lengths[:late] == [0] * (late - 1) + [lengths[late - 1]]
    assert 0 <= lengths[late - 1] < hop
    assert lengths[late:40] == [hop] * (40 - late)


# Few blocks: what a code does to the furthest frame shrinks with each, and with five of them it drowns in rounding.
@pytest.mark.parametrize(("codec", "late"), [(encodec()[1], 4), (spectral(decoder_blocks=0), 2), (spectral(), 3)])
def test_the_sound_depends_on_codes_as_far_ahead_as_the_codec_says_and_no_further(codec, late):
    assert codec.lookahead_frames == late
    codes = some_codes(codec, 30)
    hop = round(codec.sample_rate_hz / codec.frame_rate_hz)
    frame = slice(10 * hop, 11 * hop)
    before = codec.decode(codes)[..., frame]
    for ahead, same in ((late, False), (late + 1, True)):
        sounds = []
        for other in range(1, 9):  # one code for another may change little
            changed = codes.clone()
            changed[:, :, 10 + ahead] = (changed[:, :, 10 + ahead] + other) % codec.codebook_size
            sounds.append(codec.decode(changed)[..., frame])
        assert all(torch.equal(sound, before) for sound in sounds) == same


@pytest.mark.parametrize("codec", [encodec()[1], spectral()])
def test_what_a_stream_holds_does_not_grow(codec):
    def held(seconds):
        stream = codec.stream()
        for part in some_codes(codec, seconds * 50).split(10, dim=2):
            stream.push(part)
        return sum(tensor.untyped_storage().nbytes() for tensor in _tensors(vars(stream), set()))

    assert held(2) == held(8) > 0


def _tensors(found, seen):
    """Every tensor that an object holds, modules and their weights left out."""
    if id(found) in seen or isinstance(found, torch.nn.Module):
        return
    seen.add(id(found))
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, dict):
        for value in found.values():
            yield from _tensors(value, seen)
    elif isinstance(found, (list, tuple)):
        for value in found:
            yield from _tensors(value, seen)
    elif callable(found):
        cells = getattr(found, "__closure__", None) or ()
        yield from _tensors([cell.cell_contents for cell in cells], seen)
        yield from _tensors(getattr(found, "__self__", None), seen)
    elif hasattr(found, "__dict__"):
        yield from _tensors(vars(found), seen)


@pytest.mark.parametrize("codec", [encodec(channels=2)[1], spectral()])
def test_wrong_use_of_a_stream_is_named(codec):
    stream = codec.stream(2)
    with pytest.raises(ValueError, match="takes a batch of 2, got codes"):
        stream.push(some_codes(codec, 3))
    with pytest.raises(ValueError, match=r"codes must be \[batch, "):
        stream.push(some_codes(codec, 3, 2)[:, :1])
    with pytest.raises(ValueError, match="between 0 and 63"):
        stream.push(some_codes(codec, 3, 2) + 64)
    with pytest.raises(ValueError, match="whole number from 1, got 0"):
        codec.stream(0)
    assert stream.finish().shape == (2, codec.channels, 0)
    for use in (stream.finish, lambda: stream.push(some_codes(codec, 3, 2))):
        with pytest.raises(ValueError, match=r"has finished; open another with the codec's stream\(\)"):
            use()


def test_an_encodec_that_cannot_be_decoded_in_chunks_is_refused():
    with pytest.raises(ValueError, match="has time_group_norm; one with weight_norm can be decoded"):
        encodec(norm_type="time_group_norm")
    with pytest.raises(ValueError, match="pads with replicate; one with reflect or constant can be decoded"):
        encodec(pad_mode="replicate")


@OFTEN
@given(st.integers(0, 4), st.integers(0, 4), CHUNKS, st.booleans())
def test_a_window_gives_each_input_with_its_context_once(left, right, chunks, reflect):
    x = torch.arange(1.0, sum(chunks) + 1).view(1, -1, 1)
    window = Window(left + right, left, right, reflect)
    rows = []
    for i, part in enumerate(x.split(chunks, dim=1)):
        ready = window.push(part, i == len(chunks) - 1)
        rows += [ready[0, j : j + left + right + 1, 0] for j in range(ready.shape[1] - left - right)]
    short = max(0, max(left, right) + 1 - sum(chunks)) if reflect else 0
    padded = torch.nn.functional.pad(x[:, :, 0], (0, short))
    padded = torch.nn.functional.pad(padded, (left, right), "reflect" if reflect else "constant")[0]
    torch.testing.assert_close(torch.stack(rows), padded[: len(padded) - short].unfold(0, left + right + 1, 1))


@OFTEN
@given(CHUNKS, st.integers(1, 5), st.integers(1, 12))
def test_overlapping_pieces_add_up_in_any_chunks(chunks, hop, width):
    pieces = torch.randn(2, sum(chunks), width, generator=torch.Generator().manual_seed(0))
    adder = OverlapAdd(hop)
    parts = pieces.split(chunks, dim=1)
    made = torch.cat([adder.push(part, i == len(parts) - 1) for i, part in enumerate(parts)], dim=1)
    expected = torch.zeros_like(made)
    for i in range(sum(chunks)):
        expected[:, i * hop : i * hop + width] += pieces[:, i]
    torch.testing.assert_close(made, expected)


def test_the_lookahead_counts_the_start_and_what_follows():
    assert lookahead(lambda frames: 10 * frames, 10) == 0
    assert lookahead(lambda frames: max(0, 10 * frames - 1), 10) == 1
    assert lookahead(lambda frames: max(0, 10 * frames - 21), 10) == 3
    assert lookahead(lambda frames: 10 * frames if frames > 6 else 0, 10) == 6
