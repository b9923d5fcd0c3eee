"""What loading a quantized model takes above the idle process, beside the bytes of its files."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import scramble, text_config
from torch import nn

import tinymusician_core as tm
from tinymusician_core.bundle import save_family
from tinymusician_core.quant.apply import quantize
from tinymusician_core.quant.loading import read_header, read_tensor
from tinymusician_core.quant.plan import Plan
from tinymusician_core.quant.schemes import from_tensors, to_tensors

WIDE, LAYERS = 1024, 6
# Half of the layers in each: were one of them held twice, or in float, the peak would lie far beyond what is allowed.
MIXED = Plan.of(
    {"*": "fp16", "decoder.layers.*": "int8", **{f"decoder.layers.{i}.*": "int4" for i in range(LAYERS // 2)}}
)
MEASURE = """
import json, sys
from tinymusician_core.worker_process import import_everything, touch_kernels
import_everything(); touch_kernels()
import tinymusician_core as tm
from tinymusician_core.measure.memory import PeakMemory
tm.load(sys.argv[1])  # what the first load of all pages in is no model's memory
peak = PeakMemory()
model = tm.load(sys.argv[2])
print(json.dumps({"peak": peak.peak_bytes(), "disk": model.disk_bytes}))
"""


@pytest.fixture(scope="module")
def wide(tiny_family, tmp_path_factory):
    """A model with layers of MusicGen-Small's shape around the tiny family's text encoder and codec."""
    import shutil

    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    models = tmp_path_factory.mktemp("wide") / "models"
    shutil.copytree(tiny_family, models)
    tokens = {"vocab_size": 64, "pad_token_id": 64, "bos_token_id": 64}
    sizes = {"hidden_size": WIDE, "num_hidden_layers": LAYERS, "num_attention_heads": 16, "ffn_dim": 4 * WIDE}
    config = MusicgenDecoderConfig(**tokens, **sizes, num_codebooks=4)
    state = {f"decoder.{k}": v for k, v in MusicgenForCausalLM(config).state_dict().items()}
    projection = scramble(nn.Linear(text_config().d_model, WIDE), seed=1)
    state |= {f"enc_to_dec_proj.{k}": v for k, v in projection.state_dict().items()}
    save_family(models / "wide", "wide", config.to_dict(), state)
    return tm.load(models / "wide")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark is Linux's")
def test_loading_takes_little_more_than_the_files(wide, tiny_family, tmp_path):
    """Some 8 to 12 MB beside the weights are the same however many layers of this size there are."""
    small = quantize(tm.load(tiny_family / "student"), "int8", tmp_path / "small").folder
    made = quantize(wide, MIXED, tmp_path / "q")
    command = [sys.executable, "-c", MEASURE, str(small), str(made.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["disk"] == made.disk_bytes > 60e6
    assert 0.9 * found["disk"] < found["peak"] <= 1.3 * found["disk"]


def test_tensors_are_read_one_by_one_as_they_were_written(tmp_path):
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a.half": torch.randn(3, 5, generator=generator).half(),
        "b": torch.arange(7, dtype=torch.int8),
        "c": torch.tensor(2.5),
        "d": torch.zeros(0, 4),
        "e.bf": torch.randn(2, 2, 2, generator=generator).bfloat16(),
        "f": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / "some.safetensors", metadata={"of": "a test"})
    with open(tmp_path / "some.safetensors", "rb") as file:
        header = read_header(file)
        assert set(header) == set(tensors)
        for name, tensor in tensors.items():
            found = read_tensor(file, header[name])
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)
            assert found.numel() == 0 or found.data_ptr() % 64 == 0


@pytest.mark.parametrize("scheme", ["int4", "int4-row"])
@pytest.mark.parametrize("outputs", [16, 24, 256, 600])
def test_four_bits_are_unpacked_part_by_part_as_at_once(scheme, outputs, monkeypatch):
    linear = nn.Linear(80, outputs).requires_grad_(False)
    stored = to_tensors(linear, scheme)
    by_parts = from_tensors(linear, scheme, stored)
    monkeypatch.setattr("tinymusician_core.quant.int4.AT_ONCE", 4096)
    whole = from_tensors(linear, scheme, stored)
    name = "numbers" if scheme == "int4" else "values"
    assert torch.equal(getattr(by_parts, name), getattr(whole, name))
    x = torch.randn(3, 80)
    assert torch.equal(by_parts(x), whole(x))
