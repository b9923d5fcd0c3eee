"""Whether music that is being made has come to its end before its time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

OVER_S = 1.5
QUIET = 0.003  # full scale is 1: 50 dB below it


class Silence:
    """Listens to a batch of music as it is made, and knows which rows have been silent for `OVER_S` seconds."""

    def __init__(self, rows: int, sample_rate_hz: int):
        self._silent = np.zeros(rows, np.int64)
        self._most = OVER_S * sample_rate_hz

    def hear(self, sound: np.ndarray) -> None:
        """The next sound, float32 [B,C,n], n at least 1."""
        loud = np.abs(sound).max(axis=1) > QUIET
        since = loud[:, ::-1].argmax(axis=1)
        self._silent = np.where(loud.any(axis=1), since, self._silent + sound.shape[2])

    def over(self) -> Tensor:
        """Bool [B]: the rows that are silent by now."""
        return torch.from_numpy(self._silent >= self._most)
