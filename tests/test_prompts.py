"""The prompt sets in assets/prompts: what they ask for, and that nothing in them repeats."""

from collections import Counter
from pathlib import Path

import pytest

from tinymusician_core.domain import INSTRUMENTS, MODES, STYLES, TEMPI
from tinymusician_core.evaluate.asked import asked
from tinymusician_core.evaluate.settings import read_prompts

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "prompts"


@pytest.mark.parametrize(("name", "count"), [("in-domain", 50), ("out-of-domain", 20)])
def test_a_set_has_its_size_and_repeats_nothing(name, count):
    prompts = read_prompts(FOLDER / f"{name}.txt")
    assert len(prompts) == len(set(prompts)) == count


def test_in_domain_prompts_ask_for_everything_that_the_family_plays():
    wanted = [asked(prompt) for prompt in read_prompts(FOLDER / "in-domain.txt")]
    assert Counter(each.instrument for each in wanted).keys() == set(INSTRUMENTS)
    for attribute, classes, least in (("style", STYLES, 1), ("tempo", TEMPI, 5), ("mode", MODES, 10)):
        counts = Counter(getattr(each, attribute) for each in wanted)
        assert all(counts[name] >= least for name in classes), (attribute, counts)


def test_out_of_domain_prompts_ask_for_little_that_the_family_plays():
    wanted = [asked(prompt) for prompt in read_prompts(FOLDER / "out-of-domain.txt")]
    assert sum(each.instrument is not None for each in wanted) <= 2
