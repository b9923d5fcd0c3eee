"""Training the codec's ear: what learns and what stays, and which frames it is trained on."""

import numpy as np
import pytest
import torch
from tiny_codec import small_codec, sound, work_folder

from tinymusician_core.codec.spectral import SpectralCodec
from tinymusician_core.pretrain import hear
from tinymusician_core.pretrain.codec import finished_codec
from tinymusician_core.pretrain.hear import EAR, EarTraining, SeenPieces, train_ear


@pytest.fixture
def work(tmp_path):
    return work_folder(tmp_path)


def few_steps(monkeypatch, steps):
    class Few(hear.TrainSettings):
        def __init__(self, minutes, **settings):
            super().__init__(steps=steps, **settings)

    monkeypatch.setattr(hear, "TrainSettings", Few)


def test_only_the_ear_learns():
    codec, encoder = small_codec()
    codec._encoder = encoder
    with torch.no_grad():
        seen = encoder.frames(sound(6))
    EarTraining(codec)(seen, torch.ones(2, 3, 6, dtype=torch.long))["loss"].backward()
    learns = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in learns} == set(EAR)
    assert all(p.grad is None for p in codec.decoder.parameters())


def test_windows_are_what_the_encoder_sees_of_one_piece():
    starts, frames = np.array([0, 30, 50, 53]), 8
    pieces = SeenPieces(np.arange(53, dtype=np.float16)[:, None], np.tile(np.arange(53), (3, 1)), starts)
    seen, notes = pieces.batch(torch.Generator().manual_seed(0), 200, frames)
    assert seen.shape == (200, frames, 1)
    assert notes.shape == (200, 3, frames)
    assert torch.equal(seen[:, :, 0].long(), notes[:, 1])
    first, last = notes[:, 0, 0], notes[:, 0, -1]
    assert torch.equal(last - first, torch.full((200,), frames - 1))
    within = ((first >= 0) & (last < 30)) | ((first >= 30) & (last < 50)) | (last == 52)
    assert within.all()
    assert {0, 22, 30, 42, 45} <= set(first.tolist())


def test_what_was_seen_of_a_piece_is_kept_as_long_as_the_eye_is_the_same(work):
    codec = SpectralCodec.from_folder(work / "codec" / "model")
    pieces = SeenPieces.read(work, codec, "train", 9, "cpu")
    with torch.inference_mode():
        tone = torch.from_numpy(hear.read_audio(work, hear.read_pieces(work)[0]))[None, None]
        wanted = codec.encoder.frames(tone)[0]
    torch.testing.assert_close(torch.from_numpy(pieces.frames).float(), wanted, atol=2e-3, rtol=2e-3)
    assert pieces.starts.tolist() == [0, 160]
    eye = hear.eye_of(codec)
    codec.encoder.to_players.weight.data += 1
    assert hear.eye_of(codec) == eye
    codec.encoder.inlet.weight.data += 1
    assert hear.eye_of(codec) != eye


def test_a_split_without_audio_is_refused(work):
    codec = SpectralCodec.from_folder(work / "codec" / "model")
    with pytest.raises(FileNotFoundError, match="no rendered test pieces"):
        SeenPieces.read(work, codec, "test", 9, "cpu")


def test_an_ear_learns_the_notes_of_its_pieces_and_no_sound_changes(work, monkeypatch):
    few_steps(monkeypatch, 200)
    train_ear(work, minutes=1, batch=4)
    before, after = SpectralCodec.from_folder(work / "codec" / "model"), SpectralCodec.from_folder(finished_codec(work))
    pieces = SeenPieces.read(work, before, "train", 9, "cpu")
    window = pieces.batch(torch.Generator().manual_seed(2), 8, 100)
    with torch.inference_mode():
        losses = [float(EarTraining(codec).eval()(*window)["loss"]) for codec in (before, after)]
    assert losses[1] < 0.8 * losses[0]
    audio = sound(40, batch=1)
    codes = before.encode(audio)
    assert torch.equal(codes[:, 3:], after.encode(audio)[:, 3:])
    assert torch.equal(before.decode(codes), after.decode(codes))
    assert finished_codec(work) == work / "hear" / "model"
    assert finished_codec(work, ("codec", "polish")) == work / "codec" / "model"
