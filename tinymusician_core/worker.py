"""One variant in a process of its own, so that a crash or a kill loses nothing and its memory comes back whole.

The two processes speak in lines of JSON over the child's standard input and output; a clip's arrays travel in a file.
To the child go load, generate and cancel, from it come progress, loaded, clip and error, each with the id of the order
that it belongs to (the child's side is worker_process.py). The child ends when its input does: it never outlives us.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file

from .records import Cancelled, Clip, ModelError, Progress, SamplingSpec, Timing, check_prompt

POLL_S = 0.05
CLOSE_S = 2.0
ERRORS = {"ValueError": ValueError, "ModelError": ModelError, "Cancelled": Cancelled}

OnProgress = Callable[[Progress], None]
ShouldStop = Callable[[], bool]


class WorkerDied(RuntimeError):
    """The process of a variant ended without being asked to; the message is one sentence. The next start works."""


@dataclass(frozen=True)
class Loaded:
    """What a worker says of the variant that it has loaded."""

    name: str
    hash: str
    disk_bytes: int
    device: str
    threads: int
    load_s: float


@dataclass(frozen=True)
class Result:
    """A clip, and the peak memory of its process above the idle one (nothing loaded); None where not measurable."""

    clip: Clip
    peak_memory_bytes: int | None


class Worker:
    """A variant in a process of its own.

        with Worker("student") as worker:
            clip = worker.generate("a calm piano waltz", SamplingSpec(seconds=8, seed=7)).clip

    Args:
        model: what `tinymusician_core.load` takes.
        threads: CPU threads of the process; None leaves the choice to torch.
    """

    def __init__(self, model: str, threads: int | None = None):
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads must be a whole number of 1 or more, or None, got {threads!r}")
        self.model = str(model)
        self.threads = threads
        self.loaded: Loaded | None = None
        self._process: subprocess.Popen | None = None
        self._order = 0
        self._busy = threading.RLock()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process id while there is a process."""
        return None if self._process is None else self._process.pid

    def start(self, on_progress: OnProgress | None = None, should_stop: ShouldStop | None = None) -> Loaded:
        """Start the process and load the variant; a worker that has done so stays as it is.

        Raises:
            ValueError, ModelError: the child's own sentence about the model.
            Cancelled: `should_stop` said so.
            WorkerDied: the process ended.
        """
        with self._busy:
            if self.loaded is not None and self._process.poll() is None:
                return self.loaded
            self.close()
            self._spawn()
            try:
                answer = self._ask({"do": "load", "model": self.model}, on_progress, should_stop)
            except BaseException:
                self.close()
                raise
            self.loaded = Loaded(**answer["loaded"])
            return self.loaded

    def generate(
        self,
        prompt: str,
        spec: SamplingSpec,
        on_progress: OnProgress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Result:
        """Generate a clip; starts the process first where there is none.

        Raises:
            ValueError: a prompt that is not allowed.
            Cancelled: `should_stop` said so; heeded within one step, and the worker stays usable.
            WorkerDied: the process ended; the next call starts another.
        """
        prompt = check_prompt(prompt)
        with self._busy:
            self.start(on_progress, should_stop)
            order = {"do": "generate", "prompt": prompt, "spec": spec.as_dict()}
            try:
                answer = self._ask(order, on_progress, should_stop)
            except WorkerDied:
                self.close()
                raise
            return _read_result(answer["clip"])

    def close(self) -> None:
        """End the process; its memory comes back. Closing twice is fine."""
        process, self._process, self.loaded = self._process, None, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join()
        process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _spawn(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tinymusician-"))
        paths = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
        # Threads that spin while they wait make every step up to a hundred times slower once another program is busy.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        command = [sys.executable, "-m", "tinymusician_core.worker_process", str(self._folder)]
        with open(self._folder / "stderr", "wb") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment
            )
        self._answers: queue.Queue = queue.Queue()
        self._reader = threading.Thread(target=read_lines, args=(self._process.stdout, self._answers.put), daemon=True)
        self._reader.start()

    def _ask(self, order: dict, on_progress: OnProgress | None, should_stop: ShouldStop | None) -> dict:
        """Send an order, pass on its progress, and return its answer or raise its error."""
        self._order += 1
        self._send(order)
        answered = stopped = False
        try:
            while True:
                if not stopped and should_stop is not None and should_stop():
                    stopped = True
                    self._send({"do": "cancel"})
                answer = self._next_answer()
                if "progress" in answer:
                    if on_progress is not None:
                        on_progress(Progress(**answer["progress"]))
                elif answer:
                    answered = True
                    if "error" in answer:
                        raise ERRORS[answer["error"]](answer["message"])
                    return answer
        finally:
            if not answered:
                self._send({"do": "cancel"})

    def _next_answer(self) -> dict:
        """The next line of the child about the present order; {} when none came within `POLL_S`."""
        try:
            answer = self._answers.get(timeout=POLL_S)
        except queue.Empty:
            return {}
        if answer is None:
            raise WorkerDied(self._last_words())
        return answer if answer["id"] == self._order else {}

    def _last_words(self) -> str:
        process = self._process
        if process is None:
            return f"the process of {self.model} was closed"
        code = process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            return f"the process of {self.model} was killed by {name}; if memory ran out, ask for fewer seconds"
        lines = (self._folder / "stderr").read_text("utf-8", "replace").split("\n")
        reason = next((line.strip() for line in reversed(lines) if line.strip()), "no reason given")
        return f"the process of {self.model} ended by itself with exit code {code} ({reason})"

    def _send(self, order: dict) -> None:
        """Hand an order to the child; that a child is gone shows when its answer is awaited."""
        process = self._process
        if process is not None:
            with contextlib.suppress(OSError, ValueError):
                process.stdin.write(json.dumps({**order, "id": self._order}).encode() + b"\n")
                process.stdin.flush()


def read_lines(stream, put: Callable[[dict | None], None]) -> None:
    """Put every line of JSON; None after the last."""
    for line in stream:
        put(json.loads(line))
    put(None)


def _read_result(answer: dict) -> Result:
    path = Path(answer.pop("path"))
    peak = answer.pop("peak_memory_bytes")
    arrays = load_file(path)
    path.unlink()
    timing, sampling = Timing(**answer.pop("timing")), SamplingSpec(**answer.pop("sampling"))
    return Result(Clip(**arrays, **answer, timing=timing, sampling=sampling), peak)
