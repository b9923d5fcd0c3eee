"""Where the time of a search goes."""

import pytest

from tinymusician_core.quant.cachefile import Measured
from tinymusician_core.quant.clock import PARTS, Clock


class Hands:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.at = 100.0

    def __call__(self):
        return self.at

    def move(self, seconds):
        self.at += seconds
        return seconds


def test_parts_add_up_and_what_was_not_done_is_none():
    hands = Hands()
    clock = Clock(hands)
    hands.move(1.0)
    with clock.part("tokens"):
        hands.move(2.0)
    assert clock.timed("measuring", hands.move, 4.0) == 4.0
    clock.timed("measuring", hands.move, seconds=8.0)
    found = clock.as_dict()
    assert found["total_s"] == 15.0
    assert list(found["parts"]) == list(PARTS)
    done = {name: part for name, part in found["parts"].items() if part is not None}
    assert done == {"tokens": {"seconds": 2.0}, "measuring": {"seconds": 12.0}}


def test_a_part_within_another_is_the_outer_ones_and_a_failure_counts_too():
    hands = Hands()
    clock = Clock(hands)

    def fail():
        hands.move(2.0)
        raise ValueError("no")

    with clock.part("comparing"):
        clock.timed("search", hands.move, 4.0)
        hands.move(1.0)
    with pytest.raises(ValueError, match="no"):
        clock.timed("search", fail)
    clock.timed("search", hands.move, 8.0)
    parts = clock.as_dict()["parts"]
    assert (parts["comparing"]["seconds"], parts["search"]["seconds"]) == (5.0, 10.0)
    with pytest.raises(ValueError, match="no such part: 'lunch'; allowed: tokens"), clock.part("lunch"):
        pass


def test_what_an_earlier_run_had_measured_is_told_apart(tmp_path):
    first = Measured("some", tmp_path)
    assert first.get("a") is None
    first.put("a", {"x": 1})
    first.put("b", {"x": 2})
    assert first.get("a") == {"x": 1}
    assert first.counts == (2, 0)
    again = Measured("some", tmp_path)
    assert again.counts == (0, 0), "what nobody asked for does not count"
    for _ in range(2):
        again.get("a")
    again.get("c")
    again.put("c", {"x": 3})
    assert again.counts == (1, 1)
    clock = Clock(Hands())
    clock.note("cost", *again.counts)
    assert clock.as_dict()["parts"]["cost"] == {"seconds": 0.0, "measured": 1, "from_earlier_runs": 1}
