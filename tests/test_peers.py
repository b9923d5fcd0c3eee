"""Peers: transformers, AudioCraft and our engine on the same random weights, each in a process of its own."""

import importlib.util
import json
import os
import sys
from dataclasses import replace

import pytest
import torch

from tinymusician_core.engine.linear import StepLinear
from tinymusician_core.measure import peer_report, peers
from tinymusician_core.measure.bandwidth import cache_bytes, read_bandwidth
from tinymusician_core.measure.peer_models import Ours, Transformers, make_musicgen, step_bytes, steps_in
from tinymusician_core.measure.peers import REFERENCE, ROWS, SHAPES, PeerFailed, Setting, measure_peers
from tinymusician_core.measure.weights import held_bytes
from tinymusician_core.quant.schemes import pack

TINY = Setting(shape="tiny", seconds=0.5)
HAS_AUDIOCRAFT = importlib.util.find_spec("audiocraft") is not None
# A tiny step's weights: 2 layers of (3 + 1 + 1 + 1 + 4 + 4) x 64 x 64, and 4 heads of 256 x 64.
TINY_WEIGHTS = 2 * 14 * 64 * 64 + 4 * 256 * 64


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def found(told):
    """Every row, on a tiny model."""
    return measure_peers(TINY, lambda *stage: told.append(stage))


def test_every_row_is_measured_or_says_why_not(found):
    assert [peer.row for peer in found.peers] == list(ROWS)
    for peer in found.peers:
        if peer.row.engine == "audiocraft" and not HAS_AUDIOCRAFT:
            assert "--with audiocraft" in peer.skipped
            assert peer.figures.ms_per_step is peer.x_reference is peer.same_tokens is None
            continue
        assert peer.skipped is None
        figures = peer.figures
        assert figures.x_realtime * figures.total_s == pytest.approx(0.5, rel=0.02)
        stages = figures.stages_ms
        assert min(stages.values()) > 0
        assert sum(stages.values()) == pytest.approx(1000 * figures.total_s)
        steps = round(stages["lm"] / figures.ms_per_step)
        assert steps in ((28, 29) if peer.row.engine == "transformers" else (28,)), "25 frames and a delay of three"
        assert peer.codec_ms_per_s == pytest.approx(stages["codec"] / 0.5, rel=0.02)
        assert figures.first_sound_ms <= 1000 * figures.total_s
        assert 0 < figures.peak_memory_bytes < 2**30
        assert peer.layers == (1 if peer.row.student else 2)


def test_ratios_are_quotients_of_what_is_shown(found):
    reference = found.peers[0]
    assert reference.row.name == REFERENCE
    assert reference.x_reference == 1.0
    for peer in found.peers:
        if peer.skipped is None:
            assert peer.x_reference == pytest.approx(reference.figures.ms_per_step / peer.figures.ms_per_step)
            assert peer.gb_per_s == pytest.approx(peer.step_bytes / peer.figures.ms_per_step / 1e6)
            if peer.bandwidth_share is not None:
                assert peer.bandwidth_share == pytest.approx(peer.gb_per_s * 1e9 / found.bandwidth)


def test_all_float32_programs_play_the_same_tokens(found):
    same = {peer.row.name: peer.same_tokens for peer in found.peers if peer.same_tokens is not None}
    expected = {"ours fp32", "AudioCraft fp32"} if HAS_AUDIOCRAFT else {"ours fp32"}
    assert same == dict.fromkeys(expected, True)


def test_a_step_reads_fewer_bytes_in_smaller_types(found):
    read = {peer.row.name: peer.step_bytes for peer in found.peers if peer.skipped is None}
    assert read["transformers fp32"] == read["ours fp32"] == 4 * TINY_WEIGHTS
    assert read["transformers bf16"] == read["ours bf16"] == read["ours fp16"] == 2 * TINY_WEIGHTS
    assert TINY_WEIGHTS < read["ours int8"] < 1.1 * TINY_WEIGHTS
    # Every matrix of the tiny shape is small enough for int8-weight: int4 is for the large ones.
    assert read["ours int8 student"] < read["ours int4"] == read["ours int8"]


def test_progress_names_row_and_stage_and_never_runs_over(found, told):
    for peer in found.peers:
        if peer.skipped is None:
            stages = [stage for row, stage, _, _ in told if row == peer.row.name]
            assert list(dict.fromkeys(stages))[:2] == ["starting", "building"]
            assert {"warming up", "composing 1 of 1", "comparing tokens"} <= set(stages)
    assert all(done <= total for _, _, done, total in told if total is not None)


def test_json_says_what_the_table_says(found):
    record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert set(record) == {"command", "setting", "machine", "bandwidth_gb_per_s", "variants"}
    assert record["setting"]["shape"] == "tiny"
    assert record["machine"]["torch"] == torch.__version__.split("+")[0]
    assert record["machine"]["omp_wait_policy"]
    assert [variant["model"] for variant in record["variants"]] == [row.name for row in ROWS]
    for peer, variant in zip(found.peers, record["variants"], strict=True):
        assert variant["figures"] == peer.figures.as_dict()
        assert variant["x_transformers_fp32"] == peer.x_reference
        assert variant["skipped"] == peer.skipped


