"""Pictures and players of clips: spectrograms, and what can be heard of a clip while it is made."""

import os
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from studio_bench import RATE, play, row, tone

from studio import cards, plots
from studio.orders import Form
from studio.preview import COLUMNS, Preview
from studio.store import Take
from studio.takes import Bench, Card
from tinymusician_core import audio
from tinymusician_core.records import Progress, SamplingSpec


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path / "music", play)


# pictures


def test_a_mask_is_transparent_where_there_is_nothing():

    picture = Image.open(BytesIO(plots.mask_png(np.array([[0.0, 1.0]]))))
    assert (picture.mode, picture.size) == ("LA", (2, 1))
    assert list(picture.getchannel("A").tobytes()) == [0, 255]


# players


def test_a_stopped_clip_says_so_and_joins_no_chart(bench):
    audio.write_wav(bench.clips / "student.wav", tone("student", 3.25))
    audio.write_wav(bench.clips / "teacher.wav", tone("teacher"))
    stopped = Card("student", "done", clip=replace(row(2, "student"), audio_s=3.25, stopped=True))
    markup = cards.card(stopped, bench.folder)
    assert "Stopped after 3.2 s" in markup
    assert 'data-stopped="1"' in markup
    assert 'download="student.wav"' in markup
    assert cards.chart([stopped, Card("teacher", "done", clip=row(1, "teacher"))]) == ""
    take = Take(1, 0.0, "a waltz", SamplingSpec().as_dict(), ("student",), (stopped.clip,))
    assert cards.history([take]).count('<b class="is-stopped">stopped</b>') == 1
    assert "is-stopped" not in cards.history([replace(take, clips=(row(1, "student"),))])


def test_a_loop_is_played_as_one_unless_it_was_stopped(bench):
    audio.write_wav(bench.clips / "student.wav", tone("student", 2.0))
    looped = Card("student", "done", clip=row(2, "student"), form=Form(loop=True, bpm=120.0))
    markup = cards.card(looped, bench.folder)
    assert 'data-loop="gradio_api/file=' in markup
    assert "Loop of 1 bar at 120 BPM · 2.0 s" in markup
    cut = cards.card(replace(looped, clip=replace(looped.clip, stopped=True)), bench.folder)
    assert "data-loop" not in cut
    assert "<audio preload" in cut


def test_a_card_at_work_plays_what_is_made(bench):
    preview = Preview(bench.previews, 8.0)
    preview.add(np.zeros((2, 0), dtype=np.float32), RATE)
    assert preview.heard is None
    stereo = np.stack([np.full(RATE, 0.5), np.full(RATE, -1.0)]).astype(np.float32)
    preview.add(stereo, RATE)
    preview.add(0.1 * stereo, RATE)
    samples = np.frombuffer(preview.path.read_bytes(), dtype="<i2").reshape(-1, 2)
    assert samples[[0, RATE]].tolist() == [[16384, -32767], [1638, -3277]]
    levels = preview.heard.levels
    assert [levels[i] for i in (0, 14, 15, 29, 30)] == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.0], abs=1e-3)
    working = Card("student", "working", Progress("lm", 25, 100, 10.0), preview.heard, run=1, runs=3)
    markup = cards.card(working, bench.folder)
    for words in (f'data-made="{2 * RATE}"', 'data-channels="2"', 'data-whole="0"', "Preview, 0:02 made", "/ 0:08"):
        assert words in markup
    assert "tm-download" not in markup
    assert 'data-whole="1"' in cards.card(replace(working, run=2), bench.folder)


@pytest.mark.parametrize("chunks", [[1], [7, 1, 4000], [900] * 11, [20_000]])
def test_levels_do_not_depend_on_the_chunks(bench, chunks):
    random = np.random.default_rng(3)
    sound = random.uniform(-1, 1, (1, sum(chunks))).astype(np.float32)
    preview = Preview(bench.previews, 2.0)
    start = 0
    for size in chunks:
        preview.add(sound[:, start : start + size], RATE)
        start += size
    slow = [0.0] * COLUMNS
    for place, value in enumerate(np.abs(sound[0]).tolist()):
        column = min(COLUMNS - 1, int(place * COLUMNS / (2 * RATE)))
        slow[column] = max(slow[column], value)
    assert preview.heard.levels == pytest.approx(slow, abs=1e-3)


def test_previews_that_a_killed_studio_left_are_removed(bench):
    old, new = bench.previews / "old.pcm", bench.previews / "new.pcm"
    for path in (old, new):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    Bench(bench.folder, play)
    assert [path.name for path in bench.previews.iterdir()] == ["new.pcm"]
