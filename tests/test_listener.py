"""The listener: its spectra against slow twins, its folder, what it hears, its training and how it is counted right."""

import json
from dataclasses import fields

import numpy as np
import pytest
import soundfile
import torch
from scipy.stats import binomtest

from tinymusician_core.codec.spectral import SpectralCodec, SpectralConfig, SpectralEncoder
from tinymusician_core.evaluate.listener import HEADS, Listener, save_listener
from tinymusician_core.evaluate.listener_net import (
    FLUX_BANDS,
    LAGS,
    ChromaBlock,
    ListenerConfig,
    ListenerNet,
    periodicity,
)
from tinymusician_core.evaluate.spectra import (
    BINS_PER_SEMITONE,
    FLOOR,
    LOWEST_PITCH,
    MEL_FFT,
    MEL_HOP,
    PITCH_FFT,
    PITCH_HOP,
    mel_bank,
    mel_frames,
    pitch_bank,
    pitch_frames,
    spectra,
)
from tinymusician_core.pretrain.accompany import LEAD, Note, Track
from tinymusician_core.pretrain.arrange import Facts, Piece
from tinymusician_core.pretrain.listener import class_weights, judge, publish_listener, train_listener
from tinymusician_core.pretrain.listener_accuracy import accuracy, wilson
from tinymusician_core.pretrain.listener_data import ListenerData, build_spectra
from tinymusician_core.pretrain.pieces import write_plan
from tinymusician_core.records import ModelError

RATE = 32000
CLASSES = {head: len(names) for head, names in HEADS.items()}
TINY = ListenerConfig(
    rhythm_dim=8, rhythm_blocks=1, period_dim=4, pitch_dim=4, chroma_dim=4, chroma_blocks=1, embedding_dim=6
)


def noise(seconds, seed=0, channels=1, rate=RATE):
    return (np.random.default_rng(seed).standard_normal((channels, round(seconds * rate))) * 0.1).astype(np.float32)


def tone(hertz, seconds, rate=RATE, partials=1):
    t = np.arange(round(seconds * rate)) / rate
    return sum(np.sin(2 * np.pi * hertz * k * t) / k for k in range(1, partials + 1)).astype(np.float32) * 0.2


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_listener(tmp_path / "listener", ListenerNet(TINY, CLASSES), {})
    return tmp_path / "listener"


# Spectra


def test_mel_is_what_torchaudio_makes_of_the_same_frames():
    from torchaudio.transforms import MelSpectrogram

    audio = torch.from_numpy(noise(1.3))
    twin = MelSpectrogram(
        RATE, MEL_FFT, hop_length=MEL_HOP, f_min=40.0, n_mels=96, center=False, norm="slaney", mel_scale="slaney"
    )
    seen = spectra(audio).mel
    assert seen.shape == (1, mel_frames(audio.shape[1]), 96)
    torch.testing.assert_close(seen, twin(audio).clamp_min(1e-10).log().transpose(1, 2), atol=1e-3, rtol=1e-3)


def test_the_frames_of_a_window_are_the_longer_sounds_own():
    audio = torch.from_numpy(noise(3.0))
    whole, row, samples = spectra(audio), 7, 2 * RATE
    part = spectra(audio[:, row * PITCH_HOP :][:, :samples])
    assert part.pitch.shape[1] == pitch_frames(samples)
    torch.testing.assert_close(part.pitch, whole.pitch[:, row:][:, : pitch_frames(samples)])
    first = row * PITCH_HOP // MEL_HOP
    torch.testing.assert_close(part.mel, whole.mel[:, first:][:, : mel_frames(samples)])


@pytest.mark.parametrize("pitch", [45, 57, 69, 81, 100])
def test_a_note_is_loudest_in_its_own_semitone(pitch):
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    seen = spectra(torch.from_numpy(tone(hertz, 1.0))[None]).pitch
    assert int(seen[0].mean(0).argmax()) == (pitch - LOWEST_PITCH) * BINS_PER_SEMITONE


def test_every_filter_hears_something():
    assert (mel_bank().sum(0) > 0).all()
    torch.testing.assert_close(pitch_bank().sum(0), torch.ones(pitch_bank().shape[1]))


def test_a_gain_changes_nothing_and_silence_stays_finite():
    audio = torch.from_numpy(noise(1.0))
    loud, quiet = spectra(audio).levelled(), spectra(audio * 0.1).levelled()
    torch.testing.assert_close(loud.mel, quiet.mel, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loud.pitch, quiet.pitch, atol=1e-4, rtol=1e-4)
    silent = spectra(torch.zeros(1, RATE)).levelled()
    assert torch.isfinite(silent.mel).all()
    assert float(silent.mel.min()) >= FLOOR


@pytest.mark.parametrize("shape", [(RATE,), (1, PITCH_FFT - 1), (1, 1, RATE)])
def test_spectra_refuse_other_shapes(shape):
    with pytest.raises(ValueError, match="at least 8192 samples"):
        spectra(torch.zeros(shape))


# The network


def test_periodicity_is_the_autocorrelation_of_the_flux():
    mel = torch.randn(1, 260, 96, generator=torch.Generator().manual_seed(3))
    found = periodicity(mel)[0].numpy()
    assert found.shape == (FLUX_BANDS, LAGS)
    flux = np.maximum(np.diff(mel[0].double().numpy(), axis=0), 0).reshape(259, FLUX_BANDS, -1).mean(2)
    flux -= flux.mean(0)
    for lag in (1, 5, 60, LAGS):
        slow = sum(flux[t] * flux[t + lag] for t in range(259 - lag)) / (flux**2).sum(0)
        np.testing.assert_allclose(found[:, lag - 1], slow, atol=1e-5)


