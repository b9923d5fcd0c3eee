"""Peak memory: of this process above an idle moment, or what torch allocates on a GPU.

On Linux the kernel keeps the high-water mark of the resident set (`VmHWM`), and writing 5 to `/proc/self/clear_refs`
starts it anew (proc(5)), so that nothing that came before counts. Elsewhere a thread samples the resident set.
On a GPU it is torch's own high-water mark that counts.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from pathlib import Path

import psutil

SAMPLE_EVERY_S = 0.01


def _status_bytes(field: str) -> int:
    """One field of /proc/self/status, such as VmHWM, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _restart_high_water_mark() -> bool:
    """Set the kernel's high-water mark back to what is resident now; False where there is no such thing."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        _status_bytes("VmHWM")
    except OSError:
        return False
    return True


def _give_back_free_memory() -> None:
    """Hand freed heap pages back to the system (glibc), so that a model cannot hide in what imports left behind."""
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Hand the heap's free pages back to the system, where its allocator can (glibc): it keeps what it once had."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class PeakMemory:
    """Remembers the resident set at its making, and the highest one since.

    `peak_bytes()` is their difference, or None where the system tells neither.
    """

    def __init__(self):
        _give_back_free_memory()
        self._kernel = _restart_high_water_mark()
        self._process = psutil.Process()
        self._idle = self._resident()
        self._highest = self._idle
        if not self._kernel and self._idle is not None:
            threading.Thread(target=self._sample, daemon=True).start()

    def trim(self) -> None:
        """Hand free memory back, so that what making a model took for a moment does not count as what it holds."""
        _give_back_free_memory()

    def restart(self) -> None:
        """Let the highest resident set count from now on; idle stays what it was."""
        if self._kernel:
            _restart_high_water_mark()
        else:
            self._highest = self._resident() or 0

    def _resident(self) -> int | None:
        try:
            return _status_bytes("VmRSS") if self._kernel else self._process.memory_info().rss
        except (OSError, psutil.Error):
            return None

    def _sample(self) -> None:
        pause = threading.Event()
        while not pause.wait(SAMPLE_EVERY_S):
            self._highest = max(self._highest, self._resident() or 0)

    def peak_bytes(self) -> int | None:
        """Bytes of the highest resident set so far above the idle one; None when it cannot be measured."""
        if self._idle is None:
            return None
        highest = _status_bytes("VmHWM") if self._kernel else max(self._highest, self._resident() or 0)
        return max(0, highest - self._idle)


class DeviceMemory:
    """What `PeakMemory` tells, of the memory that torch allocates on a GPU: nothing is, when nothing is loaded."""

    def __init__(self, device: str):
        from torch import cuda

        self._cuda, self._device = cuda, device
        self.restart()

    def trim(self) -> None:
        """Hand cached memory that nothing uses back to the GPU."""
        gc.collect()
        self._cuda.empty_cache()

    def restart(self) -> None:
        """Let the most that is allocated count from now on."""
        self._cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        """The most bytes that were allocated at once (torch.cuda.max_memory_allocated)."""
        return self._cuda.max_memory_allocated(self._device)
