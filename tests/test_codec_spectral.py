from dataclasses import replace

import pytest
import torch

from tinymusician_core.codec.spectral import SpectralCodec, SpectralConfig, SpectralEncoder, count_ages, nearest

SMALL = SpectralConfig(
    codebook_size=16, score_dim=4, latent_dim=6, encoder_dim=16, encoder_blocks=1, decoder_dim=16, decoder_blocks=1
)


@pytest.fixture(
    params=[{}, {"harmony_dim": 4}, {"harmony_dim": 4, "note_blocks": 1, "players_dim": 5}],
    ids=["score", "harmony", "players"],
)
def codec(tmp_path, request):
    torch.manual_seed(0)
    config = replace(SMALL, **request.param)
    made = SpectralCodec(config)
    made.save(tmp_path, SpectralEncoder(config))
    return SpectralCodec.from_folder(tmp_path)


def test_one_frame_is_forty_milliseconds(codec):
    codes = torch.randint(0, 16, (2, 4, 7))
    assert codec.frame_rate_hz == 25
    assert codec.decode(codes).shape == (2, 1, 7 * 1280)
    assert torch.isfinite(codec.decode(codes)).all()


def test_encode_pads_the_last_frame_and_gives_codes_that_decode_reads(codec):
    codes = codec.encode(torch.randn(1, 1, 1280 * 3 + 5) * 0.1)
    assert codes.shape == (1, 4, 4)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < 16
    assert codec.decode(codes).shape == (1, 1, 4 * 1280)


@torch.inference_mode()
def test_residual_codes_are_the_nearest_rows_one_after_another(codec):
    audio = torch.randn(1, 1, 1280 * 5) * 0.1
    codes = codec.encode(audio)
    latents, decoder, rest = codec.encoder(audio), codec.decoder, codec.encoder(audio).sound.double()
    players = None if latents.players is None else latents.players.mean(1, keepdim=True).expand_as(latents.players)
    apart = [
        (latents.score, decoder.score_codebook),
        (latents.harmony, decoder.harmony_codebook),
        (players, decoder.players_codebook),
    ]
    apart = [(x.double(), book.weight.double()) for x, book in apart if book is not None]
    assert len(apart) + len(decoder.codebooks) == codec.codebooks == 4
    for k, (x, table) in enumerate(apart):
        assert torch.equal(codes[:, k], torch.cdist(x, table[None]).argmin(-1))
    for k, book in enumerate(decoder.codebooks, len(apart)):
        choice = torch.cdist(rest, book.weight.double()[None]).argmin(-1)
        assert torch.equal(codes[:, k], choice)
        rest = rest - book.weight.double()[choice]


def test_saved_and_loaded_codecs_agree_to_half_precision(codec, tmp_path):
    codes = torch.randint(0, 16, (1, 4, 9))
    codec.save(tmp_path / "again")
    again = SpectralCodec.from_folder(tmp_path / "again")
    assert torch.equal(codec.decode(codes), again.decode(codes))
    with pytest.raises(FileNotFoundError, match="it can decode only"):
        again.encode(torch.zeros(1, 1, 1280))


def test_wrong_shapes_and_folders_are_refused(codec, tmp_path):
    with pytest.raises(ValueError, match=r"\[batch, 4, frames\]"):
        codec.decode(torch.zeros(1, 3, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\[batch, 1, samples\]"):
        codec.encode(torch.zeros(1, 2, 1280))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no spectral codec"):
        SpectralCodec.from_folder(other)


def test_nearest_equals_the_plain_distance():
    x, table = torch.randn(3, 5, 6), torch.randn(11, 6)
    assert torch.equal(nearest(x, table), torch.cdist(x, table[None]).argmin(-1))


def test_ages_are_counted_from_where_a_note_begins():
    """Four ages a note: 1 to 4 is the first note, 5 to 8 the second."""
    heard = torch.tensor([[1, 2, 2, 4, 4, 1, 3, 0, 0, 7, 6, 5], [3, 3, 3, 0, 8, 4, 1, 1, 1, 2, 2, 2]])
    told = [[1, 2, 3, 4, 4, 1, 2, 0, 0, 5, 6, 5], [3, 4, 4, 0, 5, 1, 1, 1, 1, 2, 3, 4]]
    assert count_ages(heard, 4).tolist() == told


@torch.inference_mode()
def test_a_codec_with_ages_gives_counted_codes(tmp_path):
    torch.manual_seed(0)
    config = replace(SMALL, note_ages=4)
    SpectralCodec(config).save(tmp_path, SpectralEncoder(config))
    codec, audio = SpectralCodec.from_folder(tmp_path), torch.randn(1, 1, 1280 * 20) * 0.1
    codes = codec.encode(audio)
    plain = nearest(codec.encoder(audio).score, codec.decoder.score_codebook.weight)
    assert torch.equal(codes[:, 0], count_ages(plain, 4))
    assert torch.equal(count_ages(codes[:, 0], 4), codes[:, 0])
