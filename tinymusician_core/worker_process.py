"""The process of one variant: `worker.py` starts it, gives it orders on standard input and reads its answers.

Standard output carries answers and nothing else: whatever a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from . import audio, growing
from .records import Cancelled, ModelError, Progress, SamplingSpec
from .worker import CODES, ERRORS, SOUND, Loaded, read_lines

REPORT_EVERY_S = 0.03


class Process:
    """Takes orders from one stream, answers on another, and leaves sound and codes in `folder`."""

    def __init__(self, orders, answers, folder: Path):
        self._orders, self._answers, self._folder = orders, answers, folder
        self._waiting: queue.Queue = queue.Queue()
        self._writing = threading.Lock()
        self._cancelled = self._unwanted = 0
        self._pipeline = None

    def run(self) -> None:
        """Carry out orders until the input ends."""
        threading.Thread(target=read_lines, args=(self._orders, self._take), daemon=True).start()
        import_everything()
        touch_kernels()
        from .measure.memory import PeakMemory

        self._memory = PeakMemory()
        actions = {"load": self._load, "generate": self._generate}
        while True:
            order = self._waiting.get()
            try:
                self._say(order, **actions[order["do"]](order))
            except tuple(ERRORS.values()) as error:
                kind = next(name for name, known in ERRORS.items() if isinstance(error, known))
                self._say(order, error=kind, message=str(error))

    def _take(self, order: dict | None) -> None:
        """An order came in: a cancel counts at once, and the end of the input ends this process."""
        if order is None:
            self._leave()
        if order["do"] == "load":
            self._say(order, progress=asdict(Progress("loading", 0, 1, 0.0)))
        if order["do"] != "cancel":
            self._waiting.put(order)
            return
        self._cancelled = order["id"]
        if not order["keep"]:
            self._unwanted = order["id"]
        if self._pipeline is None:
            self._say(order, error="Cancelled", message="stopped while the model was loading")

    def _leave(self) -> None:
        """End this process, whose parent is gone, and leave nothing behind."""
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(0)

    def _say(self, order: dict, **answer) -> None:
        try:
            with self._writing:
                self._answers.write(json.dumps({**answer, "id": order["id"]}).encode() + b"\n")
                self._answers.flush()
        except OSError:
            self._leave()

    def _load(self, order: dict) -> dict:
        import torch

        from .measure.weights import held_bytes, step_bytes
        from .variants import load

        if order["device"] == "cuda":
            self._count_gpu_memory()
        start = time.perf_counter()
        pipeline = load(order["model"], order["device"])
        load_s, load_peak = time.perf_counter() - start, self._memory.peak_bytes()
        self._pipeline = pipeline
        self._say(order, progress=asdict(Progress("loading", 1, 1, load_s)))
        read_bytes = step_bytes(pipeline.decoder)  # makes the forms that steps read, so that they are counted below
        loaded = Loaded(
            name=pipeline.name,
            hash=pipeline.hash,
            disk_bytes=pipeline.disk_bytes,
            weights_bytes=held_bytes([pipeline.modules]),
            step_bytes=read_bytes,
            device=str(pipeline.device),
            threads=torch.get_num_threads(),
            load_s=load_s,
            load_peak_bytes=load_peak,
        )
        self._memory.trim()
        return {"loaded": asdict(loaded)}

    def _count_gpu_memory(self) -> None:
        import torch

        from .measure.memory import DeviceMemory

        if not torch.cuda.is_available():
            raise ValueError("device must be cpu, since torch finds no GPU on this machine, got 'cuda'")
        self._memory = DeviceMemory("cuda")

    def _generate(self, order: dict) -> dict:
        if self._pipeline is None:
            raise ModelError("no model is loaded; load one before generating")
        given = order["continue_from"]
        spec = self._pipeline.settled(SamplingSpec(**order["spec"]))
        self._memory.restart()
        stream = self._pipeline.stream(
            order["prompt"],
            spec,
            on_progress=self._reporter(order),
            should_stop=lambda: self._cancelled >= order["id"],
            continue_from=None if given is None else audio.read(given),
        )
        self._remove_files()
        channels = self._hand_over(order, stream)
        if not stream.codes.shape[1] or self._unwanted >= order["id"]:
            self._remove_files()
            raise Cancelled("stopped before any music was made")
        np.save(self._folder / CODES, stream.codes)
        return {"clip": self._describe(order["prompt"], spec, stream, channels)}

    def _hand_over(self, order: dict, stream) -> int:
        """Append each chunk to the file of the sound and say so; returns how many channels they have."""
        samples = channels = 0
        for chunk in stream:
            growing.append(self._folder / SOUND, chunk)
            channels, samples = chunk.shape[0], samples + chunk.shape[1]
            so_far = {"samples": samples, "channels": channels, "sample_rate_hz": self._pipeline.sample_rate_hz}
            self._say(order, audio=so_far)
        return channels

    def _remove_files(self) -> None:
        for name in (SOUND, CODES):
            (self._folder / name).unlink(missing_ok=True)

    def _reporter(self, order: dict) -> Callable[[Progress], None]:
        """Sends on the first, the last and now and then a step between of every stage."""
        last = {"stage": None, "at": 0.0}

        def report(progress: Progress) -> None:
            now = time.monotonic()
            if progress.stage != last["stage"] or progress.done == progress.total or now - last["at"] >= REPORT_EVERY_S:
                last.update(stage=progress.stage, at=now)
                self._say(order, progress=asdict(progress))

        return report

    def _describe(self, prompt: str, spec: SamplingSpec, stream, channels: int) -> dict:
        """What a clip is beside its sound and its codes."""
        return {
            "channels": channels,
            "stopped": stream.stopped,
            "made_s": stream.codes.shape[1] / self._pipeline.frame_rate_hz,
            "peak_memory_bytes": self._memory.peak_bytes(),
            "sample_rate_hz": self._pipeline.sample_rate_hz,
            "timing": asdict(stream.timing),
            "prompt": prompt,
            "sampling": spec.as_dict(),
            "model": self._pipeline.name,
            "model_hash": self._pipeline.hash,
        }


def import_everything() -> None:
    """Import what any variant may need, so that none of it counts as a model's memory."""
    from transformers import MusicgenForConditionalGeneration, PreTrainedTokenizerFast, T5EncoderModel  # noqa: F401

    from . import variants  # noqa: F401
    from .codec import encodec, spectral  # noqa: F401
    from .quant import apply, loading  # noqa: F401


