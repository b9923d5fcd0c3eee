"""Takes without a browser: one model after the other, stopped, failed, kept, named and exported."""

import json
import re
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from studio_bench import FIGURES, PROMPT, RATE, ended, give_encoder, perform, play, tone

from studio import core, wording
from studio.naming import free_path, slug
from studio.orders import Form, Job, Order, Watch, check_order, runs_of
from studio.sources import check_source
from studio.takes import UNHEARD, UNSTARTED, Bench
from tinymusician_core import audio
from tinymusician_core.records import Cancelled, SamplingSpec


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path / "music", play)


def test_a_take_fills_its_cards_one_after_the_other(bench):
    seen = perform(bench, "teacher", "student")
    assert list(dict.fromkeys(card.model for card in seen)) == ["teacher", "student"]
    assert {card.state for card in ended(seen).values()} == {"done"}
    (take,) = bench.store.takes()
    assert [clip.file for clip in take.clips] == [
        "clips/a-calm-piano-waltz_teacher_seed7.wav",
        "clips/a-calm-piano-waltz_student_seed7.wav",
    ]
    assert take.clips[0].figures == FIGURES.as_dict()
    assert not bench.busy


def test_a_clip_is_a_tagged_wav_in_the_output_folder(bench):
    clip = ended(perform(bench, "teacher", cfg=2.0))["teacher"].clip
    sound, tags = audio.read(bench.path(clip)), audio.read_tags(bench.path(clip))
    assert (sound.sample_rate_hz, sound.seconds, clip.audio_s) == (RATE, 1.0, 1.0)
    said = json.loads(tags["comment"])
    assert tags["title"] == PROMPT
    assert (said["model"], said["seed"], said["settings"]["cfg"]) == ("teacher", 7, 2.0)


def test_a_model_that_dies_takes_no_other_with_it(bench):
    cards_seen = ended(perform(bench, "broken", "student"))
    assert cards_seen["broken"].state == "failed"
    assert "Broken" not in wording.MODEL_TITLES
    assert cards_seen["broken"].message == "broken could not be made: the process of broken ended (killed)."
    assert cards_seen["student"].state == "done"
    assert ended(perform(bench, "teacher"))["teacher"].state == "done"


def test_a_stop_ends_the_model_at_work_and_all_that_wait(bench):
    key = bench.order(Order(PROMPT, SamplingSpec(seconds=1), ("endless", "teacher")))
    states = {}
    for card in bench.perform(key):
        states[card.model] = (card.state, card.message)
        if card.progress is not None and card.progress.stage == "lm":
            assert bench.busy
            assert bench.stop(key)
    assert states == {"endless": ("cancelled", UNHEARD), "teacher": ("cancelled", UNSTARTED)}
    assert not bench.stop(key)
    assert bench.store.takes() == []


def test_a_page_that_goes_away_stops_the_work(bench):
    news = bench.perform(bench.order(Order(PROMPT, SamplingSpec(seconds=1), ("endless", "teacher"))))
    assert next(news).state == "working"
    news.close()
    assert ended(perform(bench, "student"))["student"].state == "done"  # waits until the other has ended
    assert [clip.model for take in bench.store.takes() for clip in take.clips] == ["student"]


def test_a_take_that_is_stopped_in_line_never_starts(bench):
    key = bench.order(Order(PROMPT, SamplingSpec(), ("teacher",)))
    assert bench.stop(key)
    assert list(bench.perform(key)) == []
    assert bench.store.takes() == []


def test_a_take_is_made_once(bench):
    key = bench.order(Order(PROMPT, SamplingSpec(seconds=1), ("teacher",)))
    assert list(bench.perform(key))
    assert list(bench.perform(key)) == []
    assert list(bench.perform("never ordered")) == []


def test_two_takes_take_turns(bench):
    """Whoever performs them: the second waits for the first at the bench itself."""
    at_work, most = [], []

    def careful(job, watch):
        at_work.append(job.model)
        most.append(len(at_work))
        made = play(job, watch)
        at_work.remove(job.model)
        return made

    shared = Bench(bench.folder, careful)
    threads = [threading.Thread(target=perform, args=(shared, "teacher", "student")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]
    assert len(list(shared.clips.glob("*_2.wav"))) == 2  # the same name twice


def test_closing_the_bench_stops_everything(bench):
    news = bench.perform(bench.order(Order(PROMPT, SamplingSpec(), ("endless",))))
    next(news)
    bench.close()
    assert [card.state for card in news][-1] == "cancelled"


def test_all_clips_of_a_take_leave_in_one_zip(bench):
    take_id = ended(perform(bench, "teacher", "student"))["student"].clip.take_id
    path = bench.export_all(take_id)
    assert path.name == "a-calm-piano-waltz_seed7_take1.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [
            "a-calm-piano-waltz_teacher_seed7.wav",
            "a-calm-piano-waltz_student_seed7.wav",
        ]
        for name in archive.namelist():
            assert archive.read(name) == (bench.clips / name).read_bytes()
    assert list(bench.exports.iterdir()) == [path]
    for clip in bench.store.take(take_id).clips:
        bench.path(clip).unlink()
    with pytest.raises(ValueError, match="no clips"):
        bench.export_all(take_id)


