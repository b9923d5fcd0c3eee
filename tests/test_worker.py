"""A variant in a process of its own: the same clip as in ours, heard while it is made, stopped, killed, orphaned."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
from conftest import save_tiny_musicgen

import tinymusician_core as tm
from tinymusician_core import audio, growing
from tinymusician_core.records import Cancelled, ModelError, SamplingSpec, Waveform
from tinymusician_core.worker import Stopped, Worker, WorkerDied

PROMPT = "a calm piano waltz"
SHORT = SamplingSpec(seconds=1, seed=3)
LONG = SamplingSpec(seconds=30, seed=3)


@pytest.fixture(scope="module")
def worker(tiny_family):
    """One worker for the tests that leave it usable, on the tiny student."""
    with Worker(str(tiny_family / "student"), threads=1) as worker:
        worker.start()
        yield worker


def files_of(worker: Worker) -> set[str]:
    """What lies in a worker's folder."""
    return {path.name for path in worker._folder.iterdir()}


def after(seconds: float):
    """An event, and an `on_audio` that sets it once so many seconds were heard."""
    event, heard = threading.Event(), 0

    def listen(chunk, rate):
        nonlocal heard
        heard += chunk.shape[1]
        if heard >= seconds * rate:
            event.set()

    return event, listen


def ends(process: psutil.Process) -> bool:
    """Whether a process is gone, or a zombie, within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_a_clip_is_the_one_that_our_own_process_makes(worker, tiny_family):
    ours = tm.generate(tm.load(tiny_family / "student"), PROMPT, seconds=1, seed=3)
    result = worker.generate(PROMPT, SHORT)
    np.testing.assert_array_equal(result.clip.codes, ours.codes)
    np.testing.assert_allclose(result.clip.audio, ours.audio, atol=1e-5)
    assert (result.clip.prompt, result.clip.sampling) == (PROMPT, replace(SHORT, cfg=3.0, top_p=0.0))
    assert result.clip.sampling == ours.sampling
    assert (result.clip.model, result.clip.model_hash) == (ours.model, ours.model_hash)
    assert result.clip.timing.steps == ours.timing.steps
    again = worker.generate(PROMPT, SHORT)
    np.testing.assert_array_equal(again.clip.audio, result.clip.audio)


def test_it_says_what_it_loaded(worker, tiny_family):
    assert worker.loaded.disk_bytes == tm.load(tiny_family / "student").disk_bytes
    assert worker.loaded.threads == 1
    assert worker.loaded.device == "cpu"
    assert worker.start() is worker.loaded


def test_peak_memory_leaves_out_what_every_process_needs(worker):
    peak = worker.generate(PROMPT, SHORT).peak_memory_bytes
    assert 0 < peak < 150e6  # the model has 0.2 MB; torch alone would be several hundred


def test_progress_names_every_stage_in_order(worker):
    seen = []
    worker.generate(PROMPT, SHORT, seen.append)
    assert list(dict.fromkeys(progress.stage for progress in seen)) == ["text", "lm", "codec"]
    steps = [progress.done for progress in seen if progress.stage == "lm"]
    assert steps == sorted(steps)
    assert steps[-1] == next(progress.total for progress in seen if progress.stage == "lm")


def test_loading_reports_progress(tiny_family):
    seen = []
    with Worker(str(tiny_family / "student")) as worker:
        worker.start(seen.append)
    assert [(progress.stage, progress.done) for progress in seen] == [("loading", 0), ("loading", 1)]


def test_a_growing_file_gives_back_every_part_of_a_sound(tmp_path):
    sound = np.random.default_rng(0).random((2, 1000), dtype=np.float32)
    for start, stop in ((0, 10), (10, 10), (10, 999), (999, 1000)):
        growing.append(tmp_path / "s", sound[:, start:stop])
        np.testing.assert_array_equal(growing.read(tmp_path / "s", 2, start, stop), sound[:, start:stop])
    np.testing.assert_array_equal(growing.read(tmp_path / "s", 2), sound)
    np.testing.assert_array_equal(growing.read(tmp_path / "s", 2, 500), sound[:, 500:])


def test_sound_is_heard_while_the_rest_is_made(worker):
    chunks, shares, done = [], [], 0.0

    def count(progress):
        nonlocal done
        done = progress.done / progress.total if progress.stage == "lm" else done

    def listen(chunk, rate):
        chunks.append((chunk, rate))
        shares.append(done)

    clip = worker.generate(PROMPT, SamplingSpec(seconds=5, seed=3), count, on_audio=listen).clip
    assert len(chunks) >= 5
    assert shares[0] < 0.25  # the first sound came in the first second of five
    assert done == 1
    assert {rate for _, rate in chunks} == {clip.sample_rate_hz}
    assert all(chunk.dtype == np.float32 and chunk.shape[1] > 0 for chunk, _ in chunks)
    np.testing.assert_array_equal(np.concatenate([chunk for chunk, _ in chunks], axis=1), clip.audio)
    assert files_of(worker) == {"stderr"}


def test_a_stereo_model_is_heard_in_stereo(tmp_path):
    folder, chunks = save_tiny_musicgen(tmp_path / "stereo", channels=2), []
    with Worker(str(folder), threads=1) as worker:
        clip = worker.generate(PROMPT, SHORT, on_audio=lambda chunk, _: chunks.append(chunk)).clip
    ours = tm.generate(tm.load(folder), PROMPT, seconds=1, seed=3)
    assert clip.audio.shape == (2, 32000)
    np.testing.assert_allclose(clip.audio, ours.audio, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate(chunks, axis=1), clip.audio)


def test_ten_minutes_take_no_more_memory_than_one(worker):
    """The tiny model's peak with its sound: 600 s of it are 77 MB."""
    minute = worker.generate(PROMPT, SamplingSpec(seconds=60, cfg=1)).peak_memory_bytes
    result = worker.generate(PROMPT, SamplingSpec(seconds=600, cfg=1))
    assert result.clip.audio.shape == (1, 600 * 32000)
    assert result.peak_memory_bytes - minute < 8e6
    assert files_of(worker) == {"stderr"}


