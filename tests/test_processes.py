"""One process or several: what a launcher's environment means, and that training needs accelerate only for several."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tinymusician_core.processes import OneProcess, is_main, processes


def test_a_process_by_itself_has_nobody_to_wait_for(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    alone, model = processes("cpu"), nn.Linear(2, 2)
    assert type(alone) is OneProcess
    assert (alone.rank, alone.world, alone.is_main, alone.device) == (0, 1, True, torch.device("cpu"))
    assert alone.wrap(model) is model
    assert alone.sum({"a": 1.5}) == {"a": 1.5}
    assert alone.agree(3.0, True) == (3.0, True)
    with alone.quiet(model):
        alone.wait()
    assert is_main()
    monkeypatch.setenv("RANK", "1")
    assert not is_main()


def test_other_ways_to_share_work_are_refused(monkeypatch):
    accelerate = pytest.importorskip("accelerate")
    from accelerate.utils import DistributedType

    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    made = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    monkeypatch.setattr(accelerate, "Accelerator", lambda **_: made)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="share their work as DEEPSPEED; MULTI_CPU and MULTI_GPU are allowed"):
        processes("cpu")


def test_training_imports_neither_accelerate_nor_transformers():
    code = (
        "import sys; sys.modules['accelerate'] = None; import tinymusician_core.training as t; "
        "from tinymusician_core.processes import processes; processes(); "
        "print([m for m in ('transformers', 'gradio', 'tensorboard') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
