"""How a tune is played through, and what plays under it."""

import random
from dataclasses import replace

import pytest

from tinymusician_core.pretrain.accompany import (
    DRONES,
    ENSEMBLES,
    INSTRUMENTS,
    SCALE,
    Company,
    Ground,
    Note,
    accompany,
    choose_company,
    harmonise,
    partners,
    third_below,
)
from tinymusician_core.pretrain.arrange import arrange, in_minor
from tinymusician_core.pretrain.form import bar_starts, bars_of, bars_that_fill, one_pass, play
from tinymusician_core.pretrain.scores import Tune

UPBEAT, BAR, BARS = 1.0, 3.0, 16


@pytest.fixture
def tune():
    """Sixteen bars of 3/4 with an upbeat; the last bar leaves room for it."""
    notes = [(0.0, UPBEAT, 60)]
    notes += [(UPBEAT + b * BAR + q, 1.0, 62 + b % 5 + int(q)) for b in range(BARS - 1) for q in (0.0, 1.0, 2.0)]
    notes.append((UPBEAT + (BARS - 1) * BAR, BAR - UPBEAT, 67))
    bars = tuple(UPBEAT + b * BAR for b in range(BARS - 1))
    return Tune("x" * 12, "book", "Test", "waltz", "3/4", BAR, 0, "major", tuple(notes), bars)


def test_the_last_bar_counts_and_makes_room_for_the_upbeat(tune):
    bars, upbeat = bars_of(tune)
    assert len(bar_starts(tune)) == len(bars) == BARS
    assert upbeat == [(2.0, 1.0, 60)]
    assert bars[-1] == [(0.0, 2.0, 67)]
    full = replace(tune, notes=(*tune.notes[:-1], (*tune.notes[-1][:1], BAR, 67)))
    assert bars_of(full)[1] == []


def test_a_bar_split_at_a_repeat_is_whole_again_and_a_stray_upbeat_is_left_out(tune):
    assert bar_starts(replace(tune, bars=tuple(b for b in tune.bars if b != tune.bars[7]))) == bar_starts(tune)
    later = [(a + 1.0 if a > tune.bars[8] - 0.1 else a, d, p) for a, d, p in tune.notes]
    bars = tuple(b + 1.0 if b > tune.bars[8] - 0.1 else b for b in tune.bars)
    moved = replace(tune, notes=tuple(later), bars=bars)
    assert bars_of(moved)[0] == bars_of(tune)[0]


def test_two_parts_are_each_repeated_or_played_through():
    orders = {tuple(one_pass(16, random.Random(seed))) for seed in range(20)}
    a, b = tuple(range(8)), tuple(range(8, 16))
    assert orders == {a + b, a + a + b + b}
    assert one_pass(12, random.Random(0)) == list(range(12))


def test_pieces_end_where_a_pass_or_a_part_ends():
    assert bars_that_fill(16, 50) == 48
    assert bars_that_fill(32, 45) == 32
    assert bars_that_fill(32, 26) == 24
    assert bars_that_fill(16, 7) == 4
    assert bars_that_fill(16, 3) == 3


def test_a_tune_is_played_again_and_again_in_time(tune):
    straight = next(r for seed in range(9) if one_pass(16, random.Random(seed)) == list(range(16)) for r in [seed])
    notes, count = play(tune, 35, random.Random(straight))
    assert count == 32
    assert notes[0] == (0.0, 1.0, 62)
    assert (47.0, 1.0, 60) in notes
    assert notes[-1] == (31 * BAR, BAR, 67)
    first = [n for n in notes if n[0] < 45]
    again = [(a - 48.0, d, p) for a, d, p in notes if 48 <= a < 93]
    assert first == again
    assert all(a + d <= following + 1e-9 for (a, d, _), (following, _, _) in zip(notes, notes[1:], strict=False))


def test_a_major_tune_in_minor_has_a_minor_third_sixth_and_seventh(tune):
    scale = replace(tune, notes=tuple((float(i), 1.0, 60 + p) for i, p in enumerate((0, 2, 4, 5, 7, 9, 11, 12))))
    minor = in_minor(scale)
    assert minor.mode == "minor"
    assert [p - 60 for _, _, p in minor.notes] == [0, 2, 3, 5, 7, 8, 10, 12]


