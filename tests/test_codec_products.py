"""The quick products against torch's plain ones, with oneDNN and without."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_codec_stream import encodec as random_encodec
from test_codec_stream import some_codes
from torch.nn import functional as F

from tinymusician_core.codec import encodec, seanet
from tinymusician_core.codec.products import MANY_ROWS, convolve, elu, linear, linear_plus


@pytest.fixture(params=[True, False], ids=["onednn", "plain"])
def onednn(request, monkeypatch):
    """Whether the operators of oneDNN may be taken."""
    if not request.param:
        monkeypatch.setattr("tinymusician_core.onednn.usable", lambda x: False)
    return request.param


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_linear_products(onednn):
    x, weight, bias, plus = randn(5, 24), randn(32, 24, seed=1), randn(32, seed=2), randn(5, 32, seed=3)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(linear_plus(x, weight, plus), F.linear(x, weight) + plus, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(linear_plus(x[:1], weight, plus[:1]), F.linear(x[:1], weight) + plus[:1])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 50, MANY_ROWS]),
    st.sampled_from([1, 3, 16]),
    st.sampled_from([1, 2, 9]),
    st.integers(1, 7),
    st.integers(1, 3),
    st.booleans(),
)
def test_a_convolution_of_any_shape_equals_conv1d(batch, count, inputs, outputs, kernel, dilation, sliced):
    weight, bias = randn(outputs, kernel, inputs, seed=1), randn(outputs, seed=2)
    x = randn(batch, count + (kernel - 1) * dilation + 3, inputs)
    x = x[:, 2:-1] if sliced else x[:, :-3].contiguous()
    expected = F.conv1d(x.transpose(1, 2), weight.transpose(1, 2), bias, dilation=dilation).transpose(1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(convolve(x, weight, bias, dilation), expected, atol=1e-4, rtol=1e-4)


def test_the_quick_elu_is_elu_and_leaves_its_input_alone():
    x = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, -1e-7, -1e4, 1e30, float("inf"), -float("inf")])])
    before = x.clone()
    torch.testing.assert_close(elu(x), F.elu(x), atol=1e-6, rtol=0)
    assert torch.equal(x, before)
    assert elu(torch.tensor([float("nan")])).isnan().all()


@pytest.mark.parametrize("batch", [1, 2])
def test_pieces_of_any_size_give_the_same_sound(batch, monkeypatch):
    _, codec = random_encodec()
    codes = some_codes(codec, 41, batch)
    whole = codec.decode(codes)
    monkeypatch.setattr(seanet, "FEWEST_ROWS", 3)
    for piece, chunk in ((2**6, 500), (2**10, 500), (2**20, 7), (2**8, 1)):
        monkeypatch.setattr(seanet, "PIECE", piece)
        monkeypatch.setattr(encodec, "CHUNK_FRAMES", chunk)
        torch.testing.assert_close(codec.decode(codes), whole, atol=1e-5, rtol=1e-5)


def test_without_onednn_a_codec_sounds_the_same(monkeypatch):
    _, codec = random_encodec()
    codes = some_codes(codec, 30, 2)
    quick = codec.decode(codes)
    monkeypatch.setattr("tinymusician_core.onednn.usable", lambda x: False)
    torch.testing.assert_close(codec.decode(codes), quick, atol=1e-5, rtol=1e-5)
