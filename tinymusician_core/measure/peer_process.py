"""The process of one row of `peers`: takes its order as JSON on the command line, and answers in lines of JSON.

Standard output carries answers and nothing else: whatever a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from ..worker_process import import_everything, touch_kernels
from .bandwidth import cache_bytes, read_bandwidth
from .bench import WARM_UP_S
from .memory import PeakMemory
from .peers import SHAPES

REPORT_EVERY_S = 0.2
Tell = Callable[[str, int, int | None], None]


def measure_row(order: dict, tell: Tell) -> dict:
    """Make a row's model, warm it up, and measure it.

    What counts as memory is the highest resident set while it plays, above this process with its libraries in place
    and no model. How the model came to be counts for nothing: that is over, and its memory given back, by then.
    """
    import torch

    from .peer_models import Ours, Transformers, make_musicgen, steps_in

    row, seed = order["row"], order["seed"]
    engines = {"ours": Ours, "transformers": Transformers}
    if row["engine"] == "audiocraft":
        try:
            from .peer_audiocraft import AudioCraft
        except ImportError as error:
            return {"skipped": f"AudioCraft cannot be imported: {error}"}
        engines["audiocraft"] = AudioCraft
    import_everything()
    touch_kernels()
    memory = PeakMemory()
    tell("building", 0, None)
    peer = engines[row["engine"]](make_musicgen(SHAPES[order["shape"]], order["layers"], seed), row["scheme"])
    memory.forget_peak()

    def play(stage: str, seconds: float):
        steps = steps_in(seconds)
        return peer.play(seconds, seed, lambda step: tell(stage, min(step, steps), steps))

    play("warming up", min(WARM_UP_S, order["seconds"]))
    played = [play(f"composing {run + 1} of {order['runs']}", order["seconds"]) for run in range(order["runs"])]
    peak = memory.peak_bytes()
    tell("comparing tokens", 0, None)
    return {
        "timings": [asdict(timing) for timing, _ in played],
        "audio_s": played[-1][1],
        "peak_memory_bytes": peak,
        "step_bytes": peer.step_bytes,
        "threads": torch.get_num_threads(),
        "tokens": peer.greedy(order["frames"]).tolist() if row["scheme"] == "fp32" else None,
    }


def measure_machine() -> dict:
    """The bandwidth of the memory, the largest cache, and what machine and programs these are."""
    import torch

    versions = {}
    for name in ("torch", "transformers", "audiocraft"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    machine = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    return {"bandwidth": read_bandwidth(), "cache_bytes": cache_bytes(), "machine": machine}


def cpu_name() -> str:
    """What the processor calls itself, where the system tells; otherwise its kind, such as arm64."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Set the streams apart, carry out the order, and answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    told = {"stage": "", "at": 0.0}

    def say(answer: dict) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    def tell(stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if stage != told["stage"] or now - told["at"] >= REPORT_EVERY_S:
            told.update(stage=stage, at=now)
            say({"stage": stage, "done": done, "total": total})

    order = json.loads(sys.argv[1])
    say({"found": measure_row(order, tell) if order else measure_machine()})


if __name__ == "__main__":
    main()
