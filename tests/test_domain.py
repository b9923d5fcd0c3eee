"""The classes of the demo family and the phrases that name them."""

from itertools import product

from tinymusician_core import domain
from tinymusician_core.pretrain.arrange import INSTRUMENTS


def test_every_class_has_phrases_and_no_phrase_table_has_other_classes():
    assert set(domain.PLAYED_BY) == set(domain.INSTRUMENTS)
    assert set(domain.KIND) == set(domain.STYLES)
    assert set(domain.TEMPO) == set(domain.TEMPI)
    assert set(domain.MOOD) == set(product(domain.TEMPI, domain.MODES))
    assert len(domain.TONICS) == 12


def test_the_arranger_plays_every_instrument_of_the_domain():
    assert tuple(INSTRUMENTS) == domain.INSTRUMENTS
    assert len({i.program for i in INSTRUMENTS.values()}) == len(INSTRUMENTS)


def test_an_instrument_is_known_by_each_of_its_phrases():
    phrases = [(p, name) for name, known in domain.PLAYED_BY.items() for p in set(known)]
    assert len({p for p, _ in phrases}) == len(phrases)
    assert all(domain.PLAYED_BY[name][0] == name for name in domain.INSTRUMENTS)
