"""How the listener is trained, on a toy folder, and how its right answers are counted."""

import shutil

import numpy as np
import pytest
import soundfile
import torch
from listening import RATE, make_piece, tone
from scipy.stats import binomtest

from tinymusician_core.codec.spectral import SpectralCodec, SpectralConfig, SpectralEncoder
from tinymusician_core.evaluate.listener import HEADS, Listener, save_listener
from tinymusician_core.evaluate.listener_net import ListenerConfig, ListenerNet
from tinymusician_core.evaluate.spectra import BINS_PER_SEMITONE, PITCH_HOP, mel_bank, pitch_frames
from tinymusician_core.pretrain.accompany import LEAD, Note, Track
from tinymusician_core.pretrain.listener import class_weights, judge, publish_listener, train_listener
from tinymusician_core.pretrain.listener_accuracy import accuracy, wilson
from tinymusician_core.pretrain.listener_data import ListenerData, build_spectra
from tinymusician_core.pretrain.pieces import write_plan

TINY = ListenerConfig(rhythm_dim=16, rhythm_blocks=2, period_dim=8, pitch_dim=6, chroma_dim=8, chroma_blocks=1)

# Counting


def test_accuracy_is_what_a_hand_counts():
    truth, guess = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 2])
    found = accuracy(truth, guess, ["a", "a", "b", "c", "c", "d"])
    assert (found.n, found.tunes) == (6, 4)
    assert found.value == pytest.approx(4 / 6)
    assert found.balanced == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found.majority == pytest.approx(3 / 6)
    assert (found.low, found.high) == wilson(4 / 6, 4)
    with pytest.raises(ValueError, match="got 0, 0, 0"):
        accuracy(truth[:0], guess[:0], [])


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (3, 7), (80, 80), (150, 200)])
def test_wilson_is_scipys(hits, n):
    twin = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits / n, n) == pytest.approx((twin.low, twin.high), abs=1e-12)


def test_class_weights_count_the_average_piece_once():
    weights = class_weights(np.array([0.64, 0.36, 0.0]), 0.5).numpy()
    assert weights[0] / weights[1] == pytest.approx(0.6 / 0.8)
    assert weights[2] == 0
    assert 0.64 * weights[0] + 0.36 * weights[1] == pytest.approx(1, abs=1e-6)


# Training, on a toy folder: a flute is a pure tone, a trumpet has partials