def test_the_third_below_stays_in_the_scale():
    for mode, scale in SCALE.items():
        for tonic in range(12):
            for step, above in enumerate(scale):
                lower = third_below(60 + tonic + above, tonic, mode)
                assert (lower - tonic) % 12 == scale[(step - 2) % 7]
                assert 3 <= 60 + tonic + above - lower <= 4
    assert third_below(61, 0, "major") == third_below(60, 0, "major") == 57


def test_chords_are_those_of_the_notes_that_sound():
    notes = [Note(0, 10, 60, 80), Note(10, 20, 67, 80), Note(20, 30, 60, 80)]
    bars = [(0, 10), (10, 20), (20, 30)]
    chords = harmonise(notes, bars, 0, "major")
    assert chords[0] == chords[2] == (0, "M")
    over = harmonise([Note(0, 30, 65, 80)], bars, 0, "major")
    assert over[1] == (5, "M")


LEAD = [Note(i * 8, i * 8 + 8, 72 + i % 5, 90) for i in range(24)]
GROUND = Ground(tuple((i * 24, i * 24 + 24) for i in range(8)), "3/4", 0, "major", 8)


@pytest.mark.parametrize(
    ("company", "roles"),
    [
        (Company("solo"), []),
        (Company("chords", "strings", "held"), ["chords"]),
        (Company("chords", "harp", "broken"), ["chords"]),
        (Company("band", "piano", "struck"), ["chords", "bass", "drums"]),
        (Company("octaves", "cello"), ["second"]),
        (Company("harmony", "clarinet"), ["second"]),
        (Company("drone", "organ"), ["second"]),
        (Company("ensemble", "winds"), ["second", "bass"]),
    ],
)
def test_every_texture_has_its_tracks_within_the_bars(company, roles):
    tracks = accompany(LEAD, GROUND, company, "waltz")
    assert [t.role for t in tracks] == roles
    for track in tracks:
        assert track.notes
        assert all(0 <= n.start < n.end <= 192 for n in track.notes)


def test_a_held_chord_lasts_a_bar_and_a_broken_one_never_sounds_with_another_note():
    held, broken = (accompany(LEAD, GROUND, Company("band", "harp", p), "waltz")[0].notes for p in ("held", "broken"))
    assert len(held) == 24
    assert {n.end - n.start for n in held} == {24}
    assert sorted(n.start for n in broken) == list(range(0, 192, 4))
    assert {n.end - n.start for n in broken} == {4}


def test_partners_can_play_every_note_and_do_not_outlast_the_lead():
    found = partners(LEAD, INSTRUMENTS["violin"], "octaves", 0, "major")
    assert "violin" not in found
    assert "flute" not in found  # its lowest note is above 60
    assert {"cello", "guitar", "clarinet", "oboe"} <= set(found)
    assert not any(INSTRUMENTS[n].sustained for n in partners(LEAD, INSTRUMENTS["harp"], "octaves", 0, "major"))


def test_company_suits_the_lead():
    seen = {}
    for instrument in INSTRUMENTS.values():
        for seed in range(60):
            company = choose_company(LEAD, instrument, 0, "major", random.Random(seed))
            seen.setdefault(company.texture, set()).add(instrument.name)
            assert company.accompanist != instrument.name
            if company.texture == "ensemble":
                assert instrument.name in ENSEMBLES[company.accompanist]
            if company.texture == "drone":
                assert company.accompanist in DRONES
    assert set(seen) == {"solo", "chords", "band", "octaves", "harmony", "drone", "ensemble"}
    assert len(seen["solo"]) == len(INSTRUMENTS)


def test_arrangements_of_a_tune_are_for_different_instruments(tune):
    pieces = [arrange(tune, n) for n in range(len(INSTRUMENTS))]
    assert {p.facts.instrument for p in pieces} == set(INSTRUMENTS)
    assert len({p.id for p in pieces}) == len(pieces)
