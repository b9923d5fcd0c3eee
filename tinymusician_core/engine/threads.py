"""How many CPU threads compute: what was asked for, and what a decoder's steps are worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..checks import whole
from .decoder import DecoderConfig

SHARED_STEP_WEIGHTS = 2**25
MOST_THREADS = 1024


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


@contextmanager
def threads_for(threads: int | None) -> Iterator[None]:
    """So many CPU threads for torch and NumPy's BLAS here while the block lasts; None leaves them as they are.

    Raises:
        ValueError: no whole number from 1 to `MOST_THREADS`.
    """
    if threads is None:
        yield
        return
    from threadpoolctl import threadpool_limits  # not needed where models are trained

    threads, before = whole("threads", threads, 1, MOST_THREADS), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
