"""Takes without a browser: one model after the other, stopped, failed, kept, named and exported."""

import json
import threading
import zipfile

import pytest
from studio_bench import FIGURES, PROMPT, RATE, ended, perform, play

from studio import core, wording
from studio.orders import Order
from studio.takes import UNHEARD, UNSTARTED, Bench
from tinymusician_core import audio
from tinymusician_core.records import SamplingSpec


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
    assert take.clips[0].figures.items() >= FIGURES.as_dict().items()
    assert take.clips[0].figures["spread"]["x_realtime"] is None
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
    low, high = figures["spread"]["x_realtime"]
    assert low <= figures["x_realtime"] <= high
    stages = [card.progress.stage for card in seen if card.model == "student" and card.progress]
    assert set(stages) <= set(wording.STAGES)
    assert ended(seen)["facebook"].message.startswith("facebook could not be made: no such model: got 'facebook'")