@pytest.mark.parametrize(
    ("prompt", "models", "own", "settings", "says"),
    [
        ("", ["teacher"], "", {}, "prompt is empty"),
        ("   \n", ["teacher"], "", {}, "prompt is empty"),
        ("x" * 10_000, ["teacher"], "", {}, "10000 characters; at most 1000"),
        ("🎹🎻 🥁", ["teacher"], "", {}, "“🎹🎻 🥁” has no words"),
        (PROMPT, ["teacher"], "", {"seconds": 0}, "seconds must be a number from 0.5 to 600, got 0"),
        (PROMPT, ["teacher"], "", {"seconds": -1}, "got -1"),
        (PROMPT, ["teacher"], "", {"seconds": 1e9}, "got 1000000000.0"),
        (PROMPT, ["teacher"], "", {"seconds": "abc"}, "got 'abc'"),
        (PROMPT, ["teacher"], "", {"seconds": None}, "got None"),
        (PROMPT, ["teacher"], "", {"seed": 1.5}, "whole number"),
        (PROMPT, [], "", {}, "no model is chosen"),
        (PROMPT, ["neighbour"], " ", {}, "no model is chosen"),
        (PROMPT, [], "m" * 400, {}, "400 characters"),
    ],
)
def test_bad_input_is_one_sentence(prompt, models, own, settings, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        check_order(prompt, models, own, settings)
    assert "\n" not in str(error.value)


def test_an_order_keeps_the_usual_order_and_adds_a_model_of_ones_own():
    order = check_order(
        f" {PROMPT} ", ["quantized", "teacher"], " facebook/musicgen-small ", {"seconds": 3, "seed": 2.0}
    )
    assert (order.prompt, order.models) == (PROMPT, ("teacher", "quantized", "facebook/musicgen-small"))
    assert (order.sampling.seconds, order.sampling.seed) == (3.0, 2)
    assert check_order(PROMPT, ["teacher"], "teacher", {}).models == ("teacher",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A calm, piano waltz!", "a-calm-piano-waltz"),
        ("Jeg älskar ../../etc", "jeg-alskar-etc"),
        ("钢琴", "clip"),
        ("long " * 40, "long-long-long-long-long-long-long-long-long"),
        ("x" * 100, "x" * 48),
    ],
)
def test_names_of_files_are_readable_and_safe(text, expected):
    assert slug(text) == expected


def test_a_taken_name_gets_a_number(tmp_path):
    for expected in ("a.wav", "a_2.wav", "a_3.wav"):
        path = free_path(tmp_path, "a")
        assert path.name == expected
        path.touch()


def test_a_real_model_plays_in_a_process_of_its_own(tmp_path, demo_family, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    bench = Bench(tmp_path, core.make_clip)
    seen = perform(bench, "student", "facebook", seconds=0.5)
    student = ended(seen)["student"]
    assert student.state == "done"
    figures = student.clip.figures
    assert figures["device"] == "cpu"
    assert figures["ms_per_step"] > 0
    assert figures["disk_bytes"] > 0
    assert len(student.clip.model_hash) == 16
    assert figures["runs"] == 3
    stages = [card.progress.stage for card in seen if card.model == "student" and card.progress]
    assert set(stages) <= set(wording.STAGES)
    assert ended(seen)["facebook"].message.startswith("facebook could not be made: no such model: got 'facebook'")


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


def test_only_short_takes_of_the_family_that_are_not_blind_play_three_times():
    assert [runs_of(model, 8.0) for model in ("teacher", "facebook/musicgen-small")] == [3, 1]
    assert [runs_of("teacher", seconds) for seconds in (30.0, 30.5, 600.0)] == [3, 1, 1]
    assert runs_of("teacher", 8.0, blind=True) == 1


# heard while it is made, and stopped


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


def test_a_take_is_no_loop_of_a_continuation():
    with pytest.raises(ValueError, match="untick Loop or remove the file"):
        Form("sources/x.wav", 2.0, loop=True)


@pytest.mark.parametrize(
    ("seconds", "bpm", "says"), [(8, 10, "bpm must be a number from 20 to 300"), (600, None, "up to 599 seconds long")]
)
def test_a_loop_that_cannot_be_is_refused_before_it_is_ordered(seconds, bpm, says):
    with pytest.raises(ValueError, match=says):
        check_order(PROMPT, ["teacher"], "", {"seconds": seconds}, Form(loop=True, bpm=bpm))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_file_to_go_on_from_is_checked(tmp_path):
    sound = tone("teacher", 0.5)
    for ending in (".wav", ".flac", ".ogg", ".mp3"):
        soundfile.write(tmp_path / f"fine{ending}", sound.audio.T, RATE)
        assert check_source(tmp_path / f"fine{ending}") == pytest.approx(0.5, abs=0.1)
    wav = (tmp_path / "fine.wav").read_bytes()
    soundfile.write(tmp_path / "long.wav", np.zeros(601 * 100), 100)
    for path, says in (
        (write(tmp_path / "text.wav", b"no sound at all"), "the file text.wav is no WAV, MP3, FLAC or OGG file"),
        (write(tmp_path / "empty.mp3", b""), "empty.mp3 is no WAV"),
        (write(tmp_path / "cut.wav", wav[:44]), "cut.wav holds no sound"),
        (tmp_path / "gone.wav", "gone.wav is no WAV"),
        (tmp_path / "long.wav", "long.wav is 10 min 1 s long; at most 10 min are allowed"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)) as error:
            check_source(path)
        assert str(tmp_path) not in str(error.value)