def test_stop_keeps_what_was_made_and_the_worker_goes_on(worker):
    stop, listen = after(seconds=1)
    whole = worker.generate(PROMPT, SamplingSpec(seconds=4, seed=3)).clip
    pid = worker.pid
    with pytest.raises(Stopped, match=r"stopped after \d+\.\d of 600 seconds") as caught:
        worker.generate(PROMPT, SamplingSpec(seconds=600, seed=3), None, stop.is_set, listen)
    result, clip = caught.value.result, caught.value.clip
    assert clip is result.clip
    assert 1 <= clip.seconds < 60
    assert clip.seconds == pytest.approx(result.made_s)
    assert clip.sampling.seconds == 600
    frames = min(clip.codes.shape[1], whole.codes.shape[1])
    np.testing.assert_array_equal(clip.codes[:, :frames], whole.codes[:, :frames])
    assert 0 < result.peak_memory_bytes < 150e6
    assert clip.timing.steps >= clip.codes.shape[1]
    assert files_of(worker) == {"stderr"}
    assert worker.generate(PROMPT, SHORT).clip.seconds == pytest.approx(1, abs=0.05)
    assert worker.pid == pid


def test_stop_before_any_music_keeps_nothing(worker):
    with pytest.raises(Cancelled) as caught:
        worker.generate(PROMPT, LONG, should_stop=lambda: True)
    assert not isinstance(caught.value, Stopped)
    assert caught.value.clip is None
    worker.generate(PROMPT, SHORT)
    assert files_of(worker) == {"stderr"}


def test_music_goes_on_from_a_file(tiny_musicgen, tmp_path):
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(2 * 44100) / 44100)
    path = audio.write_wav(tmp_path / "tone.wav", Waveform(np.stack([tone, tone]), 44100))
    ours = tm.generate(tm.load(tiny_musicgen), PROMPT, seconds=1, seed=3, continue_from=audio.read(path))
    heard = []
    with Worker(str(tiny_musicgen), threads=1) as worker:
        result = worker.generate(PROMPT, SHORT, on_audio=lambda chunk, _: heard.append(chunk), continue_from=path)
        stop, listen = after(seconds=3)
        with pytest.raises(Stopped) as caught:
            worker.generate(PROMPT, LONG, None, stop.is_set, listen, path)
    assert result.clip.seconds == pytest.approx(3, abs=0.03)
    assert result.made_s == pytest.approx(1)
    np.testing.assert_allclose(result.clip.audio, ours.audio, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate(heard, axis=1), result.clip.audio)
    assert caught.value.clip.seconds == pytest.approx(2 + caught.value.result.made_s, abs=0.03)


