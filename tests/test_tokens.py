import json

import pytest
import torch

from tinymusician_core.tokens import TokenDataset, write_tokens


@pytest.fixture
def folder(tmp_path):
    clips = [torch.arange(40).repeat(4, 1), 100 + torch.arange(25).repeat(4, 1)]
    records = [{"captions": ["one", "uno"], "bars": [0, 10, 20, 30]}, {"captions": ["two"], "bars": [0, 10]}]
    write_tokens(tmp_path, "train", clips, records)
    return tmp_path


def test_clips_come_back_as_written(folder):
    data = TokenDataset(folder, "train")
    assert len(data) == 2
    assert data.codebooks == 4
    assert torch.equal(data.clip(1), 100 + torch.arange(25).repeat(4, 1))


def test_windows_start_on_bars_and_carry_their_own_captions(folder):
    data, rng = TokenDataset(folder, "train"), torch.Generator().manual_seed(0)
    codes, captions = data.batch(rng, 64, 10)
    assert codes.shape == (64, 4, 10)
    for window, caption in zip(codes, captions, strict=True):
        first = int(window[0, 0])
        assert torch.equal(window[0], torch.arange(first, first + 10))
        assert (caption in ("one", "uno")) == (first < 100)
        assert first % 100 in ((0, 10, 20, 30) if first < 100 else (0, 10))
    assert {"one", "uno", "two"} == set(captions)


def test_windows_are_of_clips_that_are_long_enough_if_there_are_any(folder):
    data, rng = TokenDataset(folder, "train"), torch.Generator().manual_seed(0)
    codes, captions = data.batch(rng, 32, 30)
    assert not (codes == -1).any()
    assert set(captions) == {"one", "uno"}
    codes, captions = data.batch(rng, 32, 50)
    assert set((codes[:, 0] == -1).sum(1).tolist()) == {10, 25}
    assert set(captions) == {"one", "uno", "two"}


def test_windows_of_chosen_clips_come_in_their_order(folder):
    data, rng = TokenDataset(folder, "train"), torch.Generator().manual_seed(0)
    codes, captions, records = data.take([1, 0, 1], 10, rng)
    assert [int(window[0, 0]) >= 100 for window in codes] == [True, False, True]
    assert [caption == "two" for caption in captions] == [True, False, True]
    assert records == [data.records[clip] for clip in (1, 0, 1)]


def test_a_short_clip_is_filled_with_minus_one(folder):
    window = TokenDataset(folder, "train").window(1, 30, torch.Generator())
    assert window.shape == (4, 30)
    assert int((window == -1).sum()) == 4 * 5


def test_a_clip_that_goes_round_begins_anew_when_it_ends(tmp_path):
    records = [{"captions": ["one"], "bars": [0, 10, 20], "round": True}, {"captions": ["two"], "bars": [0]}]
    write_tokens(tmp_path, "train", [torch.arange(25).repeat(4, 1), torch.arange(9).repeat(4, 1)], records)
    data, rng = TokenDataset(tmp_path, "train"), torch.Generator().manual_seed(0)
    codes, captions = data.batch(rng, 32, 60)
    assert set(captions) == {"one"}
    assert set(codes[:, 0, 0].tolist()) == {0, 10, 20}
    for window in codes:
        assert torch.equal(window[0], (window[0, 0] + torch.arange(60)) % 25)


def test_missing_unknown_and_damaged_data_are_named(folder):
    with pytest.raises(ValueError, match="unknown split 'practice'"):
        TokenDataset(folder, "practice")
    with pytest.raises(ValueError, match="holds no test tokens"):
        TokenDataset(folder, "test")
    records = (folder / "train.jsonl").read_text().splitlines()
    (folder / "train.jsonl").write_text(records[0] + "\n")
    with pytest.raises(ValueError, match="1 records but 2 clips"):
        TokenDataset(folder, "train")
    (folder / "train.safetensors").write_bytes(b"no")
    (folder / "train.jsonl").write_text(json.dumps({}) + "\n")
    with pytest.raises(ValueError, match="damaged"):
        TokenDataset(folder, "train")
