"""One variant in a process of its own, so that a crash or a kill loses nothing and its memory comes back whole.

The two processes speak in lines of JSON over the child's standard input and output. To the child go load, generate and
cancel, from it come progress, audio, loaded, clip and error, each with the id of the order that it belongs to (the
child's side is worker_process.py). Sound travels in a file that the child appends to while it generates (growing.py);
audio says how far it is. The child ends when its input does: it never outlives us.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import growing
from .records import Cancelled, Clip, ModelError, Progress, SamplingSpec, Timing, check_prompt

POLL_S = 0.05
DEVICES = ("cpu", "cuda")
CLOSE_S = 2.0
ERRORS = {"ValueError": ValueError, "ModelError": ModelError, "Cancelled": Cancelled}

SOUND, CODES = "sound.f32", "codes.npy"

OnProgress = Callable[[Progress], None]
OnAudio = Callable[[np.ndarray, int], None]
ShouldStop = Callable[[], bool]


class WorkerDied(RuntimeError):
    """The process of a variant ended without being asked to; the message is one sentence. The next start works."""


@dataclass(frozen=True)
class Loaded:
    """What a worker says of the variant that it has loaded.

    Attributes:
        weights_bytes: the weights that it holds in memory; step_bytes: those that every step reads.
        load_peak_bytes: the most memory that loading took above the idle process; None where not measurable.
    """

    name: str
    hash: str
    disk_bytes: int
    weights_bytes: int
    step_bytes: int
    device: str
    threads: int
    load_s: float
    load_peak_bytes: int | None


@dataclass(frozen=True)
class Result:
    """A clip, how many seconds of it were made, the rest being the sound that it goes on from, and the peak memory.

    `peak_memory_bytes` is that of this run, above the idle process (nothing loaded); None where not measurable.
    """

    clip: Clip
    made_s: float
    peak_memory_bytes: int | None


class Stopped(Cancelled):
    """A generation ended because its caller said so, and something was made by then: `result`, with a shorter clip."""

    def __init__(self, message: str, result: Result):
        super().__init__(message, result.clip)
        self.result = result


class Worker:
    """A variant in a process of its own.

        with Worker("student") as worker:
            clip = worker.generate("a calm piano waltz", SamplingSpec(seconds=8, seed=7)).clip

    Args:
        model: what `tinymusician_core.load` takes.
        threads: CPU threads of the process; None leaves the choice to torch.
        device: "cpu" or "cuda".
    """

    def __init__(self, model: str, threads: int | None = None, device: str = "cpu"):
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads must be a whole number of 1 or more, or None, got {threads!r}")
        if device not in DEVICES:
            raise ValueError(f"device must be {' or '.join(DEVICES)}, got {device!r}")
        self.model = str(model)
        self.device = device
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
                answer = self._ask({"do": "load", "model": self.model, "device": self.device}, on_progress, should_stop)
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
        on_audio: OnAudio | None = None,
        continue_from: str | os.PathLike | None = None,
    ) -> Result:
        """Generate a clip; starts the process first where there is none.

        Args:
            prompt: what to play.
            spec: how to draw, and how long.
            on_progress: told of the steps.
            should_stop: asked all the time; heeded within one step, and the worker stays usable.
            on_audio: given every chunk, float32 [C,n] in -1..1, and its rate in Hz while the rest is still being made;
                together they are the clip's sound.
            continue_from: a sound file that the music goes on from; the clip begins with it.

        Raises:
            ValueError: a prompt that is not allowed, or a file without sound that can be read.
            Stopped: `should_stop` said so after the first sound; it has what was made.
            Cancelled: `should_stop` said so before.
            WorkerDied: the process ended; the next call starts another.
        """
        prompt = check_prompt(prompt)
        given = None if continue_from is None else str(Path(continue_from).expanduser().absolute())
        with self._busy:
            self.start(on_progress, should_stop)
            order = {"do": "generate", "prompt": prompt, "spec": spec.as_dict(), "continue_from": given}
            try:
                answer = self._ask(order, on_progress, should_stop, self._passing_on(on_audio))
                return self._take_result(answer["clip"])
            except WorkerDied:
                self.close()
                raise

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
        command = [sys.executable, "-m", "tinymusician_core.worker_process", str(self._folder)]
        with open(self._folder / "stderr", "wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=child_environment(self.threads),
                start_new_session=True,  # Ctrl-C in a terminal is for us: we ask the child to stop
            )
        self._answers: queue.Queue = queue.Queue()
        self._reader = threading.Thread(target=read_lines, args=(self._process.stdout, self._answers.put), daemon=True)
        self._reader.start()

    def _ask(
        self,
        order: dict,
        on_progress: OnProgress | None,
        should_stop: ShouldStop | None,
        on_audio: Callable[[dict], None] | None = None,
    ) -> dict:
        """Send an order, pass on its progress and sound, and return its answer or raise its error."""
        if should_stop is not None and should_stop():
            raise Cancelled("stopped before it began")
        self._order += 1
        self._send(order)
        answered = stopped = False
        try:
            while True:
                if not stopped and should_stop is not None and should_stop():
                    stopped = True
                    self._send({"do": "cancel", "keep": True})
                answer = self._next_answer()
                if "progress" in answer:
                    if on_progress is not None:
                        on_progress(Progress(**answer["progress"]))
                elif "audio" in answer:
                    if on_audio is not None:
                        on_audio(answer["audio"])
                elif answer:
                    answered = True
                    if "error" in answer:
                        raise ERRORS[answer["error"]](answer["message"])
                    return answer
        finally:
            if not answered:
                self._send({"do": "cancel", "keep": False})

    def _passing_on(self, on_audio: OnAudio | None) -> Callable[[dict], None] | None:
        """What reads each chunk that the child tells of, and passes it on."""
        if on_audio is None:
            return None
        passed = 0

        def pass_on(so_far: dict) -> None:
            nonlocal passed
            with self._files():
                chunk = growing.read(self._folder / SOUND, so_far["channels"], passed, so_far["samples"])
            passed = so_far["samples"]
            on_audio(chunk, so_far["sample_rate_hz"])

        return pass_on

    def _take_result(self, answer: dict) -> Result:
        """The clip that the child has left in its files, which are removed; raises where it was stopped."""
        sound, codes = self._folder / SOUND, self._folder / CODES
        with self._files():
            answer |= {"audio": growing.read(sound, answer.pop("channels")), "codes": np.load(codes)}
            sound.unlink()
            codes.unlink()
        stopped, made = answer.pop("stopped"), {name: answer.pop(name) for name in ("made_s", "peak_memory_bytes")}
        timing, sampling = Timing(**answer.pop("timing")), SamplingSpec(**answer.pop("sampling"))
        result = Result(Clip(**answer, timing=timing, sampling=sampling), **made)
        if stopped:
            raise Stopped(f"stopped after {result.made_s:.1f} of {sampling.seconds:g} seconds", result)
        return result

    @contextlib.contextmanager
    def _files(self) -> Iterator[None]:
        """Around reading the child's files: they are gone once another thread has closed the worker."""
        try:
            yield
        except FileNotFoundError:
            if self._process is not None:
                raise
            raise WorkerDied(self._last_words()) from None

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


def child_environment(threads: int | None) -> dict[str, str]:
    """The environment of a process that computes, with `threads` CPU threads; None leaves their number to torch."""
    paths = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
    # Threads that spin while they wait make every step up to a hundred times slower once another program is busy.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


def read_lines(stream, put: Callable[[dict | None], None]) -> None:
    """Put every line of JSON; None after the last."""
    for line in stream:
        put(json.loads(line))
    put(None)
