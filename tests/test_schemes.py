import subprocess
import sys

import pytest
import torch
from torch import nn

from tinymusician_core.quant import int4
from tinymusician_core.quant.schemes import (
    SCHEMES,
    from_tensors,
    pack,
    scheme_named,
    stored_bytes,
    to_tensors,
    unavailable,
)
from tinymusician_core.records import ModelError

# Relative error allowed in a product, by scheme: from the size of one rounding step.
LINEAR_ERROR = {
    "fp32": 1e-6,
    "bf16": 0.01,
    "fp16": 0.001,
    "int8": 0.02,
    "int8-weight": 0.015,
    "int4": 0.12,
    "int4-row": 0.14,
    "bnb-int8": 0.02,
    "nf4": 0.13,
    "fp4": 0.2,
}


def linear(outputs=40, inputs=48, bias=True, seed=0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias).eval()


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def on_meta(module: nn.Module) -> nn.Module:
    with torch.device("meta"):
        if isinstance(module, nn.Linear):
            return nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        if isinstance(module, nn.Embedding):
            return nn.Embedding(module.num_embeddings, module.embedding_dim)
        return nn.Conv1d(module.in_channels, module.out_channels, module.kernel_size)


def test_every_scheme_is_held_to_an_error():
    assert set(LINEAR_ERROR) == set(SCHEMES)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 48), (1, 48), (2, 7, 48), (200, 48)])
def test_a_linear_layer_stays_close_to_its_float_self(scheme, bias, shape):
    float_layer = linear(bias=bias)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = float_layer(x)
        found = pack(linear(bias=bias), scheme)(x)
    assert found.dtype == torch.float32
    assert found.shape == wanted.shape
    assert off(found, wanted) < LINEAR_ERROR[scheme]


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name not in ("int8-weight", "int4-row")])
@pytest.mark.parametrize("size", [(33, 17), (7, 5), (250, 130), (1, 3)])
def test_odd_sizes_work(scheme, size):
    x = torch.randn(3, size[1], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert off(pack(linear(*size), scheme)(x), linear(*size)(x)) < 1.5 * LINEAR_ERROR[scheme]


@pytest.mark.parametrize("scheme", ["int8-weight", "int4-row"])
def test_the_kernel_that_reads_whole_vectors_refuses_other_sizes(scheme):
    with pytest.raises(ValueError, match="16 divides, got 17"):
        pack(linear(33, 17), scheme)


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if SCHEMES[name].takes(nn.Embedding(2, 2))])
def test_an_embedding_stays_close_to_its_float_self(scheme):
    torch.manual_seed(0)
    table = nn.Embedding(50, 24)
    tokens = torch.tensor([[0, 49, 7], [7, 7, 1]])
    wanted = table(tokens).detach()
    found = pack(table, scheme)(tokens).detach()
    assert found.dtype == torch.float32
    assert found.shape == (2, 3, 24)
    assert off(found, wanted) < (LINEAR_ERROR["int4"] if scheme == "int4" else 0.01)


@pytest.mark.parametrize("width", [1, 5, 64, 100])
def test_four_bit_tables_of_any_width_come_back(width):
    table = nn.Embedding(6, width)
    packed = pack(table, "int4")
    found, wanted = packed(torch.arange(6)), table.weight.detach()
    groups = packed.scales[..., 0].float()
    step = groups.repeat_interleave(min(64, width + width % 2), dim=1)[:, :width]
    assert found.shape == wanted.shape
    assert bool(((found - wanted).abs() <= 0.55 * step + 0.01 * wanted.abs().max()).all())


MAKERS = {"linear": linear, "embedding": lambda: nn.Embedding(50, 24), "conv": lambda: nn.Conv1d(4, 6, 3)}


@pytest.mark.parametrize(
    ("scheme", "kind"), [(name, kind) for name in SCHEMES for kind in MAKERS if SCHEMES[name].takes(MAKERS[kind]())]
)
def test_stored_and_restored_is_the_same_module(scheme, kind):
    module = MAKERS[kind]()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tensors = to_tensors(module, scheme)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert stored_bytes(module, scheme) == sum(tensor.nbytes for tensor in tensors.values())
    restored = from_tensors(on_meta(module), scheme, {name: tensor.clone() for name, tensor in tensors.items()})
    x = torch.arange(6).view(2, 3) if isinstance(module, nn.Embedding) else torch.randn(2, 4, 48)
    with torch.inference_mode():
        assert torch.equal(restored(x), pack(module, scheme)(x))
    assert all(tensor.device.type == "cpu" for tensor in restored.state_dict().values())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shift", [1, 2, 8])
