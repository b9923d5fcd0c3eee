"""A variant in a process of its own: the same clip as in ours, cancelled, killed, orphaned, and given bad input."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

import tinymusician_core as tm
from tinymusician_core.records import Cancelled, ModelError, SamplingSpec
from tinymusician_core.worker import Worker, WorkerDied

PROMPT = "a calm piano waltz"
SHORT = SamplingSpec(seconds=1, seed=3)
LONG = SamplingSpec(seconds=30, seed=3)


@pytest.fixture(scope="module")
def worker(tiny_family):
    """One worker for the tests that leave it usable, on the tiny student."""
    with Worker(str(tiny_family / "student"), threads=1) as worker:
        worker.start()
        yield worker


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
    assert (result.clip.prompt, result.clip.sampling) == (PROMPT, SHORT)
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


def test_cancel_comes_within_a_step_and_the_worker_goes_on(worker):
    stop = threading.Event()

    def watch(progress):
        if progress.stage == "lm" and progress.done >= 10:
            stop.set()

    pid = worker.pid
    with pytest.raises(Cancelled):
        worker.generate(PROMPT, LONG, watch, stop.is_set)
    assert worker.generate(PROMPT, SHORT).clip.seconds == pytest.approx(1, abs=0.05)
    assert worker.pid == pid


def test_an_error_of_the_listener_stops_the_run_and_the_worker_goes_on(worker):
    def fail(progress):
        if progress.stage == "lm":
            raise KeyError("listener")

    with pytest.raises(KeyError):
        worker.generate(PROMPT, LONG, fail)
    seen = []
    worker.generate(PROMPT, SHORT, seen.append)
    assert max(progress.total for progress in seen) < 100


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
        child = psutil.Process(worker.pid)

        def kill(progress):
            if progress.stage == "lm" and progress.done > 3:
                child.kill()

        with pytest.raises(WorkerDied, match="was killed by SIGKILL") as caught:
            worker.generate(PROMPT, LONG, kill)
        assert "\n" not in str(caught.value)
        assert worker.pid is None
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
