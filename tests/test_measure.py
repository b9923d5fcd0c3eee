"""Figures: medians of runs, peak memory above idle, and variants measured one after the other."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import tinymusician_core as tm
from tinymusician_core.audio import write_wav
from tinymusician_core.measure.bench import StoppedComparing, StoppedMeasuring, compare, measure
from tinymusician_core.measure.timing import Process, Run, figures_of, summarise
from tinymusician_core.measure.weights import held_bytes
from tinymusician_core.records import Cancelled, SamplingSpec, Timing, Waveform
from tinymusician_core.worker import Loaded

PROMPT = "a calm piano waltz"
SPEC = SamplingSpec(seconds=1, seed=3)
LONG = SamplingSpec(seconds=200, seed=3)  # long enough to be stopped in the middle on a busy machine
MB = 2**20


def a_run(text, lm, codec, first, total, peak=None, made_s=5.0) -> Run:
    return Run(Timing(text, lm, codec, first, total, steps=100), made_s, peak)


RUNS = (
    a_run(0.1, 1.0, 0.3, 1.4, 1.5, 70 * MB),
    a_run(0.3, 2.0, 0.1, 2.4, 2.5, 75 * MB),
    a_run(0.2, 9.0, 0.2, 9.4, 10.0, 72 * MB),
)


def test_summary_takes_the_median_of_each_figure_and_says_how_far_the_runs_lie_apart():
    figures = summarise(RUNS)
    spread = figures["spread"]
    expected = {
        "first_sound_ms": (2400, 1400, 9400),
        "ms_per_step": (20, 10, 90),
        "x_realtime": (2.0, 0.5, 5 / 1.5),
        "total_s": (2.5, 1.5, 10.0),
        "peak_memory_bytes": (72 * MB, 70 * MB, 75 * MB),
    }
    for name, (middle, low, high) in expected.items():
        assert figures[name] == pytest.approx(middle)
        assert getattr(spread, name) == pytest.approx((low, high))
    assert figures["stages_ms"] == pytest.approx({"text": 200, "lm": 2000, "codec": 200})
    for name, ends in {"text": (100, 300), "lm": (1000, 9000), "codec": (100, 300)}.items():
        assert spread.stages_ms[name] == pytest.approx(ends)
    assert figures["runs"] == 3


def test_between_two_runs_the_median_is_their_mean_and_a_whole_number_of_bytes():
    figures = summarise([a_run(0, 1, 0, 1, 1, 10), a_run(0, 2, 0, 2, 2, 13)])
    assert figures["total_s"] == 1.5
    assert figures["peak_memory_bytes"] in (11, 12)


def test_what_no_run_has_is_unknown_and_has_no_spread():
    figures = summarise([Run(Timing(0, 0, 0, 0, 0, 0), 1.0)])
    for name in ("ms_per_step", "x_realtime", "peak_memory_bytes"):
        assert figures[name] is None
        assert getattr(figures["spread"], name) is None


def test_what_some_runs_have_is_that_of_those():
    figures = summarise([a_run(0, 1, 0, 1, 1), a_run(0, 1, 0, 1, 1, 7)])
    assert figures["peak_memory_bytes"] == 7
    assert figures["spread"].peak_memory_bytes == (7, 7)


def test_no_run_is_no_summary():
    with pytest.raises(ValueError, match="at least one is needed"):
        summarise([])


LOADED = Loaded("student", "0" * 16, 1000, 500, 400, "cpu", 2, 1.0, 600)


def test_several_processes_are_one_record_of_all_their_runs():
    slow = replace(LOADED, load_s=4.0, load_peak_bytes=800)
    figures = figures_of([Process(RUNS[:2], LOADED, 0.5), Process(RUNS[2:], slow, 1.5)])
    assert figures.total_s == 2.5
    assert figures.spread.total_s == (1.5, 10.0)
    assert (figures.runs, figures.processes) == (3, 2)
    assert (figures.load_s, figures.load_peak_bytes, figures.warm_up_s) == (2.5, 700, 1.0)
    assert (figures.disk_bytes, figures.weights_bytes, figures.threads, figures.device) == (1000, 500, 2, "cpu")


def test_processes_of_two_models_are_no_record():
    other = replace(LOADED, hash="1" * 16)
    with pytest.raises(ValueError, match="one and the same model"):
        figures_of([Process(RUNS, LOADED, None), Process(RUNS, other, None)])
    with pytest.raises(ValueError, match="got none"):
        figures_of([])


def test_a_process_comes_back_from_json():
    process = Process(RUNS, LOADED, None)
    assert Process.from_dict(json.loads(json.dumps(process.as_dict()))) == process


def test_a_gpu_that_is_not_there_is_one_sentence(tiny_family):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="torch finds no GPU"):
        measure(str(tiny_family / "student"), PROMPT, SPEC, device="cuda")
    with pytest.raises(ValueError, match="device must be cpu or cuda, got 'tpu'"):
        measure("student", PROMPT, SPEC, device="tpu")


def test_measure_fills_every_figure(tiny_family):
    stages = []
    student = str(tiny_family / "student")
    measured = measure(student, PROMPT, SPEC, runs=2, on_progress=lambda p: stages.append(p.stage), threads=1)
    figures = measured.figures.as_dict()
    assert None not in figures.values()
    assert None not in figures["stages_ms"].values()
    assert (figures["runs"], figures["threads"], figures["device"]) == (2, 1, "cpu")
    assert figures["disk_bytes"] == tm.load(student).disk_bytes
    assert measured.clip.seconds == pytest.approx(1, abs=0.05)
    assert len(measured.process.runs) == 2
    more = measured.figures.more()
    assert None not in more.values()
    assert more["processes"] == 1
    low, high = more["spread"]["total_s"]
    assert 0 < low <= figures["total_s"] <= high
    assert more["weights_bytes"] == held_bytes([tm.load(student).modules])
    assert min(more["load_s"], more["load_peak_bytes"], more["warm_up_s"]) > 0
    assert list(dict.fromkeys(stages)) == ["loading", "warm-up", "text", "lm", "codec"]


def test_the_first_run_that_counts_is_heard_while_it_is_made(tiny_family):
    heard = []
    measured = measure(
        str(tiny_family / "student"), PROMPT, SPEC, runs=2, on_audio=lambda chunk, rate: heard.append((chunk, rate))
    )
    np.testing.assert_array_equal(np.concatenate([chunk for chunk, _ in heard], axis=1), measured.clip.audio)
    assert {rate for _, rate in heard} == {measured.clip.sample_rate_hz}


def test_a_stop_keeps_the_run_that_was_under_way(tiny_family):
    heard = []
    with pytest.raises(StoppedMeasuring) as caught:
        measure(
            str(tiny_family / "student"),
            PROMPT,
            SamplingSpec(seconds=600, seed=3),
            warm_up=False,
            on_audio=lambda chunk, _: heard.append(chunk),
            should_stop=lambda: len(heard) >= 2,
        )
    measured = caught.value.measured
    assert not caught.value.whole
    assert caught.value.clip is measured.clip
    assert measured.made_s == pytest.approx(measured.clip.seconds)
    assert 1 < measured.made_s < 100
    assert None not in measured.figures.as_dict().values()
    assert measured.figures.runs == 1
    total_s = measured.figures.total_s
    assert measured.figures.x_realtime == pytest.approx(measured.made_s / total_s)


def test_a_stop_in_a_later_run_keeps_the_runs_that_are_whole(tiny_family):
    seen = []

    def in_second_run():
        return sum(progress.stage == "text" and progress.done == 0 for progress in seen) >= 2

    with pytest.raises(StoppedMeasuring) as caught:
        measure(
            str(tiny_family / "student"), PROMPT, LONG, 3, False, on_progress=seen.append, should_stop=in_second_run
        )
    assert caught.value.whole
    assert caught.value.measured.figures.runs == 1
    assert caught.value.clip.seconds == pytest.approx(LONG.seconds, abs=0.1)


def test_a_stop_while_warming_up_keeps_nothing(tiny_family):
    seen = []
    with pytest.raises(Cancelled, match="stopped while warming up|before any music") as caught:
        measure(
            str(tiny_family / "student"), PROMPT, SPEC, on_progress=seen.append,
            should_stop=lambda: any(progress.stage == "warm-up" for progress in seen),
        )  # fmt: skip
    assert not isinstance(caught.value, StoppedMeasuring)
    assert caught.value.clip is None


def test_speed_counts_new_music_alone(tiny_musicgen, tmp_path):
    path = write_wav(tmp_path / "noise.wav", Waveform(np.zeros((2, 44100)) + 0.1, 44100))
    measured = measure(str(tiny_musicgen), PROMPT, SPEC, 1, False, continue_from=path)
    assert measured.clip.seconds == pytest.approx(2, abs=0.03)
    assert measured.made_s == pytest.approx(1)
    assert measured.figures.x_realtime == pytest.approx(1 / measured.figures.total_s)


def test_compare_plays_the_same_prompt_with_each(demo_family):
    heard, chunks = [], {"teacher": [], "student": []}
    both = compare(
        PROMPT,
        ["teacher", "student"],
        SPEC,
        warm_up=False,
        on_progress=lambda model, _: heard.append(model),
        on_audio=lambda model, chunk, rate: chunks[model].append(chunk),
    )
    for measured in both:
        np.testing.assert_array_equal(np.concatenate(chunks[measured.clip.model], axis=1), measured.clip.audio)
    assert [measured.clip.model for measured in both] == ["teacher", "student"]
    assert {measured.clip.prompt for measured in both} == {PROMPT}
    assert list(dict.fromkeys(heard)) == ["teacher", "student"]
    assert both[0].figures.disk_bytes > both[1].figures.disk_bytes
    assert both[0].figures.warm_up_s is None


def test_compare_stops_when_it_is_asked_to(demo_family):
    with pytest.raises(StoppedComparing, match="stopped while teacher was playing") as caught:
        compare(PROMPT, ["teacher"], SPEC, should_stop=lambda: True)
    assert caught.value.finished == {}


def test_a_stopped_comparison_keeps_the_variants_that_are_whole(demo_family):
    heard = []
    with pytest.raises(StoppedComparing, match="stopped while student was playing") as caught:
        compare(
            PROMPT,
            ["teacher", "student"],
            LONG,
            warm_up=False,
            on_audio=lambda model, *_: heard.append(model),
            should_stop=lambda: "student" in heard,
        )
    assert list(caught.value.finished) == ["teacher"]
    assert caught.value.finished["teacher"].clip.seconds == pytest.approx(LONG.seconds, abs=0.1)


def test_a_variant_with_one_run_of_two_is_kept_with_that_one(demo_family):
    seen = []
    with pytest.raises(StoppedComparing) as caught:
        compare(
            PROMPT, ["student"], LONG, 2, False, lambda _, progress: seen.append(progress),
            lambda: sum(progress.stage == "text" and progress.done == 0 for progress in seen) >= 2,
        )  # fmt: skip
    assert caught.value.finished["student"].figures.runs == 1


def test_compare_names_an_unknown_model_before_it_plays_any(demo_family):
    heard = []
    with pytest.raises(ValueError, match="no such model: got 'studnet'"):
        compare(PROMPT, ["teacher", "studnet"], SPEC, on_progress=lambda model, _: heard.append(model))
    assert heard == []


@pytest.mark.parametrize("models", [[], ["student", "student"], "student"])
def test_compare_wants_each_model_once(models):
    with pytest.raises(ValueError, match="models must be"):
        compare(PROMPT, models, SPEC)


@pytest.mark.parametrize("runs", [0, 101, 1.5, True])
def test_runs_are_bounded(runs):
    with pytest.raises(ValueError, match="runs must be"):
        measure("student", PROMPT, SPEC, runs=runs)