def test_tensors_at_odd_addresses_work(scheme, shift):
    def moved(tensor):
        room = torch.empty(tensor.numel() + shift, dtype=tensor.dtype)
        room[shift:] = tensor.reshape(-1)
        return room[shift:].view(tensor.shape)

    tensors = {name: moved(tensor) for name, tensor in to_tensors(linear(), scheme).items()}
    x = torch.randn(3, 48)
    with torch.inference_mode():
        assert torch.equal(from_tensors(on_meta(linear()), scheme, tensors)(x), pack(linear(), scheme)(x))


def test_bytes_are_those_that_the_scheme_promises():
    layer = linear(256, 512, bias=False)
    weights = 256 * 512
    assert stored_bytes(layer, "fp32") == 4 * weights
    assert stored_bytes(layer, "fp16") == stored_bytes(layer, "bf16") == 2 * weights
    assert stored_bytes(layer, "int8") == weights + 4 * 256
    assert stored_bytes(layer, "int8-weight") == weights + 2 * 256
    assert stored_bytes(layer, "int4") == weights // 2 + 4 * weights // 64
    assert stored_bytes(layer, "int4-row") == weights // 2 + 2 * 256
    assert stored_bytes(layer, "nf4") == stored_bytes(layer, "fp4") == weights // 2 + 2 * weights // 64
    assert stored_bytes(nn.Embedding(100, 256), "int4") == 100 * 128 + 100 * 4 * 4


@pytest.mark.parametrize("inputs", [100, 128])
def test_few_int4_weights_go_to_a_step_as_int8_that_adds_little_to_their_rounding(inputs, monkeypatch):
    layer = linear(80, inputs, bias=False)
    packed = pack(layer, "int4")
    with torch.inference_mode():
        values, scale = packed.plain()
        tensors = {name: packed.stored()[name] for name in ("nibbles", "scales")}
        rounded = int4.weights_of(**tensors)[:, :inputs]
        assert off(packed(torch.eye(inputs)).t(), rounded) < 0.003
    assert (values.dtype, values.shape, scale.dtype, scale.shape) == (torch.int8, (80, inputs), torch.float32, (80,))
    assert torch.all((values * scale[:, None] - rounded).abs() <= 0.501 * scale[:, None])
    assert off(values * scale[:, None], layer.weight.detach()) < 1.01 * off(rounded, layer.weight.detach())
    assert packed.plain()[0] is packed.step_tensors()[0] is values
    assert {name: tensor.tolist() for name, tensor in to_tensors(layer, "int4").items()} == {
        name: tensor.tolist() for name, tensor in packed.stored().items()
    }
    monkeypatch.setattr(int4, "FEW", 80 * inputs - 1)
    many = pack(layer, "int4")
    assert many.plain() is None
    assert [tensor.dtype for tensor in many.step_tensors()] == [torch.uint8, torch.bfloat16]


@pytest.mark.parametrize("scheme", ["int8", "int8-weight", "int4", "int4-row", "bnb-int8", "nf4", "fp4"])
def test_rows_of_zeros_and_rows_of_very_different_size_survive(scheme):
    layer = linear(40, 64)  # whole blocks of 64 a row: NF4's scales are then each row's own
    with torch.no_grad():
        layer.weight[0] = 0.0
        layer.weight[1] *= 1000.0
    x = torch.randn(4, 64)
    with torch.inference_mode():
        wanted = layer(x)
        found = pack(layer, scheme)(x)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[:, 0], wanted[:, 0], atol=1e-6)
    assert off(found[:, 1], wanted[:, 1]) < 2 * LINEAR_ERROR[scheme]
    assert off(found[:, 2:], wanted[:, 2:]) < LINEAR_ERROR[scheme]


@pytest.mark.parametrize("scheme", ["int8", "int8-weight", "int4", "int4-row", "fp16", "bf16"])
def test_a_row_gives_the_same_whatever_stands_beside_it(scheme):
    layer = pack(linear(), scheme)
    x = torch.randn(9, 48, generator=torch.Generator().manual_seed(4))
    x[3] *= 300.0
    with torch.inference_mode():
        together, alone = layer(x), torch.cat([layer(row.unsqueeze(0)) for row in x])
        wanted = linear()(x)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert off(together[:3], wanted[:3]) < LINEAR_ERROR[scheme]