def test_the_report_has_a_row_a_peer_and_says_what_was_measured(found, tmp_path):
    paths = peer_report.write_report(found, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.json", "report.md"]
    assert json.loads(paths[0].read_text()) == json.loads(json.dumps(found.as_dict()))
    text = paths[1].read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(ROWS)
    assert len({row.count("|") for row in rows}) == 1
    assert "| ours int8 student (1 layer) |" in text
    assert f"memory bandwidth: {found.bandwidth / 1e9:.1f} GB/s" in text
    assert f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'PASSIVE')}\n" in text
    assert found.machine["cpu"] in text


def test_tokens_that_differ_and_weights_beyond_the_cache_are_shown(found):
    peer = replace(found.peers[3], same_tokens=False, bandwidth_share=0.5)
    shown = dict(zip(peer_report.COLUMNS, peer_report.cells(peer), strict=True))
    assert shown["same tokens"] == "NO"
    assert shown["of bandwidth"] == "50%"


def test_audiocraft_is_skipped_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(peers, "_ask", lambda name, *_: {"bandwidth": 1e9, "cache_bytes": None, "machine": {}})
    (peer,) = measure_peers(replace(TINY, rows=("AudioCraft fp32",))).peers
    assert "launch.py --with audiocraft" in peer.skipped
    assert peer_report.cells(peer)[1:] == [peer_report.NOTHING] * 10


def test_a_row_whose_process_ends_by_itself_is_named_with_its_last_words(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(PeerFailed, match=r"process of bandwidth ended with exit code 1 \(no reason given\)"):
        measure_peers(TINY)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shape": "huge"}, "no such shape: 'huge'; allowed: small, medium, tiny"),
        ({"layers": 0}, "layers must be a whole number from 1 to 100, got 0"),
        ({"student_layers": 101}, "student_layers must be"),
        ({"seconds": 0.1}, "seconds"),
        ({"seconds": 26}, "25 or less"),
        ({"runs": 0}, "runs"),
        ({"rows": ("ours int2",)}, "got 'ours int2'"),
        ({"rows": ()}, "rows must be some of transformers fp32"),
        ({"rows": ("ours int8", "ours int8")}, "each once"),
    ],
)
def test_a_setting_that_is_not_allowed_is_one_sentence(options, said):
    with pytest.raises(ValueError, match=said):
        Setting(**options)


def test_the_small_shape_is_that_of_musicgen_small():
    config = SHAPES["small"].decoder | {"num_hidden_layers": Setting().layers}
    theirs = {"hidden_size": 1024, "num_attention_heads": 16, "ffn_dim": 4096, "vocab_size": 2048}
    assert config == theirs | {"num_hidden_layers": 24}
    assert SHAPES["small"].text == {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    assert Setting().student_layers == 8


def test_the_same_seed_makes_the_same_weights_and_another_seed_others():
    one, two, other = (make_musicgen(SHAPES["tiny"], 1, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    name = "decoder.lm_heads.0.weight"
    assert not torch.equal(one[name], other[name])


def test_greedy_tokens_of_theirs_and_ours_are_the_same_and_many():
    theirs = Transformers(make_musicgen(SHAPES["tiny"], 2, 5), "fp32").greedy(16)
    ours = Ours(make_musicgen(SHAPES["tiny"], 2, 5), "fp32").greedy(16)
    assert theirs.shape == (4, 16)
    assert torch.equal(theirs, ours)
    assert len(ours.unique()) > 8, "a model that repeats one token proves nothing"


def test_bytes_of_a_step_are_those_of_the_stored_weights():
    decoder = Ours(make_musicgen(SHAPES["tiny"], 2, 5), "fp32")._pipeline.decoder
    before = step_bytes(decoder)
    assert before == 4 * TINY_WEIGHTS
    decoder.heads = pack(decoder.heads, "int8")
    assert before - step_bytes(decoder) == 3 * 4 * 256 * 64 - 4 * 4 * 256, "a quarter, and a float32 scale a row"
    decoder.heads = pack(StepLinear(decoder.heads.in_features, decoder.heads.out_features), "int4")
    int8 = step_bytes(decoder)
    assert before - int8 == 3 * 4 * 256 * 64 - 4 * 4 * 256, "few int4 weights are read as int8"
    assert held_bytes([decoder.heads]) == 4 * 256 * (64 + 4) + 4 * 256 * (64 // 2 + 4), "beside their four bits"


def test_steps_count_the_delay():
    assert steps_in(10.0) == 503


def test_bandwidth_is_a_positive_number_of_bytes_a_second():
    assert 1e6 < read_bandwidth(2**20, 0.01) < 1e13
    for wrong in ((3, 1.0), (2**20, 0.0)):
        with pytest.raises(ValueError, match="4 bytes or more"):
            read_bandwidth(*wrong)
    assert cache_bytes() is None or cache_bytes() >= 2**15
