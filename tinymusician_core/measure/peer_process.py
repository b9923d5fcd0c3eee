"""The process of one row of `peers`: takes its order as JSON on the command line, and answers in lines of JSON.

Standard output carries answers and nothing else: whatever a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

from ..worker_process import import_everything, touch_kernels
from .bandwidth import cache_bytes, read_bandwidth
from .bench import WARM_UP_S
from .machine import describe
from .memory import PeakMemory
from .peers import SHAPES
from .timing import Run

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
    memory.trim()

    def play(stage: str, seconds: float) -> Run:
        steps = steps_in(seconds)
        memory.restart()
        timing, made_s = peer.play(seconds, seed, lambda step: tell(stage, min(step, steps), steps))
        return Run(timing, made_s, memory.peak_bytes())

    play("warming up", min(WARM_UP_S, order["seconds"]))
    runs = [play(f"composing {run + 1} of {order['runs']}", order["seconds"]) for run in range(order["runs"])]
    tell("comparing tokens", 0, None)
    return {
        "runs": [asdict(run) for run in runs],
        "step_bytes": peer.step_bytes,
        "threads": torch.get_num_threads(),
        "tokens": peer.greedy(order["frames"]).tolist() if row["scheme"] == "fp32" else None,
    }


def measure_machine() -> dict:
    """The bandwidth of the memory, the largest cache, and what machine and programs these are."""
    return {"bandwidth": read_bandwidth(), "cache_bytes": cache_bytes(), "machine": describe()}


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