def toy_piece(number, split):
    facts = {"instrument": ("flute", "trumpet")[number % 2], "tempo": ("slow", "fast")[number // 2 % 2]}
    facts |= {"mode": ("major", "minor")[number // 4 % 2], "style": "reel", "tonic": number % 12, "bpm": 100}
    length, scale = (20, 8)[number // 2 % 2], ((0, 4, 7), (0, 3, 7))[number // 4 % 2]
    starts = range(0, 260 - length, length)
    notes = (Note(t, t + length, 60 + number % 12 + scale[i % 3], 80) for i, t in enumerate(starts))
    track = Track(LEAD, 0, tuple(notes))
    return make_piece(f"{split}{number}", (track,), 260, split, **facts)


def play(piece):
    audio = np.zeros(piece.frames * RATE // 25, np.float32)
    for note in piece.tracks[0].notes:
        hertz, seconds = 440 * 2 ** ((note.pitch - 69) / 12), (note.end - note.start) / 25
        sound = tone(hertz, seconds, partials=1 if piece.facts.instrument == "flute" else 12)
        audio[note.start * RATE // 25 :][: len(sound)] += sound * np.linspace(1, 0, len(sound), dtype=np.float32)
    return audio * 0.5


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    (work / "audio").mkdir()
    counts = {"train": 16, "validation": 8, "test": 8}
    pieces = [toy_piece(n, split) for split, count in counts.items() for n in range(count)]
    for piece in pieces:
        soundfile.write(work / "audio" / f"{piece.id}.flac", play(piece), RATE)
    write_plan(work, pieces)
    build_spectra(work, processes=1)
    return work


def test_a_transposition_moves_sound_tonic_and_notes_alike(work):
    data = ListenerData(work, "train")
    windows = data.gather([(0, 0), (5, 3)], 5 * RATE)
    assert windows.seen.pitch.shape[:2] == (2, pitch_frames(5 * RATE))
    assert windows.chroma.shape == (2, 12, (pitch_frames(5 * RATE) + 1) // 2)
    moved = windows.transposed(3)
    assert moved.tonic.tolist() == [(t + 3) % 12 for t in windows.tonic.tolist()]
    loudest = windows.seen.pitch.mean(1).argmax(1)
    assert moved.seen.pitch.mean(1).argmax(1).tolist() == (loudest + 3 * BINS_PER_SEMITONE).tolist()
    assert (moved.chroma.sum(2).argmax(1)).tolist() == ((windows.chroma.sum(2).argmax(1) + 3) % 12).tolist()


def test_bands_are_turned_alike_in_both_spectra_and_never_in_time(work):
    windows = ListenerData(work, "train").gather([(0, 0), (5, 3), (10, 20)], 5 * RATE)
    turned = windows.equalized(torch.Generator().manual_seed(3))
    mel, pitch = turned.seen.mel - windows.seen.mel, turned.seen.pitch - windows.seen.pitch
    for gain in (mel, pitch):
        assert torch.allclose(gain, gain[:, :1].expand_as(gain), atol=1e-4)
        assert gain[0].sub(gain[1]).abs().max() > 0.1
    hertz = torch.linspace(0, RATE / 2, 1025)
    band = int((mel_bank()[hertz.sub(440).abs().argmin()]).argmax())
    a4 = (69 - 36) * BINS_PER_SEMITONE
    assert torch.allclose(mel[:, 0, band], pitch[:, 0, a4], atol=0.1), "what is 440 Hz in one is so in the other"
    assert torch.equal(turned.chroma, windows.chroma)


def test_held_bands_stand_still_and_keep_their_mean(work):
    windows = ListenerData(work, "train").gather([(0, 0)] * 40, 5 * RATE)
    held = windows.held(torch.Generator().manual_seed(3)).seen.mel
    still = (held == held[:, :1]).all(1)
    assert 5 <= still.any(1).sum() <= 35
    assert still.sum(1).max() <= 0.4 * held.shape[2]
    assert torch.allclose(held.mean(1), windows.seen.mel.mean(1), atol=1e-4)
    assert torch.equal(held.transpose(1, 2)[~still], windows.seen.mel.transpose(1, 2)[~still])


def test_a_listener_may_start_from_an_earlier_one(work, tmp_path):
    earlier = ListenerNet(TINY, {head: len(classes) for head, classes in HEADS.items()})
    save_listener(tmp_path / "earlier", earlier, {})
    copied = tmp_path / "work"
    shutil.copytree(work, copied, ignore=shutil.ignore_patterns("model", "checkpoint.pt", "log.jsonl"))
    train_listener(copied, steps=1, batch=2, learning_rate=1e-9, start_from=tmp_path / "earlier", config=TINY)
    made = Listener.from_folder(copied / "listener" / "model").net.state_dict()
    for name, value in earlier.state_dict().items():
        assert torch.allclose(made[name], value, atol=1e-3), name


def test_chroma_says_what_sounds_in_the_pitch_frame(work):
    windows = ListenerData(work, "train").gather([(0, 0), (5, 3), (10, 20)], 5 * RATE)
    loudest = windows.seen.pitch[:, ::2].argmax(2) // BINS_PER_SEMITONE % 12
    alone, sounds = windows.chroma.max(1)
    assert (alone == 1).float().mean() > 0.3
    assert (loudest == sounds)[alone == 1].all()


def test_windows_follow_one_another_and_batches_follow_their_seed(work):
    data = ListenerData(work, "train")
    assert data.places(5.0) == [(i, row) for i in range(16) for row in (0, 5 * RATE // PITCH_HOP)][: 16 * 2]
    one, two = (data.batch(torch.Generator().manual_seed(4), 3, 5.0) for _ in range(2))
    assert torch.equal(one.seen.mel, two.seen.mel)
    with pytest.raises(ValueError, match=r"no piece is 60 s long; the longest has 10\.4 s"):
        data.batch(torch.Generator(), 3, 60.0)
    with pytest.raises(FileNotFoundError, match="no rendered none pieces"):
        ListenerData(work, "none")


def test_training_learns_and_publishing_measures(work, tmp_path):
    train_listener(work, steps=60, batch=8, config=TINY)
    listener = Listener.from_folder(work / "listener" / "model")
    assert listener.accuracy == {}
    reached = judge(listener.net, ListenerData(work, "validation"))
    assert reached["instrument"].value >= 0.9
    assert reached["instrument"].majority == 0.5
    small = SpectralConfig(codebook_size=8, score_dim=4, latent_dim=4, encoder_dim=8, encoder_blocks=1, decoder_dim=8)
    SpectralCodec(small).save(tmp_path / "models" / "codec", SpectralEncoder(small))
    publish_listener(work, tmp_path)
    published = Listener.from_folder(tmp_path / "listener")
    assert published.name == listener.name
    assert published.accuracy["instrument"]["real"]["value"] >= 0.9
    for head in HEADS:
        for kind in ("real", "codec"):
            found = published.accuracy[head][kind]
            assert (found["n"], found["tunes"]) == (8, 8)
            assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
