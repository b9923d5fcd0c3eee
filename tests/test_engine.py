import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinymusician_core.engine import Decoder, DecoderConfig, frames, products
from tinymusician_core.engine.graph import GraphStep
from tinymusician_core.engine.kernels import gelu, product
from tinymusician_core.engine.linear import StepLinear
from tinymusician_core.engine.products import SMALL_BYTES
from tinymusician_core.quant.schemes import pack
from tinymusician_core.records import SamplingSpec


def make_decoder(seed=0, **changes) -> Decoder:
    shape = {"width": 16, "layers": 2, "heads": 2, "ffn": 24, "codebooks": 3, "entries": 20}
    shape |= changes
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(DecoderConfig(**shape, pad=shape["entries"]))
    with torch.no_grad():
        for tensor in decoder.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return decoder.eval()


def make_text(decoder, batch=1, tokens=4, seed=1):
    states = torch.randn(batch, tokens, decoder.config.width, generator=torch.Generator().manual_seed(seed))
    return states, torch.ones(batch, tokens, dtype=torch.long)


def collect(decoder, states, mask, spec, count):
    return torch.stack(list(frames(decoder, states, mask, spec, count)), dim=2)


@st.composite
def cases(draw):
    heads = draw(st.sampled_from([1, 2, 4]))
    shape = {
        "heads": heads,
        "width": heads * draw(st.sampled_from([4, 6, 8])),
        "layers": draw(st.integers(1, 3)),
        "ffn": draw(st.integers(1, 20)),
        "codebooks": draw(st.integers(1, 4)),
        "entries": draw(st.integers(1, 30)),
        "activation": draw(st.sampled_from(["gelu", "relu", "silu"])),
    }
    batch, text, positions = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(0, text), min_size=batch, max_size=batch))
    return shape, lengths, text, positions, draw(st.integers(0, positions)), draw(st.integers(0, 2**31))


def make_inputs(decoder, lengths, text, positions, seed):
    generator = torch.Generator().manual_seed(seed + 1)
    config = decoder.config
    states = torch.randn(len(lengths), text, config.width, generator=generator)
    mask = torch.arange(text) < torch.tensor(lengths).unsqueeze(1)
    tokens = torch.randint(0, config.entries + 1, (len(lengths), config.codebooks, positions), generator=generator)
    return states, mask, tokens


@settings(deadline=None, max_examples=60)
@given(cases())
def test_the_cached_path_equals_the_cacheless_one(case):
    shape, lengths, text, positions, prefilled, seed = case
    decoder = make_decoder(seed, **shape)
    states, mask, tokens = make_inputs(decoder, lengths, text, positions, seed)
    expected = decoder.logits(tokens, states, mask).detach()
    assert expected.isfinite().all()
    cache = decoder.prepare(states, mask, positions)
    parts = [decoder.prefill(tokens[:, :, :prefilled], cache)] if prefilled else []
    parts += [decoder.step(tokens[:, :, t], cache).unsqueeze(2) for t in range(prefilled, positions)]
    torch.testing.assert_close(torch.cat(parts, dim=2), expected, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=30)
