"""The studio's memory: what was stored is there again, also after a kill, a second thread and a broken file."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from studio.store import FILE_NAME, Store, StoreError, VoteRow
from tinymusician_core.records import SamplingSpec

REPO = Path(__file__).resolve().parents[1]
SETTINGS = SamplingSpec(seconds=2, seed=5).as_dict()
FIGURES = {"ms_per_step": 12.5, "peak_memory_bytes": None, "stages_ms": {"text": 1.0, "lm": 2.0, "codec": None}}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


def vote(pair: str, clips, choice: str = "a") -> VoteRow:
    a, b = clips
    return VoteRow(pair, choice, 4.5, 5.25, a.model, a.model_hash, b.model, b.model_hash, a.id, b.id)


def add_two(store: Store, prompt: str = "a waltz", blind: bool = False):
    take = store.add_take(prompt, SETTINGS, ("teacher", "student"), blind)
    return [
        store.add_clip(take, name, f"hash-{name}", f"clips/{name}.wav", 2.0, FIGURES) for name in ("teacher", "student")
    ]


def test_a_take_comes_back_as_it_was_stored(store, tmp_path):
    clips = add_two(store, "naïve “waltz” 🎻")
    (take,) = Store(tmp_path).takes()
    assert (take.prompt, take.settings, take.models) == ("naïve “waltz” 🎻", SETTINGS, ("teacher", "student"))
    assert take.clips == tuple(clips)
    assert take.clips[0].figures == FIGURES
    assert store.take(take.id) == take
    assert store.take(take.id + 1) is None


def test_takes_are_listed_newest_first_and_only_with_a_clip(store):
    add_two(store, "first")
    store.add_take("nothing came of it", SETTINGS, ("teacher",))
    add_two(store, "second", blind=True)
    assert [(take.prompt, take.blind) for take in store.takes()] == [("second", True), ("first", False)]


def test_a_pair_is_judged_once(store):
    clips = add_two(store)
    store.add_vote(vote("pair-1", clips))
    with pytest.raises(ValueError, match="judged already"):
        store.add_vote(vote("pair-1", clips, "b"))
    (kept,) = store.votes()
    assert (kept.choice, kept.heard_a_s, kept.heard_b_s, kept.model_a, kept.clip_b) == (
        "a", 4.5, 5.25, "teacher", clips[1].id,
    )  # fmt: skip
    assert kept.created_at > 0


def test_a_vote_on_a_clip_that_is_not_there_is_refused(store):
    a, b = add_two(store)
    with pytest.raises(StoreError, match=FILE_NAME):
        store.add_vote(VoteRow("p", "a", 4, 4, a.model, a.model_hash, b.model, b.model_hash, a.id, 999))
    assert store.votes() == []


def test_the_seed_belongs_to_the_folder(store, tmp_path):
    assert len(store.seed()) == 32
    assert Store(tmp_path).seed() == store.seed()
    (tmp_path / "other").mkdir()
    assert Store(tmp_path / "other").seed() != store.seed()


def test_threads_do_not_lose_each_others_rows(store):
    take = store.add_take("a jig", SETTINGS, ("teacher",))

    def write(name: str) -> None:
        for count in range(5):
            store.add_clip(take, name, "h", f"clips/{name}-{count}.wav", 1.0, {})

    threads = [threading.Thread(target=write, args=(f"model-{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({clip.file for clip in store.take(take).clips}) == 20


def test_what_was_acknowledged_survives_a_kill(tmp_path):
    code = (
        "import sys; from studio.store import Store; store = Store(sys.argv[1])\n"
        "take = store.add_take('a reel', {}, ('teacher',))\n"
        "while True: print(store.add_clip(take, 'teacher', 'h', 'clips/x.wav', 1.0, {}).id, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=REPO, text=True)
    acknowledged = [int(child.stdout.readline()) for _ in range(5)]
    os.kill(child.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in child.stdout.read().split()]
    child.wait()
    child.stdout.close()
    (take,) = Store(tmp_path).takes()
    assert set(acknowledged) <= {clip.id for clip in take.clips}


def test_a_file_that_is_no_history_is_named(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match=FILE_NAME):
        Store(tmp_path)


OLD = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE takes (
    id INTEGER PRIMARY KEY, created_at REAL NOT NULL, prompt TEXT NOT NULL, settings TEXT NOT NULL,
    models TEXT NOT NULL, blind INTEGER NOT NULL);
CREATE TABLE clips (
    id INTEGER PRIMARY KEY, take_id INTEGER NOT NULL REFERENCES takes(id), created_at REAL NOT NULL,
    model TEXT NOT NULL, model_hash TEXT NOT NULL, file TEXT NOT NULL, audio_s REAL NOT NULL, figures TEXT NOT NULL);
CREATE TABLE votes (pair TEXT PRIMARY KEY);
INSERT INTO meta VALUES ('seed', 'an old seed');
INSERT INTO takes VALUES (1, 5.0, 'an old waltz', '{}', '["teacher"]', 0);
INSERT INTO clips VALUES (1, 1, 6.0, 'teacher', 'h', 'clips/old.wav', 8.0, '{"x_realtime": 2.0}');
PRAGMA user_version = 1;
"""


def test_a_history_of_the_first_studio_is_taken_over(tmp_path):
    db = sqlite3.connect(tmp_path / FILE_NAME)
    db.executescript(OLD)
    db.close()
    store = Store(tmp_path)
    (take,) = store.takes()
    assert (take.prompt, take.form, take.clips[0].stopped) == ("an old waltz", {}, False)
    assert store.seed() == "an old seed"
    store.add_clip(take.id, "student", "h", "clips/new.wav", 2.5, {}, stopped=True)
    assert [clip.stopped for clip in Store(tmp_path).take(take.id).clips] == [False, True]


def test_the_last_figures_are_those_of_whole_pieces_from_a_prompt_alone(store):
    plain = store.add_take("a waltz", SETTINGS, ("teacher",))
    loop = store.add_take("a waltz", SETTINGS, ("teacher",), form={"loop": True})
    for take, speed, stopped in ((plain, 1.0, False), (plain, 2.0, False), (plain, 3.0, True), (loop, 4.0, False)):
        store.add_clip(take, "teacher", "h", "clips/x.wav", 2.0, {"x_realtime": speed}, stopped)
    assert store.take(loop).form == {"loop": True}
    assert store.last_figures() == {"teacher": {"x_realtime": 2.0}}


def test_a_history_of_a_newer_studio_is_left_alone(store, tmp_path):
    db = sqlite3.connect(store.path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="format 99"):
        Store(tmp_path)


def test_its_files_are_known_so_that_they_can_be_kept_from_serving(store):
    add_two(store)
    assert {path for path in store.path.parent.iterdir() if path.is_file()} <= set(store.files)
