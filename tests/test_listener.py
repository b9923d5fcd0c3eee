"""The listener: its spectra and its network against slow twins, its folder, and what it hears."""

import json

import numpy as np
import pytest
import torch
from listening import RATE, noise, tone

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
from tinymusician_core.records import ModelError

CLASSES = {head: len(names) for head, names in HEADS.items()}
TINY = ListenerConfig(
    rhythm_dim=8, rhythm_blocks=1, period_dim=4, pitch_dim=4, chroma_dim=4, chroma_blocks=1, embedding_dim=6
)


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