@given(cases())
def test_the_step_of_fixed_shapes_equals_the_cacheless_one(case):
    shape, lengths, text, positions, prefilled, seed = case
    decoder = make_decoder(seed, **shape)
    states, mask, tokens = make_inputs(decoder, lengths, text, positions, seed)
    expected = decoder.logits(tokens, states, mask).detach()
    cache = decoder.prepare(states, mask, positions + 2)
    if prefilled:
        decoder.prefill(tokens[:, :, :prefilled], cache)
    cache.fast_step = GraphStep(decoder, cache)
    with torch.inference_mode():
        for t in range(prefilled, positions):
            found = decoder.step(tokens[:, :, t], cache)
            torch.testing.assert_close(found, expected[:, :, t], atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_graph_generates_what_the_cpu_generates():
    decoder = make_decoder()
    states, mask = make_text(decoder)
    wanted = collect(decoder, states, mask, SamplingSpec(greedy=True), 8)
    found = collect(decoder.to("cuda"), states.cuda(), mask.cuda(), SamplingSpec(greedy=True), 8)
    assert torch.equal(found.cpu(), wanted)


@settings(deadline=None, max_examples=30)
@given(cases(), st.integers(0, 3))
def test_a_text_before_the_music_is_read_once_and_kept(case, prefix):
    shape, lengths, text, positions, prefilled, seed = case
    decoder = make_decoder(seed, **shape, text="prepend", prefix=prefix)
    states, mask, tokens = make_inputs(decoder, [text if length else 0 for length in lengths], text, positions, seed)
    expected = decoder.logits(tokens, states, mask).detach()
    cache = decoder.prepare(states, mask, positions)
    assert (cache.length, cache.capacity) == (0, positions)
    for _ in range(2):
        parts = [decoder.prefill(tokens[:, :, :prefilled], cache)] if prefilled else []
        parts += [decoder.step(tokens[:, :, t], cache).unsqueeze(2) for t in range(prefilled, positions)]
        torch.testing.assert_close(torch.cat(parts, dim=2), expected, atol=1e-4, rtol=1e-4)
        cache.rewind()
    assert "cross_q" not in dict(decoder.layers[0].named_modules())


def test_prompts_before_the_music_must_be_of_one_length():
    decoder = make_decoder(text="prepend")
    states, mask = make_text(decoder, batch=2)
    mask[1, 3] = 0
    with pytest.raises(ValueError, match="all prompts of a batch need as many tokens"):
        decoder.prepare(states, mask, 4)


@pytest.mark.parametrize("scheme", ["fp16", "bf16", "int8", "int8-weight", "int4"])
def test_packed_weights_keep_their_cache_in_bfloat16_and_stay_close(scheme):
    decoder = make_decoder(width=64, ffn=96)
    states, mask = make_text(decoder, batch=2)
    tokens = torch.randint(0, 20, (2, 3, 9), generator=torch.Generator().manual_seed(5))
    for name, module in list(decoder.named_modules()):
        if isinstance(module, nn.Linear):
            decoder.set_submodule(name, pack(module, scheme))
    with torch.inference_mode():
        expected = decoder.logits(tokens, states, mask)
        cache = decoder.prepare(states, mask, 9)
        found = torch.stack([decoder.step(tokens[:, :, t], cache) for t in range(9)], dim=2)
    assert cache.store.dtype == torch.bfloat16
    assert float((found - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("scheme", ["fp32", "int8", "int8-weight", "int4", "fp16"])
def test_each_row_of_a_batch_is_its_single_run_whatever_the_weights(scheme, cfg):
    decoder = make_decoder(width=64, ffn=96, entries=40)
    for name, module in list(decoder.named_modules()):
        if isinstance(module, nn.Linear):
            decoder.set_submodule(name, pack(module, scheme))
    states, mask = make_text(decoder, batch=3)
    states[1] *= 20.0
    mask[2, 2:] = 0
    specs = [SamplingSpec(seed=seed, cfg=cfg) for seed in (4, 5, 6)]
    batch = torch.stack(list(frames(decoder, states, mask, specs, 12, window=7)), dim=2)
    for row, spec in enumerate(specs):
        single = states[row : row + 1, : int(mask[row].sum())], mask[row : row + 1, : int(mask[row].sum())]
        alone = torch.stack(list(frames(decoder, *single, spec, 12, window=7)), dim=2)
        assert torch.equal(batch[row : row + 1], alone)


def test_prefill_goes_on_where_the_cache_ends():
    decoder = make_decoder()
    states, mask = make_text(decoder)
    tokens = torch.randint(0, 20, (1, 3, 7), generator=torch.Generator().manual_seed(2))
    cache = decoder.prepare(states, mask, 7)
    parts = [decoder.prefill(tokens[:, :, :3], cache), decoder.prefill(tokens[:, :, 3:], cache)]
    torch.testing.assert_close(torch.cat(parts, dim=2), decoder.logits(tokens, states, mask).detach())


def test_the_cache_is_static_and_says_when_it_is_full():
    decoder = make_decoder()
    states, mask = make_text(decoder)
    cache = decoder.prepare(states, mask, 2)
    held = cache.bytes
    tokens = torch.zeros(1, 3, dtype=torch.long)
    decoder.step(tokens, cache)
    decoder.step(tokens, cache)
    assert cache.bytes == held == 2 * 2 * 2 * 16 * 4
    with pytest.raises(ValueError, match="room for 2 positions, 3 were asked for"):
        decoder.step(tokens, cache)
    with pytest.raises(ValueError, match="at least 1 position"):
        decoder.prepare(states, mask, 0)


def test_positions_beyond_the_table_are_computed():
    decoder = make_decoder()
    states, mask = make_text(decoder)
    before = decoder.positions.clone()
    decoder.prepare(states, mask, 3000)
    assert decoder.positions.shape[0] == 3000
    assert torch.equal(decoder.positions[: len(before)], before)


def test_text_keys_and_values_are_computed_once_a_prompt():
    decoder = make_decoder()
    calls = []
    for layer in decoder.layers:
        layer.cross_kv.register_forward_hook(lambda *_: calls.append(1))
    states, mask = make_text(decoder)
    collect(decoder, states, mask, SamplingSpec(), 5)
    assert len(calls) == decoder.config.layers


def test_full_text_needs_no_mask_and_padding_does_not_weigh_in():
    decoder = make_decoder()
    states, mask = make_text(decoder)
    assert decoder.prepare(states, mask, 1).text.mask is None
    padded = torch.cat([states, torch.full((1, 2, 16), 1e3)], dim=1)
    padded_mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    tokens = torch.zeros(1, 3, 2, dtype=torch.long)
    assert decoder.prepare(padded, padded_mask, 1).text.mask is not None
    torch.testing.assert_close(decoder.logits(tokens, padded, padded_mask), decoder.logits(tokens, states, mask))


def test_wrong_text_states_are_named():
    decoder = make_decoder()
    with pytest.raises(ValueError, match=r"\[batch, tokens, 16\]"):
        decoder.prepare(torch.zeros(1, 4, 15), torch.ones(1, 4), 1)
    with pytest.raises(ValueError, match="mask"):
        decoder.prepare(torch.zeros(1, 4, 16), torch.ones(2, 4), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers"),
        ({"heads": 3}, "multiple of its heads"),
        ({"activation": "tanh"}, "gelu, relu, silu"),
    ],
)
def test_wrong_shapes_of_decoder_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_decoder(**change)


def test_a_configuration_that_lacks_a_field_is_named():
    with pytest.raises(ValueError, match="lacks hidden_size"):
        DecoderConfig.from_dict({"vocab_size": 5})


@pytest.mark.parametrize("usable", [True, False], ids=["onednn", "plain"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 17])
def test_the_product_of_a_step_is_the_plain_product(rows, usable, monkeypatch):
    if not usable:
        monkeypatch.setattr("tinymusician_core.onednn.usable", lambda x: False)
    generator = torch.Generator().manual_seed(rows)
    linear = StepLinear(24, 40)
    x = torch.randn(rows, 24, generator=generator)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x), x @ linear.weight.t())
    assert linear(x).requires_grad


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 40), st.sampled_from([torch.float32, torch.int8]))
def test_the_compiled_product_is_the_plain_product(rows, outputs, inputs, dtype):
    generator = torch.Generator().manual_seed(rows)
    weight = (torch.randn(outputs, inputs, generator=generator) * 50).to(dtype)
    scale, x = torch.rand(outputs, generator=generator), torch.randn(rows, inputs, generator=generator)
    out = np.full((rows, outputs), np.nan, np.float32)
    product(weight.numpy(), scale.numpy(), x.numpy(), out)
    torch.testing.assert_close(torch.from_numpy(out), x @ weight.float().t() * scale, atol=1e-3, rtol=1e-4)