@pytest.mark.parametrize("size", [(16, 64), (40, 100), (7, 3), (250, 130)])
def test_four_bits_come_back_from_the_kernel_as_they_went_in(size):
    stored = to_tensors(linear(*size), "int4")
    again = from_tensors(on_meta(linear(*size)), "int4", stored)
    assert all(torch.equal(tensor, again.stored()[name]) for name, tensor in stored.items())


@pytest.mark.parametrize("scheme", ["fp16", "int8", "int8-weight", "int4", "int4-row"])
def test_weights_that_cannot_be_kept_are_refused(scheme):
    layer = linear()
    with torch.no_grad():
        layer.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"not finite|beyond what"):
        pack(layer, scheme)


@pytest.mark.parametrize("scheme", ["int8", "int8-weight", "int4", "int4-row"])
def test_int8_says_that_it_stays_on_the_cpu(scheme):
    layer = pack(linear(), scheme).to("cpu")
    with pytest.raises(
        ValueError, match="int8 and int4 layers run on the cpu alone; for another device, quantize with bnb-int8"
    ):
        layer.to("meta")


def test_fp16_leaves_the_cpus_kernel_behind_when_it_moves():
    layer, x = pack(linear(), "fp16"), torch.randn(3, 48)
    wanted = layer(x)
    assert torch.equal(layer.to("cpu")(x), wanted)
    assert layer.to("meta").half_weight.device.type == "meta"
    assert layer(x.to("meta")).dtype == torch.float32


def test_a_scheme_that_cannot_take_a_module_says_who_can():
    with pytest.raises(ValueError, match="int8 cannot take a Conv1d; fp32, bf16, fp16 can"):
        pack(nn.Conv1d(2, 2, 3), "int8")
    with pytest.raises(ValueError, match="nf4 cannot take a Embedding"):
        to_tensors(nn.Embedding(3, 4), "nf4")
    with pytest.raises(ValueError, match="no such scheme: 'int3'; allowed: fp32"):
        scheme_named("int3")


def test_damaged_tensors_are_named():
    tensors = to_tensors(linear(), "int8")
    with pytest.raises(ModelError, match="lack scale"):
        from_tensors(on_meta(linear()), "int8", {"values": tensors["values"]})
    with pytest.raises(ModelError, match=r"the stored values is torch.int8 \[40, 48\], not torch.int8 \[41, 48\]"):
        from_tensors(on_meta(linear(41)), "int8", tensors)
    with pytest.raises(ModelError, match="the stored half is torch.float32"):
        from_tensors(on_meta(linear()), "fp16", {"half": torch.zeros(40, 48), "bias": torch.zeros(40)})


@pytest.mark.parametrize("scheme", ["int8", "int8-weight", "int4", "bf16", "bnb-int8", "nf4"])
def test_t5_feed_forward_leaves_the_input_of_a_packed_layer_alone(scheme):
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    model = T5EncoderModel(T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).eval()
    tokens = torch.tensor([[3, 4, 5, 1]])
    with torch.inference_mode():
        wanted = model(input_ids=tokens).last_hidden_state
        feed_forward = model.encoder.block[0].layer[1].DenseReluDense
        feed_forward.wi, feed_forward.wo = pack(feed_forward.wi, scheme), pack(feed_forward.wo, scheme)
        attention = model.encoder.block[0].layer[0].SelfAttention
        attention.relative_attention_bias = pack(attention.relative_attention_bias, "int8")
        found = model(input_ids=tokens).last_hidden_state
    assert found.dtype == torch.float32
    assert off(found, wanted) < 2 * LINEAR_ERROR[scheme]


def test_what_a_device_cannot_run_is_named_with_the_reason(monkeypatch):
    assert unavailable("cpu") == {}
    there = unavailable("cuda")
    assert set(there) == {"int8", "int8-weight", "int4", "int4-row"}
    assert there["int4"] == "its kernel runs on the cpu alone, not on cuda"
    monkeypatch.setattr("tinymusician_core.quant.schemes.find_spec", lambda name: None)
    assert unavailable("cpu") == dict.fromkeys(("bnb-int8", "nf4", "fp4"), "bitsandbytes is not installed")


def test_bitsandbytes_is_imported_only_when_it_is_used():
    code = (
        "import sys, tinymusician_core.quant.schemes as s, torch; s.pack(torch.nn.Linear(4, 4), 'int8');"
        "assert 'bitsandbytes' not in sys.modules; s.pack(torch.nn.Linear(4, 4), 'nf4');"
        "assert 'bitsandbytes' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "kernels-community" not in done.stderr
