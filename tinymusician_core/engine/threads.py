"""How many CPU threads a decoder's steps are worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .decoder import DecoderConfig

SHARED_STEP_WEIGHTS = 2**25


@contextmanager
def step_threads(config: DecoderConfig) -> Iterator[None]:
    """One CPU thread while a small decoder steps: its products are too short to be worth handing out to several."""
    weights = config.layers * config.width * (8 * config.width + 2 * config.ffn)
    threads = torch.get_num_threads()
    if weights < SHARED_STEP_WEIGHTS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
