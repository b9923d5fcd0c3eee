"""The shipped judges and held-out music: worse sound is heard as worse, and other clips' prompts as no better than
chance."""

import numpy as np
import pytest
import torch
from scipy.signal import butter, sosfiltfilt

from tinymusician_core.bundle import load_codec
from tinymusician_core.evaluate.adherence import adherence
from tinymusician_core.evaluate.asked import asked
from tinymusician_core.evaluate.frechet import frechet_distance, frechet_extrapolated
from tinymusician_core.evaluate.held_out import FOLDER, HeldOut, codec_identity
from tinymusician_core.evaluate.kernel import kernel_distance, median_distance
from tinymusician_core.evaluate.listener import Listener
from tinymusician_core.files import sha256_of
from tinymusician_core.variants import assets_folder

CLIPS, FRAMES, RATE_HZ = 48, 125, 32000
MB = 10**6


@pytest.fixture(scope="module")
def held_out():
    return HeldOut.from_folder()


@pytest.fixture(scope="module")
def listener():
    return Listener.from_folder()


@pytest.fixture(scope="module")
def sounds(held_out):
    """The first five seconds of held-out windows, decoded."""
    codec = load_codec(assets_folder() / "models" / "codec")
    codes = [held_out.tokens.clip(index)[None, :, :FRAMES] for index in range(CLIPS)]
    return [codec.decode(each)[0].numpy().clip(-1, 1) for each in codes]


@pytest.fixture(scope="module")
def clean(sounds, listener):
    return embedded(sounds, listener)


def embedded(sounds: list[np.ndarray], listener: Listener) -> np.ndarray:
    return np.stack([listener.hear(sound.clip(-1, 1).astype(np.float32), RATE_HZ).embedding for sound in sounds])


def noisy(sound: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    return sound + rng.standard_normal(sound.shape) * np.sqrt(np.mean(sound**2)) * 10 ** (-snr_db / 20)


def dull(sound: np.ndarray, hz: float, rng: np.random.Generator) -> np.ndarray:
    return sosfiltfilt(butter(8, hz, fs=RATE_HZ, output="sos"), sound)


def shuffled(sound: np.ndarray, seconds: float, rng: np.random.Generator) -> np.ndarray:
    length = round(seconds * RATE_HZ)
    parts = sound[:, : sound.shape[1] // length * length].reshape(1, -1, length)
    return rng.permutation(parts, axis=1).reshape(1, -1)


def test_it_was_made_with_what_is_shipped_and_is_small(held_out, listener):
    held_out.check_listener(listener.name)
    codec = assets_folder() / "models" / "codec"
    assert codec_identity(load_codec(codec)) == held_out.codec
    assert sha256_of(codec / "decoder.safetensors").startswith(held_out.decoder), "the round trip is of another decoder"
    assert sum(file.stat().st_size for file in (assets_folder() / FOLDER).iterdir()) <= MB
    assert len(held_out.prompts) == 200
    assert len(held_out.embeddings) >= 400
    assert held_out.tokens.clip(0).shape == (4, 250)


def test_the_judgements_are_those_of_the_shipped_listener(held_out, listener):
    """The tokens hold the notes as they were written, the round trip as the codec heard them: nearly the same sound."""
    codec, agreed = load_codec(assets_folder() / "models" / "codec"), []
    for index in range(0, 200, 20):
        decoded = codec.decode(held_out.tokens.clip(index)[None])[0].numpy().clip(-1, 1)
        heard, kept = listener.hear(decoded, RATE_HZ), held_out.round_trip[index]
        sizes = np.linalg.norm(heard.embedding) * np.linalg.norm(kept.embedding)
        assert heard.embedding @ kept.embedding > 0.98 * sizes
        agreed += [heard.best(head) == kept.heard.best(head) for head in heard.probabilities]
    assert np.mean(agreed) >= 0.9


def test_the_same_clips_are_no_distance_apart(clean):
    assert frechet_distance(clean, clean[::-1]) == 0
    assert frechet_extrapolated(clean, clean[::-1]).value == 0
    assert kernel_distance(clean, clean[::-1]) == 0


@pytest.mark.parametrize(
    ("worse", "steps"),
    [(noisy, (40, 30, 20, 10, 0)), (dull, (8000, 4000, 2000, 1000)), (shuffled, (2.0, 1.0, 0.5, 0.25, 0.1, 0.05))],
)
def test_growing_harm_gives_growing_distance(sounds, clean, listener, worse, steps):
    rng, bandwidth, found = np.random.default_rng(0), median_distance(clean), []
    for step in steps:
        heard = embedded([worse(sound, step, rng) for sound in sounds], listener)
        extrapolated = frechet_extrapolated(heard, clean).value
        found.append((frechet_distance(heard, clean), extrapolated, kernel_distance(heard, clean, bandwidth)))
    assert (np.diff(found, axis=0) > 0).all(), np.round(found, 2)


def test_other_clips_prompts_are_followed_as_well_as_by_chance(held_out):
    wishes, heard = [asked(prompt) for prompt in held_out.prompts], [each.heard for each in held_out.real]
    own = adherence(wishes, heard)
    assert own["instrument"].kappa > 0.9
    assert min(own[name].kappa for name in ("tempo", "mode")) > 0.5
    rng, kappas = np.random.default_rng(0), []
    for _ in range(200):
        order = rng.permutation(len(wishes))
        others = adherence([wishes[i] for i in order], heard)
        kappas.append([others[name].kappa for name in own])
        for name, score in others.items():
            assert score.chance == pytest.approx(own[name].chance, abs=0.1)
    assert np.abs(np.mean(kappas, axis=0)).max() < 0.02
    assert np.abs(kappas).max() < 0.35


def test_real_tokens_are_likelier_than_shuffled_ones_and_their_own_caption_helps(held_out):
    import tinymusician_core as tm
    from tinymusician_core.evaluate.likelihood import token_likelihood

    class Other:
        """The same tokens under another window's caption, or in another order."""

        codebooks = held_out.tokens.codebooks

        def __init__(self, shift: int, order: torch.Tensor):
            every = held_out.tokens.records
            self.records, self._order = every[shift:] + every[:shift], order

        def clip(self, index: int) -> torch.Tensor:
            return held_out.tokens.clip(index)[:, self._order]

    student, clips, plain = tm.load("student"), list(range(12)), torch.arange(250)
    own, others = (token_likelihood(student, Other(shift, plain), clips).mean() for shift in (0, 1))
    mixed = token_likelihood(student, Other(0, torch.randperm(250, generator=torch.Generator().manual_seed(0))), clips)
    assert own < others < mixed.mean()
