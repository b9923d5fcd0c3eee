"""Where the studio meets the core: a measured clip from a model in its own process, and the words it does not know.

Neither loads a model or torch into the studio's own process, which stays at a quarter of the memory that would take.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from string import punctuation

import tinymusician_core
from studio.orders import Job, Made, Watch
from tinymusician_core.measure.bench import StoppedMeasuring, measure

TOKENIZER = Path("models", "text", "tokenizer.json")
UNKNOWN = "<unk>"
ROUNDING_S = 0.03  # a whole clip has a whole number of frames, 25 or more a second


def make_clip(job: Job, watch: Watch) -> Made:
    """One clip from one model in a fresh process, measured after a warm-up; the figures are medians of the runs.

    Stopped on the way, it is what was made until then: a shorter clip, or the whole one of the runs before.

    Raises ValueError, ModelError, WorkerDied, and Cancelled where nothing was made, as the core's `measure` does, each
    with one sentence.
    """
    try:
        measured = measure(
            job.model, job.prompt, job.sampling, job.runs, on_progress=watch.on_progress,
            should_stop=watch.should_stop, on_audio=watch.on_audio, continue_from=job.source,
        )  # fmt: skip
    except StoppedMeasuring as stop:
        measured = stop.measured
    return Made(measured.clip, measured.figures, stopped=measured.made_s < job.sampling.seconds - ROUNDING_S)


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt that the demo family has never seen, in order and each once; none where there is no family.

    Says what `TextEncoder.unknown_words` says, from the tokenizer's file alone.
    """
    assets = os.environ.get("TINYMUSICIAN_ASSETS") or Path(tinymusician_core.__file__).parent.parent / "assets"
    path = Path(assets) / TOKENIZER
    if not path.is_file():
        return []
    tokenizer = _tokenizer(str(path), path.stat().st_mtime)
    coded = tokenizer.encode(prompt, add_special_tokens=False)
    unknown = tokenizer.token_to_id(UNKNOWN)
    pieces = [
        prompt[start:end] for token, (start, end) in zip(coded.ids, coded.offsets, strict=True) if token == unknown
    ]
    return list(dict.fromkeys(piece for piece in pieces if piece.strip(punctuation)))


@lru_cache(maxsize=2)
def _tokenizer(path: str, changed: float):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(path)
