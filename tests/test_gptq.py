"""GPTQ against the same thing done slowly, and against what it is for: products that stay close."""

import pytest
import torch
from torch import nn

from tinymusician_core.quant.gptq import DAMPING, best_grid, gptq_groups, gptq_rows
from tinymusician_core.quant.int4 import GROUP, int4_groups, int4_rows, nearest
from tinymusician_core.quant.schemes import from_tensors, pack, to_tensors


def inputs(count, width, seed=0):
    """Inputs that lie mostly in a few directions, as a model's do."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(count, 8, generator=generator) @ torch.randn(8, width, generator=generator)
    return few + 0.3 * torch.randn(count, width, generator=generator)


def unpacked(nibbles, scales, width):
    numbers = torch.stack((nibbles & 15, nibbles >> 4), dim=2).flatten(1).float() - 8.0
    groups = numbers.unflatten(1, (scales.shape[1], -1)) * scales[..., :1].float() + scales[..., 1:].float()
    return groups.flatten(1)[:, :width]


def slow_twin(weight, moment):
    """One group: after each input the inverse over those that are left, taken anew (Frantar et al. 2023, eq. 2)."""
    rest, width = weight.double().clone(), weight.shape[1]
    damped = moment.double() + DAMPING * moment.double().diagonal().mean() * torch.eye(width, dtype=torch.float64)
    scale, middle = best_grid(weight.clone(), damped.diagonal().float())
    made = torch.empty_like(rest)
    for i in range(width):
        inverse = torch.linalg.inv(damped[i:, i:])
        number = nearest(rest[:, i].float(), scale, middle).double()
        made[:, i] = (number - 8.0) * scale.double() + middle.double()
        rest[:, i:] -= ((rest[:, i] - made[:, i]) / inverse[0, 0]).unsqueeze(1) * inverse[0].unsqueeze(0)
    return made.float()


def test_it_is_what_the_paper_says():
    weight, x = torch.randn(12, GROUP, generator=torch.Generator().manual_seed(1)), inputs(300, GROUP)
    moment = x.T @ x
    found, wanted = unpacked(*gptq_groups(weight, moment), GROUP), slow_twin(weight, moment)
    assert float((found == wanted).float().mean()) > 0.98  # a tie may fall to either side
    torch.testing.assert_close(x @ found.T, x @ wanted.T, rtol=0.1, atol=0.5)


@pytest.mark.parametrize("size", [(40, 128), (24, 100), (9, 70)])
def test_products_stay_closer_than_with_the_nearest_numbers(size):
    weight = torch.randn(*size, generator=torch.Generator().manual_seed(2))
    seen, unseen = inputs(1200, size[1]).chunk(2)
    near, gptq = unpacked(*int4_groups(weight), size[1]), unpacked(*gptq_groups(weight, seen.T @ seen), size[1])

    def off(kept):
        return float((unseen @ (kept - weight).T).norm())

    assert off(gptq) < 0.75 * off(near)
    rows = [
        numbers.float() * scale.float().unsqueeze(1)
        for numbers, scale in (int4_rows(weight), gptq_rows(weight, seen.T @ seen))
    ]
    assert off(rows[1]) < 0.75 * off(rows[0])


def test_inputs_that_never_come_do_no_harm():
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(3))
    x = inputs(50, 64)
    x[:, 10:20] = 0.0
    found = unpacked(*gptq_groups(weight, x.T @ x), 64)
    assert torch.isfinite(found).all()
    silent = unpacked(*gptq_groups(weight, torch.zeros(64, 64)), 64)
    assert float((silent - weight).abs().max()) < 1.0


def test_bad_moments_are_refused():
    weight = torch.randn(4, 8)
    with pytest.raises(ValueError, match=r"must be finite and \[8, 8\], got \[7, 7\]"):
        gptq_groups(weight, torch.eye(7))
    with pytest.raises(ValueError, match="finite"):
        gptq_groups(weight, torch.full((8, 8), float("nan")))
    with pytest.raises(ValueError, match="the weights are not finite"):
        gptq_groups(weight / 0.0, torch.eye(8))


def test_a_packed_layer_is_stored_as_it_was_rounded():
    torch.manual_seed(0)
    layer, x = nn.Linear(100, 40), inputs(200, 100)
    moment = x.T @ x
    tensors = to_tensors(layer, "int4", moment)
    assert not torch.equal(tensors["nibbles"], to_tensors(layer, "int4")["nibbles"])
    with torch.inference_mode():
        assert torch.equal(from_tensors(layer, "int4", tensors)(x), pack(layer, "int4", moment)(x))
    layer, moment = nn.Linear(96, 40), moment[:96, :96].contiguous()
    tensors = to_tensors(layer, "int4-row", moment)
    with torch.inference_mode():
        assert torch.equal(
            from_tensors(layer, "int4-row", tensors)(x[:, :96]), pack(layer, "int4-row", moment)(x[:, :96])
        )
    for scheme in ("int8", "fp16"):  # they round without moments
        plain, same = to_tensors(layer, scheme), to_tensors(layer, scheme, moment)
        assert all(torch.equal(tensor, same[name]) for name, tensor in plain.items())
