"""Peak memory against allocations of known size, and the weights that a model holds against their types."""

import mmap
import sys

import numpy as np
import pytest
import torch

import tinymusician_core as tm
from tinymusician_core.measure import memory
from tinymusician_core.measure.weights import held_bytes
from tinymusician_core.quant.schemes import pack

MB = 2**20


def taken(megabytes: int) -> mmap.mmap:
    """Memory from the system itself, every page touched: a heap keeps what is freed and may put the next elsewhere."""
    mapping = mmap.mmap(-1, megabytes * MB)
    np.frombuffer(mapping, np.uint8)[:: mmap.PAGESIZE] = 1
    return mapping


def use(megabytes: int) -> None:
    """Take that much memory and give it back."""
    taken(megabytes).close()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark is Linux's")
@pytest.mark.parametrize("megabytes", [32, 64, 200])
def test_peak_memory_is_that_of_an_allocation_of_known_size(megabytes):
    use(250)
    peak = memory.PeakMemory()
    assert peak.peak_bytes() < 4 * MB, "what was there before does not count"
    use(megabytes)
    assert megabytes * MB <= peak.peak_bytes() + MB / 2
    assert peak.peak_bytes() < (megabytes + 4) * MB
    use(megabytes // 4)
    assert peak.peak_bytes() < (megabytes + 4) * MB, "a smaller one later changes nothing"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark is Linux's")
def test_each_run_has_a_peak_of_its_own():
    peak = memory.PeakMemory()
    held = taken(24)
    use(120)
    peak.trim()
    peak.restart()
    assert abs(peak.peak_bytes() - 24 * MB) < 4 * MB, "what is held counts, what was given back does not"
    use(40)
    assert abs(peak.peak_bytes() - 64 * MB) < 4 * MB
    held.close()


def test_peak_memory_is_sampled_where_the_kernel_keeps_no_mark(monkeypatch):
    monkeypatch.setattr(memory, "_restart_high_water_mark", lambda: False)
    peak = memory.PeakMemory()
    held = taken(64)
    assert 60 * MB <= peak.peak_bytes() < 120 * MB
    held.close()
    peak.restart()
    assert peak.peak_bytes() < 60 * MB


def test_peak_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(memory.PeakMemory, "_resident", lambda self: None)
    assert memory.PeakMemory().peak_bytes() is None


def test_on_a_gpu_it_is_what_torch_allocates_there(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: asked.append(("reset", device)))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: asked.append(("peak", device)) or 123)
    peak = memory.DeviceMemory("cuda")
    peak.restart()
    assert peak.peak_bytes() == 123
    assert asked == [("reset", "cuda"), ("reset", "cuda"), ("peak", "cuda")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_allocation_on_the_gpu_is_counted_whole():
    peak = memory.DeviceMemory("cuda")
    before = peak.peak_bytes()
    torch.ones(64 * MB, dtype=torch.uint8, device="cuda")
    assert 64 * MB <= peak.peak_bytes() - before < 66 * MB


def test_weights_held_are_counted_once_and_as_they_are_stored(tiny_family):
    pipeline = tm.load(tiny_family / "student")
    tensors = {id(t): t for t in [*pipeline.modules.parameters(), *pipeline.modules.buffers()]}
    assert held_bytes([pipeline.modules]) == sum(tensor.nbytes for tensor in tensors.values())
    assert held_bytes([pipeline.modules, pipeline.decoder]) == held_bytes([pipeline.modules])


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("fp32", 4 * 128 * 64 + 4 * 128),
        ("bf16", 2 * 128 * 64 + 4 * 128),
        ("fp16", 2 * 128 * 64 + 4 * 128),
        ("int8", 128 * 64 + 4 * 128 + 4 * 128),
        ("int8-weight", 128 * 64 + 2 * 128 + 4 * 128),
        ("int4", 128 * 64 // 2 + 2 * 2 * 128 + 4 * 128),
    ],
)
def test_weights_of_a_linear_in_each_scheme(scheme, expected):
    assert held_bytes([pack(torch.nn.Linear(64, 128), scheme)]) == expected
