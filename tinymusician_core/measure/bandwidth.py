"""How fast this machine reads memory: what no step can outrun that has to read its weights from there."""

from __future__ import annotations

import time
from pathlib import Path

BUFFER_BYTES = 2**28
SECONDS = 2.0


def read_bandwidth(buffer_bytes: int = BUFFER_BYTES, seconds: float = SECONDS) -> float:
    """Bytes a second at which all of torch's threads together read a buffer that no cache can hold.

    Two ways of reading every float32 of it once, a sum and a dot product with itself, by turns for so many seconds; the
    best reading counts, since whatever else is going on can only slow it down.

    Raises:
        ValueError: a buffer of less than one float, or no time at all.
    """
    import torch

    if buffer_bytes < 4 or not 0 < seconds < float("inf"):
        raise ValueError(f"a buffer has 4 bytes or more and is read for some time, got {buffer_bytes} and {seconds}")
    buffer = torch.ones(buffer_bytes // 4)
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for read in (torch.sum, lambda x: torch.dot(x, x)):
            start = time.perf_counter()
            read(buffer)
            best = min(best, time.perf_counter() - start)
    return buffer.nbytes / best


def cache_bytes() -> int | None:
    """The size of the largest cache that a core can use, as Linux tells it; None where it is not told.

    Weights that fit into it are not read from memory every step, so that their bytes a second say nothing.
    """
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text.endswith("K") and text[:-1].isdecimal():
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes, default=None)
