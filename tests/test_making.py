"""Clips while they are made and what becomes of them: heard early, stopped and kept, looped, continued."""

import json
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from studio_bench import PROMPT, RATE, ended, give_encoder, perform, play, tone

from studio import core
from studio.orders import Form, Job, Order, Watch
from studio.takes import UNSTARTED, Bench
from tinymusician_core import audio
from tinymusician_core.records import Cancelled, SamplingSpec


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path / "music", play)


def comment(bench: Bench, clip) -> dict:
    return json.loads(audio.read_tags(bench.path(clip))["comment"])


def steady(bench: Bench, **order) -> str:
    return bench.order(Order(PROMPT, SamplingSpec(seconds=4, seed=7), ("steady", "teacher"), **order))


def test_a_preview_grows_while_the_model_works_and_is_gone_with_it(bench):
    seen = []
    key = steady(bench)
    for card in bench.perform(key):
        if card.heard is None:
            continue
        assert card.state == "working"
        sound = np.frombuffer(card.heard.path.read_bytes(), dtype="<i2")
        assert np.abs(sound / 32767 - tone("steady", 0.5).audio[0]).max() < 1e-4
        seen.append((card.heard.samples, card.heard.sample_rate_hz, card.heard.channels, card.heard.expected_s))
        loud = [column for column, level in enumerate(card.heard.levels) if level > 0.1]
        assert (loud[0], loud[-1]) == (0, 14)  # half a second of four, in 120 columns
        bench.stop(key)
    assert set(seen) == {(RATE // 2, RATE, 1, 4.0)}
    assert list(bench.previews.iterdir()) == []


def test_a_stop_keeps_what_could_be_heard_and_starts_no_other(bench):
    key = steady(bench)
    seen = []
    for card in bench.perform(key):
        seen.append(card)
        if card.heard:
            bench.stop(key)
    kept, other = ended(seen)["steady"], ended(seen)["teacher"]
    assert (kept.state, kept.clip.stopped, kept.clip.audio_s) == ("done", True, 0.5)
    assert (other.state, other.message) == ("cancelled", UNSTARTED)
    assert kept.clip.file == "clips/a-calm-piano-waltz_steady_seed7_stopped.wav"
    assert audio.read(bench.path(kept.clip)).seconds == 0.5
    assert comment(bench, kept.clip)["stopped"] is True
    (take,) = bench.store.takes()
    assert take.clips == (kept.clip,)
    with zipfile.ZipFile(bench.export_all(take.id)) as archive:
        assert archive.namelist() == [kept.clip.file.removeprefix("clips/")]


def test_a_page_that_goes_away_leaves_what_was_made_in_the_history(bench):
    news = bench.perform(steady(bench))
    next(card for card in news if card.heard)
    news.close()
    perform(bench, "student")  # waits until the other has ended
    assert [(clip.model, clip.stopped) for take in bench.store.takes() for clip in take.clips] == [
        ("student", False),
        ("steady", True),
    ]


def test_a_blind_take_lets_nothing_be_heard_and_keeps_nothing_that_was_stopped(bench):
    key = steady(bench, blind=True)
    threading.Timer(0.2, bench.stop, [key]).start()
    seen = list(bench.perform(key))
    assert not any(card.heard for card in seen)
    assert {card.state for card in ended(seen).values()} == {"cancelled"}
    assert bench.store.takes() == []


# loops and continuations


@pytest.mark.parametrize(
    ("bpm", "seconds", "name"), [(None, 3.0, "_loop.wav"), (100, 2.4, "_loop_100bpm.wav"), (250, 2.88, "_250bpm.wav")]
)
def test_a_loop_is_exact_and_ends_where_it_begins(bench, bpm, seconds, name):
    card = ended(perform(bench, "teacher", seconds=3.0, form=Form(loop=True, bpm=bpm)))["teacher"]
    sound = audio.read(bench.path(card.clip))
    assert sound.audio.shape[1] == round(seconds * RATE)
    assert card.clip.file.endswith(name)
    assert comment(bench, card.clip)["loop"]["seconds"] == pytest.approx(seconds)
    steps = np.abs(np.diff(np.concatenate([sound.audio[0], sound.audio[0, :1]])))
    assert steps[-1] <= 1.05 * steps[:-1].max()
    assert bench.store.takes()[0].form == {"loop": True, **({"bpm": bpm} if bpm else {})}


def test_a_loop_that_is_stopped_is_a_stopped_clip(bench):
    key = bench.order(Order(PROMPT, SamplingSpec(seconds=4), ("steady",), form=Form(loop=True)))
    for card in bench.perform(key):
        if card.heard:
            bench.stop(key)
    assert (card.clip.stopped, card.clip.audio_s) == (True, 0.5)


def test_a_continuation_hands_over_the_file_that_was_kept(bench, tmp_path):
    given = audio.write_wav(tmp_path / "My riff!.wav", tone("student", 1.5))
    jobs = []

    def remember(job, watch):
        jobs.append(job)
        return play(job, watch)

    other = Bench(bench.folder, remember)
    file, seconds = other.keep_source(given)
    assert (Path(file).name, seconds) == ("my-riff.wav", 1.5)
    assert other.keep_source(given) == (file, seconds)
    given.unlink()
    seen = perform(other, "teacher", form=Form(file, seconds))
    assert jobs[0].source == bench.folder / file
    assert audio.read(jobs[0].source).seconds == 1.5
    assert {card.heard.expected_s for card in seen if card.heard} <= {2.5}
    clip = ended(seen)["teacher"].clip
    assert clip.file.endswith("_continued.wav")
    assert comment(other, clip)["continues"] == "my-riff.wav"
    assert Form(**other.store.takes()[0].form) == Form(file, seconds)


# a real model


def stop_at(watch_stop: threading.Event, wanted):
    """A watcher of progress that sets an event as soon as `wanted` is true of a step."""
    return lambda step: watch_stop.set() if wanted(step) else None


def test_a_real_model_is_heard_continued_and_stopped(tmp_path, tiny_family, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TINYMUSICIAN_ASSETS", str(tmp_path / "assets"))
    give_encoder(Path(shutil.copytree(tiny_family, tmp_path / "assets" / "models")))
    given = audio.write_wav(tmp_path / "given.wav", tone("teacher", 1.0))
    chunks, stop = [], threading.Event()
    heard = Watch(lambda step: None, lambda: False, lambda chunk, rate: chunks.append((chunk, rate)))
    job = Job("student", PROMPT, SamplingSpec(seconds=1, seed=3), source=given)
    made = core.make_clip(job, heard)
    assert not made.stopped
    assert np.abs(np.concatenate([chunk for chunk, _ in chunks], axis=1) - made.clip.audio).max() < 1e-6
    assert {rate for _, rate in chunks} == {made.clip.sample_rate_hz}
    assert made.clip.seconds == pytest.approx(2.0, abs=0.05)

    half = stop_at(stop, lambda step: step.stage == "lm" and step.done > step.total / 4)
    long = Job("student", PROMPT, SamplingSpec(seconds=60, seed=3))
    made = core.make_clip(long, Watch(half, stop.is_set))
    assert made.stopped
    assert 0.5 < made.clip.seconds < 60
    assert made.figures.runs == 1

    stop.clear()
    runs = iter(range(3))
    again = stop_at(stop, lambda step: step.stage == "text" and step.done == 0 and next(runs) == 1)
    twice = Job("student", PROMPT, SamplingSpec(seconds=1, seed=3), runs=3)
    made = core.make_clip(twice, Watch(again, stop.is_set))
    assert (made.stopped, made.figures.runs) == (False, 1)
    assert made.clip.seconds == pytest.approx(1.0, abs=0.05)

    stop.set()
    with pytest.raises(Cancelled):
        core.make_clip(job, Watch(lambda step: None, stop.is_set))
