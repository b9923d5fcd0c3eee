"""Embedders behind one interface; CLAP on random weights in transformers' own format."""

import shutil

import numpy as np
import pytest
import torch
from conftest import PROMPTS, scramble

from tinymusician_core.evaluate.embedders import CLAP, ClapEmbedder, ListenerEmbedder, load_embedder
from tinymusician_core.records import ModelError

WIDTH = 12


def save_tiny_clap(folder, fusion: bool = False):
    """A random CLAP laid out as the hub has them: weights, feature extractor, and RoBERTa's tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = ByteLevelBPETokenizer()
    words.train_from_iterator(PROMPTS, vocab_size=300, special_tokens=special, show_progress=False)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text |= {"vocab_size": 300, "max_position_embeddings": 200, "projection_dim": WIDTH}
    audio = {"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [1, 1, 1, 1], "projection_dim": WIDTH}
    audio |= {"num_attention_heads": [1, 1, 2, 2], "enable_fusion": fusion}
    if fusion:
        audio |= {"fusion_type": "aff_2d", "aff_block_r": 4}
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=WIDTH))
    scramble(model, seed=3, std=0.3).save_pretrained(folder)
    ClapFeatureExtractor(truncation="fusion" if fusion else "rand_trunc").save_pretrained(folder)
    words.save_model(str(folder))
    return folder


@pytest.fixture(scope="module")
def tiny_clap(tmp_path_factory):
    return save_tiny_clap(tmp_path_factory.mktemp("clap") / "tiny-clap")


def sound(seconds: float, rate: int = 48000, seed: int = 0, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * hz * t) for hz in rng.uniform(100, 4000, 5)) / 10
    return np.tile(tones.astype(np.float32), (channels, 1))


def test_clap_embeds_as_transformers_does(tiny_clap):
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel, ClapProcessor

    clap, audio = load_embedder(str(tiny_clap)), sound(10)
    model = ClapModel.from_pretrained(tiny_clap).eval()
    processor = ClapProcessor(ClapFeatureExtractor.from_pretrained(tiny_clap), AutoTokenizer.from_pretrained(tiny_clap))
    inputs = processor(text=PROMPTS[:1], audio=[audio[0]], sampling_rate=48000, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs)
    found = clap.embed(audio, 48000)
    assert (found.dtype, found.shape) == (np.float32, (WIDTH,))
    assert found == pytest.approx(out.audio_embeds[0].numpy(), abs=1e-6)
    cosine = float((out.logits_per_audio[0, 0] / model.logit_scale_a.exp()).detach())
    assert clap.text_score(PROMPTS[0], audio, 48000) == pytest.approx(cosine, abs=1e-5)
    assert clap.width == WIDTH
    assert clap.name.startswith("tiny-clap-")


def test_clap_is_deterministic_at_any_length_rate_and_number_of_channels(tiny_clap):
    clap = load_embedder(tiny_clap)
    long = np.concatenate([sound(10, seed=1), sound(10, seed=2)], axis=1)
    halves = [clap.embed(part, 48000) for part in np.split(long, 2, axis=1)]
    mean = np.mean(halves, axis=0)
    assert clap.embed(long, 48000) == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert (clap.embed(long, 48000) == clap.embed(long, 48000)).all()
    assert np.abs(halves[0] - halves[1]).max() > 1e-3
    assert clap.embed(sound(2, channels=2), 48000) == pytest.approx(clap.embed(sound(2), 48000), abs=1e-6)
    assert clap.embed(sound(2, rate=32000), 32000) == pytest.approx(clap.embed(sound(2), 48000), abs=0.05)


def test_clap_with_fusion_hears_the_same_thing_twice(tmp_path):
    clap = load_embedder(save_tiny_clap(tmp_path / "fused", fusion=True))
    audio = sound(10.3)
    first = clap.embed(audio, 48000)
    assert (clap.embed(audio, 48000) == first).all()
    assert np.linalg.norm(first) == pytest.approx(1.0, abs=1e-5)


def test_weights_stored_by_torch_are_read_too_and_have_a_name_of_their_own(tiny_clap, tmp_path):
    from safetensors.torch import load_file

    folder = tmp_path / "as-laion-has-it"
    shutil.copytree(tiny_clap, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    ours, theirs = load_embedder(folder), load_embedder(tiny_clap)
    assert (ours.embed(sound(1), 48000) == theirs.embed(sound(1), 48000)).all()
    assert ours.name != theirs.name


def test_a_folder_that_is_not_whole_is_told_in_one_sentence(tiny_clap, tmp_path):
    for missing in ("model.safetensors", "config.json", "preprocessor_config.json"):
        folder = tmp_path / missing
        shutil.copytree(tiny_clap, folder)
        (folder / missing).unlink()
        with pytest.raises(ModelError, match="is no CLAP model of transformers that is whole: it needs config.json, "):
            load_embedder(folder)
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_clap, damaged)
    (damaged / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="damaged or cut short"):
        load_embedder(damaged)
    other = tmp_path / "other"
    shutil.copytree(tiny_clap, other)
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="is no CLAP model: its config.json says model_type 'bert'"):
        load_embedder(other)


def test_clap_that_cannot_be_had_says_what_to_do(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def offline(**wanted):
        asked.append(wanted["repo_id"])
        raise LocalEntryNotFoundError("no network here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda **wanted: offline(**wanted))
    with pytest.raises(ModelError, match=f'{CLAP} .* could not be had .* use the embedder "listener", or download'):
        load_embedder("clap")
    assert set(asked) == {CLAP}


@pytest.mark.parametrize("source", ["", "nonsense", "no/such/thing", 7])
def test_an_unknown_embedder_is_told_in_one_sentence(source):
    with pytest.raises(ValueError, match='no such embedder: got .*; allowed are "listener", "clap"'):
        load_embedder(source)


def test_the_listener_is_an_embedder(tmp_path, monkeypatch):
    from tinymusician_core.evaluate.listener import HEADS, Listener, save_listener
    from tinymusician_core.evaluate.listener_net import ListenerConfig, ListenerNet

    monkeypatch.setenv("TINYMUSICIAN_ASSETS", str(tmp_path))
    with pytest.raises(ModelError, match="there is no listener at"):
        load_embedder("listener")
    net = ListenerNet(ListenerConfig(), {head: len(HEADS[head]) for head in HEADS})
    save_listener(tmp_path / "listener", scramble(net, seed=1), {})
    ours, listener = load_embedder(), Listener.from_folder()
    assert isinstance(ours, ListenerEmbedder)
    assert (ours.name, ours.width) == (listener.name, 64)
    found = ours.embed(sound(2, 32000), 32000)
    assert (found == listener.hear(sound(2, 32000), 32000).embedding).all()
    assert found.shape == (ours.width,)


def test_bad_sound_is_told_in_one_sentence(tiny_clap):
    clap = load_embedder(tiny_clap)
    assert isinstance(clap, ClapEmbedder)
    with pytest.raises(ValueError, match="prompt"):
        clap.text_score("  ", sound(1), 48000)
    with pytest.raises(ValueError, match="audio"):
        clap.embed(np.zeros(100), 48000)
