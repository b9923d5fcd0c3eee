import pytest
import torch
from transformers import EncodecConfig, EncodecModel, MusicgenForConditionalGeneration

from tinymusician_core.codec import Codec
from tinymusician_core.codec.encodec import EncodecCodec


@pytest.fixture(scope="module")
def model(tiny_musicgen) -> EncodecModel:
    return MusicgenForConditionalGeneration.from_pretrained(tiny_musicgen).audio_encoder.eval()


def some_codes(codebooks, frames=7, batch=2):
    return torch.randint(0, 64, (batch, codebooks, frames), generator=torch.Generator().manual_seed(0))


def test_it_is_a_codec_with_the_rates_of_its_configuration(model):
    codec = EncodecCodec(model)
    assert isinstance(codec, Codec)
    assert (codec.sample_rate_hz, codec.frame_rate_hz, codec.codebooks, codec.codebook_size) == (32000, 50.0, 4, 64)
    assert codec.channels == 1


@pytest.mark.parametrize("frames", [1, 2, 7, 50])
def test_decoding_gives_one_hop_a_frame_and_is_what_transformers_gives(model, frames):
    codes = some_codes(4, frames)
    made = EncodecCodec(model).decode(codes)
    assert made.shape == (2, 1, frames * 640)
    with torch.inference_mode():
        torch.testing.assert_close(made, model.decode(codes.unsqueeze(0), [None]).audio_values, atol=1e-5, rtol=1e-5)


def test_musicgens_own_sizes_decode_as_transformers_does_whole_and_in_chunks():
    """facebook/encodec_32khz with random weights: 240 MB and, on two cores, about three seconds."""
    config = EncodecConfig(
        sampling_rate=32000,
        target_bandwidths=(2.2,),
        upsampling_ratios=(8, 5, 4, 4),
        num_filters=64,
        hidden_size=128,
        codebook_size=2048,
        use_causal_conv=False,
        use_conv_shortcut=False,
    )
    torch.manual_seed(0)
    model = EncodecModel(config).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.copy_(torch.randn(layer.codebook.embed.shape))
    codec = EncodecCodec(model)
    assert (codec.codebooks, codec.frame_rate_hz, codec.lookahead_frames) == (4, 50.0, 4)
    codes = torch.randint(0, 2048, (1, 4, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.decode(codes.unsqueeze(0), [None]).audio_values
    assert expected.std() > 0.01
    stream = codec.stream()
    streamed = [stream.push(part) for part in codes.split([1, 3, 20], dim=2)]
    for made in (codec.decode(codes), torch.cat([*streamed, stream.finish()], dim=2)):
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


def test_stereo_codebooks_alternate_between_left_and_right(model):
    mono, stereo = EncodecCodec(model), EncodecCodec(model, 2)
    assert (stereo.codebooks, stereo.channels) == (8, 2)
    codes = some_codes(8)
    made = stereo.decode(codes)
    torch.testing.assert_close(made[:, :1], mono.decode(codes[:, 0::2]))
    torch.testing.assert_close(made[:, 1:], mono.decode(codes[:, 1::2]))
    sound = torch.randn(2, 2, 3200, generator=torch.Generator().manual_seed(1))
    encoded = stereo.encode(sound)
    assert encoded.shape == (2, 8, 5)
    assert torch.equal(encoded[:, 1::2], mono.encode(sound[:, 1:]))


def test_encoding_pads_the_last_frame(model):
    codes = EncodecCodec(model).encode(torch.randn(1, 1, 1000, generator=torch.Generator().manual_seed(2)))
    assert codes.shape == (1, 4, 2)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < 64


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 3, 5, dtype=torch.long), r"codes must be \[batch, 4, frames\], got \(1, 3, 5\)"),
        (torch.zeros(1, 4, 0, dtype=torch.long), r"got \(1, 4, 0\)"),
        (torch.zeros(1, 4, 5), "whole numbers"),
        (torch.full((1, 4, 5), 64), "between 0 and 63, got 64 to 64"),
        (torch.full((1, 4, 5), -1), "got -1 to -1"),
    ],
)
def test_wrong_codes_are_named(model, codes, message):
    with pytest.raises(ValueError, match=message):
        EncodecCodec(model).decode(codes)


def test_wrong_sound_and_wrong_channels_are_named(model):
    with pytest.raises(ValueError, match=r"audio must be \[batch, 1, samples\]"):
        EncodecCodec(model).encode(torch.zeros(1, 2, 640))
    with pytest.raises(ValueError, match="audio_channels must be 1, or 2"):
        EncodecCodec(model, 3)
