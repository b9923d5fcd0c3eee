"""A sound in a file that one process appends to while another reads what is there already.

The file is raw: little-endian float32, the channels of a sample side by side, sample after sample. So it grows at its
end alone, no header has to be put right, and neither side holds more than the part that it is about.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SAMPLE = np.dtype("<f4")


def append(path: Path, chunk: np.ndarray) -> None:
    """Add float32 [C,n] to the end of a file; the first chunk makes it."""
    with open(path, "ab") as file:
        file.write(np.ascontiguousarray(chunk.T, dtype=SAMPLE))


def read(path: Path, channels: int, start: int = 0, stop: int | None = None) -> np.ndarray:
    """The samples from `start` up to, not including, `stop` (all that there are where None): float32 [C,n].

    Raises:
        OSError: the file is not there.
    """
    count = -1 if stop is None else (stop - start) * channels
    values = np.fromfile(path, SAMPLE, count, offset=start * channels * SAMPLE.itemsize)
    return np.ascontiguousarray(values.reshape(-1, channels).T, dtype=np.float32)
