import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinymusician_core.delay import delay, pattern, undelay, valid


def test_the_pattern_of_the_paper():
    codes = torch.tensor([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]])
    delayed, mask = delay(codes, pattern(3), pad=0)
    assert delayed.tolist() == [[[1, 2, 3, 0, 0], [0, 4, 5, 6, 0], [0, 0, 7, 8, 9]]]
    assert torch.equal(mask, delayed[0] != 0)


def test_stereo_codebooks_go_in_pairs():
    assert pattern(8, 2) == (0, 0, 1, 1, 2, 2, 3, 3)


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.sampled_from([1, 2]), st.integers(0, 2**31))
def test_undelay_takes_back_what_delay_did(batch, codebooks, frames, channels, seed):
    delays = pattern(codebooks * channels, channels)
    codes = torch.randint(0, 50, (batch, len(delays), frames), generator=torch.Generator().manual_seed(seed))
    delayed, mask = delay(codes, delays, pad=50)
    assert delayed.shape == (batch, len(delays), frames + max(delays))
    assert torch.equal(undelay(delayed, delays), codes)
    assert torch.equal(mask, valid(delays, frames))
    assert torch.equal((delayed != 50).all(dim=0), mask)
    assert mask.sum() == codes[0].numel()


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"codes must have the shape \[batch, 4, frames\], got \(1, 3, 5\)"):
        delay(torch.zeros(1, 3, 5, dtype=torch.long), pattern(4), 9)
    with pytest.raises(ValueError, match="more than 3 positions, got 3"):
        undelay(torch.zeros(1, 4, 3, dtype=torch.long), pattern(4))
    with pytest.raises(ValueError, match="codebooks must be 1 or more"):
        pattern(0)
    with pytest.raises(ValueError, match="even number of codebooks"):
        pattern(3, 2)
