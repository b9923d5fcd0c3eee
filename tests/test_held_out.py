"""Held-out music: which windows are chosen, what is kept of them, and what is said when it does not fit."""

import gzip
import shutil

import numpy as np
import pytest
import torch
from evaluation import FRAMES, make_assets

from tinymusician_core.audio import read
from tinymusician_core.bundle import load_codec
from tinymusician_core.evaluate.held_out import REAL, HeldOut, codec_identity, read_records, write_records
from tinymusician_core.evaluate.jury import Judged
from tinymusician_core.evaluate.listener import HEADS, Listener
from tinymusician_core.pretrain.held_out import choose, windows_of
from tinymusician_core.records import ModelError
from tinymusician_core.tokens import TokenDataset
from tinymusician_core.variants import load


@pytest.fixture(scope="module")
def assets(tiny_family, tmp_path_factory):
    return make_assets(tmp_path_factory.mktemp("held-out"), tiny_family)


@pytest.fixture
def held_out(assets, monkeypatch):
    monkeypatch.setenv("TINYMUSICIAN_ASSETS", str(assets))
    return HeldOut.from_folder()


def test_windows_begin_on_bars_and_do_not_overlap():
    assert windows_of([0, 20, 40, 60, 80], 100, 40) == [0, 40]
    assert windows_of([3, 47, 91], 140, 40) == [3, 47, 91]
    assert windows_of([3, 47, 91], 130, 40) == [3, 47]
    assert windows_of([10], 49, 40) == []


def test_real_windows_and_reference_are_of_different_tunes(assets):
    data = TokenDataset(assets.parent / "work" / "tokens", "test")
    real, reference = choose(data, 25)
    tunes = [{data.records[window.piece]["id"] for window in part} for part in (real, reference)]
    assert [len(each) for each in tunes] == [8, 16]
    assert not tunes[0] & tunes[1]
    for part, count in ((real, 8), (reference, 16)):
        assert len({window.piece for window in part[:count]}) == count, "each piece gives one before any gives a second"
        assert len(set(part)) == len(part) == 4 * count
        assert all(window.start % 25 == 0 and window.start + 25 <= FRAMES for window in part)
    assert choose(data, 25) == (real, reference)


def test_tokens_prompts_and_judgements_belong_together(held_out, assets):
    work, codec = assets.parent / "work", load_codec(assets / "models" / "codec")
    assert len(held_out.prompts) == len(held_out.real) == len(held_out.round_trip) == 32
    assert held_out.embeddings.shape == (64, 8)
    listener, data = Listener.from_folder(assets / "listener"), TokenDataset(work / "tokens", "test")
    for index in (0, 31):
        record = held_out.tokens.records[index]
        name, _, start = record["id"].partition("@")
        whole = read(work / "audio" / f"{name}.flac").audio
        codes = codec.encode(torch.from_numpy(whole)[None])[0, :, int(start) : int(start) + 25]
        piece = next(i for i, r in enumerate(data.records) if r["id"] == name)
        assert torch.equal(held_out.tokens.clip(index), data.clip(piece)[:, int(start) : int(start) + 25])
        sound = whole[:, int(start) * 1280 : (int(start) + 25) * 1280]
        heard = listener.hear(sound, 32000)
        np.testing.assert_array_equal(held_out.real[index].embedding, heard.embedding)
        decoded = listener.hear(codec.decode(codes[None])[0].numpy().clip(-1, 1), 32000)
        np.testing.assert_allclose(held_out.round_trip[index].embedding, decoded.embedding, atol=1e-5)
        assert held_out.real[index].prompt == held_out.prompts[index]
        assert record["facts"]["instrument"] in held_out.prompts[index].lower()
    assert all(len(values) == 32 for values in held_out.fidelity.values())


def test_a_judgement_is_the_same_after_json(held_out):
    for judged in (held_out.real[0], held_out.round_trip[-1]):
        again = Judged.from_record(judged.as_record())
        assert again.as_record() == judged.as_record()
        np.testing.assert_array_equal(again.embedding, judged.embedding)
        assert {head: again.heard.best(head) for head in HEADS} == {head: judged.heard.best(head) for head in HEADS}


def test_tokens_fit_every_variant_of_the_family_and_no_other_model(held_out, tiny_musicgen):
    assert codec_identity(load("teacher").codec) == codec_identity(load("student").codec) == held_out.codec
    assert codec_identity(load(str(tiny_musicgen)).codec) is None


def test_another_listener_is_refused(held_out):
    held_out.check_listener(held_out.listener)
    with pytest.raises(ModelError, match=f"judged by {held_out.listener}, not by listener-0; .* held-out makes"):
        held_out.check_listener("listener-0")


def test_nothing_there_and_damaged_files(assets, tmp_path):
    with pytest.raises(ModelError, match="no held-out music at"):
        HeldOut.from_folder(tmp_path)
    packed = gzip.compress(b"{}\n" * 32)
    damaged = [(REAL, packed), (REAL, packed[:-9]), (REAL, packed[:12] + b"?" * 20), (REAL, b"{}\n" * 32)]
    for number, (name, content) in enumerate([*damaged, ("reference.safetensors", b"short"), ("config.json", b"[")]):
        folder = tmp_path / str(number)
        shutil.copytree(assets / "evaluation", folder)
        (folder / name).write_bytes(content)
        with pytest.raises(ModelError, match="cannot be loaded"):
            HeldOut.from_folder(folder)
    folder = tmp_path / "fewer"
    shutil.copytree(assets / "evaluation", folder)
    write_records(folder / REAL, read_records(folder / REAL)[:-1])
    with pytest.raises(ModelError, match="32 windows, 31 and 32 judgements"):
        HeldOut.from_folder(folder)