def test_clicks_twice_a_second_repeat_after_half_a_second():
    audio = np.zeros((1, 8 * RATE), np.float32)
    audio[0, :: RATE // 2] = 0.9
    found = periodicity(spectra(torch.from_numpy(audio)).levelled().mel)[0]
    assert int(found.mean(0)[:40].argmax()) + 1 == 25


def test_a_turn_of_the_pitch_classes_turns_the_chroma_blocks_answer():
    torch.manual_seed(1)
    block, x = ChromaBlock(4).eval(), torch.randn(2, 4, 12, 9)
    torch.testing.assert_close(block(x.roll(5, 2)), block(x).roll(5, 2), atol=1e-5, rtol=1e-5)


def test_the_network_fits_the_budget_and_gives_every_head():
    net = ListenerNet(ListenerConfig(), CLASSES).eval()
    assert sum(p.numel() for p in net.parameters()) <= 600_000
    with torch.inference_mode():
        judged = net(spectra(torch.from_numpy(noise(2.0))).levelled())
    assert judged.embedding.shape == (1, 64)
    assert {head: x.shape[1] for head, x in judged.logits.items()} == CLASSES
    assert judged.keys.shape == (1, 2, 12)


# What it hears


@pytest.mark.parametrize("rate", [8000, 22050, 32000, 48000])
@pytest.mark.parametrize("seconds", [1.0, 3.7])
def test_any_rate_and_length_is_heard(folder, rate, seconds):
    heard = Listener.from_folder(folder).hear(noise(seconds, rate=rate), rate)
    assert heard.embedding.shape == (6,)
    assert heard.embedding.dtype == np.float32
    for head, names in HEADS.items():
        assert heard.probabilities[head].shape == (len(names),)
        assert heard.probabilities[head].sum() == pytest.approx(1, abs=1e-5)
        assert heard.best(head) == names[int(np.argmax(heard.probabilities[head]))]


def test_the_same_sound_is_heard_the_same_whatever_its_level_and_channels(folder):
    listener, sound = Listener.from_folder(folder), noise(2.0)
    first = listener.hear(sound, RATE).embedding
    assert np.array_equal(first, Listener.from_folder(folder).hear(sound, RATE).embedding)
    np.testing.assert_allclose(listener.hear(np.repeat(sound, 2, 0), RATE).embedding, first, atol=1e-4)
    np.testing.assert_allclose(listener.hear(sound * np.float32(0.2), RATE).embedding, first, atol=1e-4)
    assert not np.allclose(listener.hear(noise(2.0, seed=9), RATE).embedding, first, atol=1e-3)


def test_a_long_sound_is_the_average_of_its_windows(folder):
    listener, sound = Listener.from_folder(folder), noise(20.0)
    halves = [listener.hear(sound[:, i * 10 * RATE :][:, : 10 * RATE], RATE) for i in range(2)]
    whole = listener.hear(sound, RATE)
    np.testing.assert_allclose(whole.embedding, np.mean([h.embedding for h in halves], 0), atol=1e-5)
    np.testing.assert_allclose(
        whole.probabilities["style"], np.mean([h.probabilities["style"] for h in halves], 0), atol=1e-5
    )


def test_silence_is_judged_without_complaint(folder):
    heard = Listener.from_folder(folder).hear(np.zeros((1, RATE), np.float32), RATE)
    assert np.isfinite(heard.embedding).all()


def test_too_short_a_sound_and_unknown_heads_are_refused(folder):
    listener = Listener.from_folder(folder)
    with pytest.raises(ValueError, match=r"at least 1 s of sound, got 0\.5 s"):
        listener.hear(noise(0.5), RATE)
    with pytest.raises(ValueError, match="instrument, style, tempo, mode, got 'key'"):
        listener.hear(noise(1.0), RATE).best("key")


def test_the_name_follows_the_weights(folder, tmp_path):
    torch.manual_seed(5)
    save_listener(tmp_path / "other", ListenerNet(TINY, CLASSES), {"mode": {"real": {"value": 0.5}}})
    first, other = Listener.from_folder(folder), Listener.from_folder(tmp_path / "other")
    assert first.name.startswith("listener-")
    assert len(first.name) == len("listener-") + 8
    assert first.name != other.name
    assert other.accuracy["mode"]["real"]["value"] == 0.5


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_damaged_folder_is_named(folder, tmp_path):
    with pytest.raises(ModelError, match="config.json is missing"):
        Listener.from_folder(tmp_path / "nowhere")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match="is not the file it was"):
        Listener.from_folder(folder)
    weights.unlink()
    with pytest.raises(ModelError, match="model.safetensors is missing"):
        Listener.from_folder(folder)
    weights.write_bytes(whole)
    change_config(folder, classes={**HEADS, "mode": ["major"]})
    with pytest.raises(ModelError, match="other classes"):
        Listener.from_folder(folder)
    change_config(folder, model_type="something else")
    with pytest.raises(ModelError, match="holds no listener"):
        Listener.from_folder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        Listener.from_folder(folder)


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
    given = {field.name: facts.get(field.name, "") for field in fields(Facts)}
    length, scale = (20, 8)[number // 2 % 2], ((0, 4, 7), (0, 3, 7))[number // 4 % 2]
    starts = range(0, 260 - length, length)
    notes = (Note(t, t + length, 60 + number % 12 + scale[i % 3], 80) for i, t in enumerate(starts))
    return Piece(
        f"{split}{number}", f"{split}{number}", split, 260, (0,), (Track(LEAD, 0, tuple(notes)),), Facts(**given)
    )


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
    config = ListenerConfig(rhythm_dim=16, rhythm_blocks=2, period_dim=8, pitch_dim=6, chroma_dim=8, chroma_blocks=1)
    train_listener(work, steps=60, batch=8, config=config)
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
