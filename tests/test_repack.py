"""A quantized folder holds plain numbers, and each CPU packs them for its own kernels: it plays the same on another."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import tinymusician_core as tm
from tinymusician_core.quant.apply import quantize
from tinymusician_core.quant.plan import Plan

EVERY_KERNEL = Plan.of(
    {
        "*": "fp16",
        "text_encoder.*": "int8",
        "decoder.*": "int8",
        "decoder.heads": "int8-weight",
        "decoder.layers.*.qkv": "int4",
        "decoder.layers.*.fc1": "int4-row",
        "decoder.layers.*.fc2": "bf16",
        "decoder.layers.1.out": "int4",
    }
)
PLAY = """
import json, sys, torch, tinymusician_core as tm
from safetensors.torch import save_file
from tinymusician_core.quant.int4 import Int4Linear
folder, out = sys.argv[1:]
model = tm.load(folder)
prompt = "a calm piano waltz in g major"
clips = [tm.generate(model, prompt, seconds=2, seed=3, greedy=greedy) for greedy in (True, False)]
states, mask = model.text_encoder.encode(["a calm piano", "the lively flute and drums"])
tokens = torch.randint(0, 64, (2, 4, 9), generator=torch.Generator().manual_seed(0))
with torch.inference_mode():
    made = {"logits": model.decoder.logits(tokens, states, mask)}
made |= {"greedy": torch.from_numpy(clips[0].codes), "drawn": torch.from_numpy(clips[1].codes)}
made |= {"audio": torch.from_numpy(clips[0].audio)}
made["packed"] = torch.cat([m.numbers.flatten() for m in model.modules.modules() if isinstance(m, Int4Linear)])
save_file({name: tensor.contiguous() for name, tensor in made.items()}, out)
print(json.dumps({"capability": torch.backends.cpu.get_cpu_capability()}))
"""
# What torch's own kernels and oneDNN's may use.
OTHERS = {
    "DEFAULT": {"ATEN_CPU_CAPABILITY": "default"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}


def play(folder, out, settings):
    """What a fresh process plays on a CPU of which torch is told that it is such a one; and what it takes it for."""
    plain = {name: value for name, value in os.environ.items() if name not in OTHERS["AVX2"]}
    command = [sys.executable, "-c", PLAY, str(folder), str(out)]
    done = subprocess.run(command, env=plain | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(out), json.loads(done.stdout.splitlines()[-1])["capability"]


@pytest.fixture(scope="module")
def packed(tiny_family, tmp_path_factory):
    return quantize(tm.load(tiny_family / "student"), EVERY_KERNEL, tmp_path_factory.mktemp("q") / "q").folder


@pytest.fixture(scope="module")
def here(packed, tmp_path_factory):
    return play(packed, tmp_path_factory.mktemp("here") / "played.safetensors", {})


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="the names are of x86's instructions")
@pytest.mark.parametrize("other", OTHERS)
def test_a_quantized_folder_plays_the_same_on_another_cpu(packed, here, tmp_path, other):
    wanted, mine = here
    found, taken_for = play(packed, tmp_path / "played.safetensors", OTHERS[other])
    assert taken_for == other
    assert torch.equal(found["greedy"], wanted["greedy"])
    assert torch.equal(found["drawn"], wanted["drawn"])
    assert len(wanted["drawn"].unique()) > 8, "a model that repeats one token proves nothing"
    torch.testing.assert_close(found["logits"], wanted["logits"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found["audio"], wanted["audio"], rtol=1e-3, atol=1e-4)
    if (mine, other) == ("AVX512", "AVX2"):
        assert not torch.equal(found["packed"], wanted["packed"]), (
            "the int4 kernels of the two have orders of their own"
        )
