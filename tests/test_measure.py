"""Figures: medians of runs, peak memory above idle, and variants measured one after the other."""

import numpy as np
import pytest

import tinymusician_core as tm
from tinymusician_core.audio import write_wav
from tinymusician_core.measure import memory
from tinymusician_core.measure.bench import StoppedMeasuring, compare, measure
from tinymusician_core.measure.timing import spread, summarise
from tinymusician_core.records import Cancelled, SamplingSpec, Timing, Waveform

PROMPT = "a calm piano waltz"
SPEC = SamplingSpec(seconds=1, seed=3)
MB = 2**20


def test_summary_takes_the_median_of_each_figure():
    timings = [
        Timing(text_s=0.1, lm_s=1.0, codec_s=0.3, first_sound_s=1.4, total_s=1.5, steps=100),
        Timing(text_s=0.3, lm_s=2.0, codec_s=0.1, first_sound_s=2.4, total_s=2.5, steps=100),
        Timing(text_s=0.2, lm_s=9.0, codec_s=0.2, first_sound_s=9.4, total_s=10.0, steps=100),
    ]
    figures = summarise(timings, audio_s=5.0)
    assert figures["first_sound_ms"] == pytest.approx(2400)
    assert figures["ms_per_step"] == pytest.approx(20)
    assert figures["x_realtime"] == pytest.approx(2.0)
    assert figures["total_s"] == pytest.approx(2.5)
    assert figures["stages_ms"] == pytest.approx({"text": 200, "lm": 2000, "codec": 200})
    assert spread(timings) == (1.5, 10.0)


def test_a_run_without_steps_has_no_time_per_step():
    figures = summarise([Timing(text_s=0, lm_s=0, codec_s=0, first_sound_s=0, total_s=0, steps=0)], audio_s=1.0)
    assert figures["ms_per_step"] is None
    assert figures["x_realtime"] is None


def test_no_run_is_no_summary():
    with pytest.raises(ValueError, match="at least one run"):
        summarise([], 1.0)


def use(megabytes: int) -> None:
    """Touch that much memory and give it back."""
    assert np.ones(megabytes * MB, dtype=np.uint8)[::4096].all()


def test_peak_memory_counts_what_came_and_went_since():
    use(200)
    peak = memory.PeakMemory()
    assert peak.peak_bytes() < 20 * MB
    use(64)
    assert 60 * MB <= peak.peak_bytes() < 120 * MB
    use(16)
    assert 60 * MB <= peak.peak_bytes() < 120 * MB


def test_peak_memory_is_sampled_where_the_kernel_keeps_no_mark(monkeypatch):
    monkeypatch.setattr(memory, "_restart_high_water_mark", lambda: False)
    peak = memory.PeakMemory()
    held = np.ones(64 * MB, dtype=np.uint8)
    assert 60 * MB <= peak.peak_bytes() < 120 * MB
    assert held[0] == 1


def test_peak_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(memory.PeakMemory, "_resident", lambda self: None)
    assert memory.PeakMemory().peak_bytes() is None


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
    assert len(measured.timings) == 2
    assert measured.spread_s[0] <= figures["total_s"] <= measured.spread_s[1]
    assert measured.load_s > 0
    assert measured.warm_up_s > 0
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
        return sum(progress.stage == "text" and progress.done == 0 for progress in seen) == 2

    with pytest.raises(StoppedMeasuring) as caught:
        measure(
            str(tiny_family / "student"), PROMPT, SPEC, 3, False, on_progress=seen.append, should_stop=in_second_run
        )
    assert caught.value.measured.figures.runs == 1
    assert caught.value.clip.seconds == pytest.approx(1)


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
    assert both[0].warm_up_s is None


def test_compare_stops_when_it_is_asked_to(demo_family):
    with pytest.raises(Cancelled):
        compare(PROMPT, ["teacher"], SPEC, should_stop=lambda: True)


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