def test_the_compiled_gelu_is_torchs():
    x = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, -1e-30, 1e30])]).view(2, -1)
    out = np.empty(x.shape, np.float32)
    gelu(x.numpy(), out)
    torch.testing.assert_close(torch.from_numpy(out), nn.functional.gelu(x), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("small", [0, SMALL_BYTES])
def test_steps_by_torchs_products_and_by_compiled_ones_agree(small, monkeypatch):
    monkeypatch.setattr(products, "SMALL_BYTES", small)
    decoder = make_decoder()
    states, mask = make_text(decoder)
    tokens = torch.randint(0, 20, (1, 3, 4), generator=torch.Generator().manual_seed(8))
    cache = decoder.prepare(states, mask, 4)
    found = torch.stack([decoder.step(tokens[:, :, t], cache) for t in range(4)], dim=2)
    torch.testing.assert_close(found, decoder.logits(tokens, states, mask).detach(), atol=1e-4, rtol=1e-4)


class Opaque(nn.Module):
    """A product without `.weight`, as quantized modules are."""

    def __init__(self, linear):
        super().__init__()
        self._run = [linear]

    def forward(self, x):
        return self._run[0](x)


def test_products_and_lookups_can_be_swapped_for_modules_without_a_weight():
    decoder = make_decoder()
    swapped = copy.deepcopy(decoder)
    names = [name for name, module in swapped.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    assert len(names) == 3 + 2 * 7 + 1
    for name in names:
        swapped.set_submodule(name, Opaque(swapped.get_submodule(name)))
    states, mask = make_text(decoder)
    spec = SamplingSpec(seed=5)
    assert torch.equal(collect(swapped, states, mask, spec, 6), collect(decoder, states, mask, spec, 6))


def test_half_precision_runs_throughout_and_logits_stay_float32():
    decoder = make_decoder().to(torch.bfloat16)
    states, mask = make_text(decoder)
    cache = decoder.prepare(states, mask, 4)
    assert cache.bytes == 2 * 2 * 4 * 16 * 2
    logits = decoder.step(torch.zeros(1, 3, dtype=torch.long), cache)
    assert logits.dtype == torch.float32
    reference = make_decoder().logits(torch.zeros(1, 3, 1, dtype=torch.long), states, mask)[:, :, 0]
    torch.testing.assert_close(logits, reference.detach(), atol=0.15, rtol=0.05)


def test_logits_carry_gradients_even_after_generating():
    decoder = make_decoder()
    states, mask = make_text(decoder)
    collect(decoder, states, mask, SamplingSpec(), 3)
    decoder.logits(torch.zeros(1, 3, 4, dtype=torch.long), states, mask).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())
