import importlib
import json
import subprocess
import sys

import numpy as np
import pytest

import tinymusician_core as tm
from tinymusician_core import records
from tinymusician_core.records import Clip, Figures, Progress, SamplingSpec, Spread, Timing, Waveform


def a_clip(**changes) -> Clip:
    fields = {
        "audio": np.zeros((1, 320), np.float32),
        "sample_rate_hz": 32000,
        "codes": np.zeros((4, 1), np.int64),
        "timing": Timing(0.1, 0.2, 0.3, 0.6, 0.6, 4),
        "prompt": "a jig",
        "sampling": SamplingSpec(),
        "model": "student",
        "model_hash": "0" * 16,
    }
    return Clip(**{**fields, **changes})


def test_importing_the_package_brings_in_no_torch():
    code = "import sys, tinymusician_core as tm; tm.SamplingSpec(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_unknown_public_name_is_told_with_those_there_are():
    with pytest.raises(AttributeError, match="offers.*generate.*load"):
        _ = tm.genrate


def test_a_package_named_like_a_public_function_can_be_called():
    importlib.import_module("tinymusician_core.distill.divergence")
    assert callable(tm.distill)
    assert tm.distill is sys.modules["tinymusician_core.distill"]
    assert tm.distill.divergence is sys.modules["tinymusician_core.distill.divergence"]


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_empty_prompts_are_refused(text):
    with pytest.raises(ValueError, match="prompt is empty; between 1 and 1000 characters are allowed"):
        records.check_prompt(text)


def test_a_huge_prompt_is_refused_with_its_size():
    with pytest.raises(ValueError, match="^prompt has 10000 characters; at most 1000 are allowed$"):
        records.check_prompt("x" * 10_000)


def test_prompts_are_stripped_and_may_be_emoji():
    assert records.check_prompt("  a jig \n") == "a jig"
    assert records.check_prompt("🎹🎹") == "🎹🎹"
    with pytest.raises(ValueError, match="prompt must be a text, got int"):
        records.check_prompt(5)


@pytest.mark.parametrize("seconds", [0, -1, 1e9, "abc", float("nan"), float("inf"), None, True, [8], 0.49, 600.01])
def test_seconds_out_of_range_are_named(seconds):
    with pytest.raises(ValueError, match="^seconds must be a number from 0.5 to 600, got ") as caught:
        SamplingSpec(seconds=seconds)
    assert repr(seconds) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("seed", -1),
        ("seed", 1.5),
        ("seed", 2**32),
        ("seed", "x"),
        ("cfg", 0.5),
        ("cfg", float("nan")),
        ("temperature", 0),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 1.1),
        ("greedy", "yes"),
    ],
)
def test_every_setting_is_checked_and_named(field, bad):
    with pytest.raises(ValueError, match=f"^{field} must be "):
        SamplingSpec(**{field: bad})


def test_settings_take_the_types_they_are_said_to_have():
    spec = SamplingSpec(seconds="8", seed=np.int64(3), cfg=2, top_k=250.0, greedy=np.bool_(True))
    assert (spec.seconds, spec.seed, spec.cfg, spec.top_k, spec.greedy) == (8.0, 3, 2.0, 250, True)
    assert json.loads(json.dumps(spec.as_dict())) == spec.as_dict()


def test_waveform_refuses_what_is_no_sound():
    assert Waveform(np.zeros((2, 16000)), 32000).seconds == 0.5
    for audio in (np.zeros(5), np.zeros((1, 0)), np.full((1, 3), 1.5), np.array([[np.nan]])):
        with pytest.raises(ValueError, match="^audio "):
            Waveform(audio, 32000)
    with pytest.raises(ValueError, match="^sample_rate_hz "):
        Waveform(np.zeros((1, 3)), 0)


def test_timing_gives_speed_where_bigger_is_better():
    timing = Timing(0.5, 2.0, 0.5, 3.0, 4.0, 200)
    assert timing.ms_per_step == 10.0
    assert timing.x_realtime(8.0) == 2.0
    assert Timing(0, 0, 0, 0, 0, 0).ms_per_step is None
    assert Timing(0, 0, 0, 0, 0, 0).x_realtime(8.0) is None
    with pytest.raises(ValueError, match="lm_s"):
        Timing(0, -1, 0, 0, 0, 0)


def test_figures_are_the_json_contract_and_null_where_not_measured():
    names = "first_sound_ms ms_per_step x_realtime total_s stages_ms peak_memory_bytes disk_bytes threads device runs"
    empty = Figures().as_dict()
    assert list(empty) == names.split()
    assert empty.pop("stages_ms") == {"text": None, "lm": None, "codec": None}
    assert set(empty.values()) == {None}
    full = Figures(1.0, 2.0, 3.0, 4.0, {"codec": 1.0, "lm": 2.0, "text": 3.0}, 5, 6, 2, "cpu", 3)
    assert json.loads(json.dumps(full.as_dict()))["stages_ms"] == {"text": 3.0, "lm": 2.0, "codec": 1.0}
    with pytest.raises(ValueError, match="stages_ms"):
        Figures(stages_ms={"lm": 1.0})
    with pytest.raises(ValueError, match="peak_memory_bytes"):
        Figures(peak_memory_bytes=-1)


def test_what_stands_beside_the_figures_is_null_where_not_measured():
    names = ["spread", "processes", "weights_bytes", "load_s", "load_peak_bytes", "warm_up_s"]
    empty = Figures().more()
    assert sorted(empty) == sorted(names)
    spread = empty.pop("spread")
    assert spread.pop("stages_ms") == {"text": None, "lm": None, "codec": None}
    assert set(spread) == set(Figures().as_dict()) & set(spread)
    assert set(spread.values()) == set(empty.values()) == {None}
    full = Figures(spread=Spread(total_s=(1, 2.5), stages_ms={"codec": None, "lm": (1, 1), "text": None}), processes=3)
    assert json.loads(json.dumps(full.more()))["spread"]["total_s"] == [1.0, 2.5]
    assert full.more()["spread"]["stages_ms"]["lm"] == (1.0, 1.0)
    assert full.as_dict() == Figures().as_dict()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"total_s": (2.0, 1.0)}, "total_s must be a lowest and a highest value, got 2 and 1"),
        ({"peak_memory_bytes": (-1, 1)}, "peak_memory_bytes must be a number"),
        ({"x_realtime": (1.0, float("nan"))}, "x_realtime must be a number"),
        ({"stages_ms": {"lm": (1, 2)}}, "stages_ms must name text, lm and codec"),
    ],
)
def test_a_spread_is_from_the_lowest_to_the_highest(wrong, says):
    with pytest.raises(ValueError, match=says):
        Spread(**wrong)


def test_a_clip_checks_codes_and_sound():
    clip = a_clip()
    assert clip.seconds == 0.01
    assert clip.waveform.audio is clip.audio
    assert clip.codes.dtype == np.int64
    with pytest.raises(ValueError, match="codes must be whole numbers"):
        a_clip(codes=np.zeros((4, 1)))
    with pytest.raises(ValueError, match="audio peaks at 2"):
        a_clip(audio=np.full((1, 4), 2.0))


def test_progress_estimates_what_is_left():
    assert Progress("lm", 0, 10, 1.0).eta_s is None
    assert Progress("lm", 4, 10, 2.0).eta_s == 3.0
    assert Progress("lm", 10, 10, 2.0).eta_s == 0.0
    with pytest.raises(ValueError, match="stage must be one of"):
        Progress("mastering", 0, 1, 0.0)
    with pytest.raises(ValueError, match="11 of 10"):
        Progress("lm", 11, 10, 0.0)