def touch_kernels() -> None:
    """Run each kind of kernel once on next to nothing, so that library code paged in is no model's memory either."""
    import torch
    from torch.nn import functional

    from .quant.schemes import pack

    with torch.inference_mode():
        rows, window = torch.ones(2, 1, 64), torch.ones(640)
        linear = torch.nn.Linear(64, 64)
        for scheme in ("fp32", "int8", "int8-weight", "bf16"):
            product = pack(linear, scheme)(rows).unsqueeze(1)
        functional.scaled_dot_product_attention(product, product, product)
        functional.gelu(functional.layer_norm(rows, (64,)))
        torch.multinomial(torch.softmax(rows[:, 0], -1), 1, generator=torch.Generator())
        torch.topk(rows, 4)
        functional.conv1d(torch.ones(1, 8, 32), torch.ones(8, 1, 7), groups=8)
        spectrum = torch.stft(torch.ones(1, 4000), 640, 160, window=window, return_complex=True)
        torch.istft(spectrum, 640, 160, window=window)
        for heads in (1, 2):
            for scheme in ("fp32", "int8"):
                step_once(heads, scheme)


def step_once(heads: int, scheme: str) -> None:
    """One step of a tiny decoder with heads of 64 / `heads`: what a step compiles is read, or made the first time.

    A cache beside packed weights is of another type, with kernels of its own.
    """
    import torch

    from .engine.decoder import Decoder, DecoderConfig
    from .quant.schemes import pack

    decoder = Decoder(DecoderConfig(width=64, layers=1, heads=heads, ffn=64, codebooks=1, entries=8, pad=8)).eval()
    decoder.layers[0].qkv = pack(torch.nn.Linear(64, 192), scheme)
    cache = decoder.prepare(torch.ones(2, 1, 64), torch.ones(2, 1), 4)
    decoder.step(torch.zeros(2, 1, dtype=torch.long), cache)


def main() -> None:
    """Set the streams apart and serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    Process(orders, answers, Path(sys.argv[1])).run()


if __name__ == "__main__":
    main()