def test_a_file_that_music_cannot_go_on_from_is_one_sentence_and_the_worker_goes_on(worker, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    for name in ("bad.wav", "none.wav"):
        with pytest.raises(ValueError, match=name):
            worker.generate(PROMPT, SHORT, continue_from=tmp_path / name)
    short = audio.write_wav(tmp_path / "short.wav", Waveform(np.zeros((1, 800)), 8000))
    with pytest.raises(ValueError, match="must last 0.5 s or more, got 0.1 s"):
        worker.generate(PROMPT, SHORT, continue_from=str(short))
    assert worker.generate(PROMPT, SHORT).clip.seconds == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("listens", ["on_progress", "on_audio"])
def test_an_error_of_the_listener_stops_the_run_and_the_worker_goes_on(worker, listens):
    def fail(what, *_):
        if listens == "on_audio" or what.stage == "lm":
            raise KeyError("listener")

    with pytest.raises(KeyError):
        worker.generate(PROMPT, LONG, **{listens: fail})
    seen = []
    worker.generate(PROMPT, SHORT, seen.append)
    assert max(progress.total for progress in seen) < 100
    assert files_of(worker) == {"stderr"}


def test_what_nobody_waits_for_any_more_is_removed(worker):
    worker.generate(PROMPT, SHORT)
    with pytest.raises(KeyError):
        worker.generate(PROMPT, LONG, on_audio=lambda *_: {}["listener"])
    deadline = time.monotonic() + 10
    while files_of(worker) != {"stderr"} and time.monotonic() < deadline:
        time.sleep(0.02)
    assert files_of(worker) == {"stderr"}


def test_loading_can_be_cancelled(tiny_family):
    worker = Worker(str(tiny_family / "student"))
    with pytest.raises(Cancelled):
        worker.start(should_stop=lambda: True)
    assert worker.pid is None


@pytest.mark.parametrize("prompt", ["🎹🎸🥁", "?! ...", "qwerty asdf"])
def test_a_prompt_without_a_known_word_is_refused(worker, prompt):
    with pytest.raises(ValueError, match="has no word that this model knows"):
        worker.generate(prompt, SHORT)
    assert worker.generate(f"{prompt} piano", SHORT).clip.prompt == f"{prompt} piano"


def test_a_killed_process_is_one_sentence_and_the_next_run_works(tiny_family):
    with Worker(str(tiny_family / "student")) as worker:
        worker.start()
        child, folder = psutil.Process(worker.pid), worker._folder
        with pytest.raises(WorkerDied, match="was killed by SIGKILL") as caught:
            worker.generate(PROMPT, LONG, on_audio=lambda *_: child.kill())
        assert "\n" not in str(caught.value)
        assert worker.pid is None
        assert not folder.exists()
        assert worker.generate(PROMPT, SHORT).clip.seconds == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [("flute-o-matic", ValueError, "no such model: got 'flute-o-matic'"), ("quantized", ModelError, "quantized")],
)
def test_a_model_that_is_not_there_raises_the_sentence_of_the_loader(demo_family, model, error, says):
    worker = Worker(model)
    with pytest.raises(error, match=says):
        worker.start()
    assert worker.pid is None


def test_a_process_that_breaks_down_tells_its_last_line(tiny_family, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemError('no torch today')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(WorkerDied, match=r"exit code 1 \(SystemError: no torch today\)"):
        Worker(str(tiny_family / "student")).start()


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "two"])
def test_threads_must_be_a_whole_number(threads):
    with pytest.raises(ValueError, match="threads must be"):
        Worker("student", threads)


def test_closing_ends_the_process_and_removes_its_files(tiny_family):
    worker = Worker(str(tiny_family / "student"))
    worker.start()
    child, folder = psutil.Process(worker.pid), worker._folder
    worker.generate(PROMPT, SHORT)
    worker.close()
    assert ends(child)
    assert not folder.exists()
    worker.close()


def test_closing_from_another_thread_ends_a_run_and_removes_its_files(tiny_family):
    worker = Worker(str(tiny_family / "student"))
    worker.start()
    folder = worker._folder
    with pytest.raises(WorkerDied, match="was closed"):
        worker.generate(PROMPT, LONG, on_audio=lambda *_: worker.close())
    assert not folder.exists()


def test_ctrl_c_in_a_terminal_does_not_reach_the_process(worker):
    assert os.getpgid(worker.pid) != os.getpgid(0)


def test_the_process_does_not_outlive_its_parent(tiny_family):
    script = (
        "import sys, time; from tinymusician_core.worker import Worker\n"
        f"worker = Worker({str(tiny_family / 'student')!r}); worker.start()\n"
        "print(worker.pid, worker._folder, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with parent:
        pid, folder = parent.stdout.readline().split()
        child = psutil.Process(int(pid))
        os.kill(parent.pid, signal.SIGKILL)
    assert ends(child)
    assert not os.path.exists(folder)


def test_what_libraries_print_does_not_disturb_the_answers(tmp_path):
    noisy = subprocess.run(
        [sys.executable, "-c", "import os, sys, tinymusician_core.worker_process as w\n"
         "w.Process.run = lambda self: (os.write(1, b'noise'), print('noise'))\nw.main()", str(tmp_path)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
    )  # fmt: skip
    assert noisy.returncode == 0
    assert noisy.stdout == b""
    assert noisy.stderr.count(b"noise") == 2
