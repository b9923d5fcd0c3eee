"""The score as codes: melody with ages, and what accompanies it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tinymusician_core.codec.spectral import count_ages
from tinymusician_core.pretrain.accompany import BASS, CHORDS, DRUMS, LEAD, Note, Track
from tinymusician_core.pretrain.arrange import Facts, Piece
from tinymusician_core.pretrain.notes import (
    AGES,
    DRUM,
    LOW_PITCH,
    NOTES,
    PART,
    PITCHES,
    Companies,
    HarmonyStates,
    Vocabulary,
    melody_codes,
    melody_groups,
    players_of,
    states_of,
    unlikeness,
    vocabulary,
)

FACTS = Facts("flute", "air", "3/4", "slow", 60, 0, "major", "band", "piano", "middle")
MELODY = Track(LEAD, 73, (Note(0, 10, 60, 80), Note(10, 12, 60, 80), Note(14, 16, 62, 80)))
CHORD = Track(CHORDS, 0, (Note(2, 5, 48, 60), Note(2, 5, 52, 60)))
PIECE = Piece("p", "t", "train", 20, (0,), (MELODY, CHORD), FACTS)


def code(pitch, age):
    return 1 + AGES * (pitch - LOW_PITCH) + age


def test_a_melody_is_pitch_and_age_and_zero_where_it_rests():
    first = [code(60, min(age, AGES - 1)) for age in range(10)]
    again = [code(60, 0), code(60, 1)]
    assert melody_codes(PIECE).tolist() == [*first, *again, 0, 0, code(62, 0), code(62, 1), 0, 0, 0, 0]
    assert melody_codes(PIECE).max() < 512


def test_written_ages_are_counted_ones():
    codes = torch.from_numpy(melody_codes(PIECE))[None]
    assert torch.equal(count_ages(codes, AGES), codes)


def test_a_note_that_the_codec_has_no_entry_for_is_refused():
    high = replace(PIECE, tracks=(Track(LEAD, 73, (Note(0, 4, LOW_PITCH + PITCHES, 80),)),))
    with pytest.raises(ValueError, match="MIDI pitch 96; the codec knows 36 to 95"):
        melody_codes(high)


def test_later_ages_of_a_note_sound_alike_and_no_two_notes_do():
    groups = melody_groups(512).tolist()
    used = groups[: 1 + AGES * PITCHES]
    assert used[0] == 0
    assert len(set(used)) == 1 + 4 * PITCHES
    for row in range(PITCHES):
        ages = used[1 + AGES * row :][:AGES]
        assert len(set(ages[:4])) == 4
        assert set(ages[3:]) == {ages[3]}
    assert len(set(groups[1 + AGES * PITCHES :])) == 1
    assert groups[-1] not in used


def test_states_say_what_sounds_what_begins_and_which_drums_are_hit():
    drums = Track(DRUMS, 0, (Note(2, 5, 36, 80),))
    bass = Track(BASS, 32, (Note(3, 4, 40, 80),))
    states = states_of(replace(PIECE, tracks=(MELODY, CHORD, bass, drums)))
    assert states[0] == ()
    assert states[2] == (2 * 48 + 1, 2 * 52 + 1, DRUM + 36)
    assert states[3] == (2 * 40 + 1, 2 * 48, 2 * 52)
    assert states[4] == (2 * 48, 2 * 52)
    assert states[5] == ()


def test_the_commonest_states_have_codes_and_others_that_of_the_most_like_them():
    other = Track(CHORDS, 0, (Note(0, 1, 48, 60), Note(0, 1, 52, 60), Note(6, 7, 70, 60)))
    unseen = replace(PIECE, split="test", tracks=(MELODY, other))
    harmony = HarmonyStates.of([PIECE, PIECE, unseen], 3)
    assert harmony.states == ((), (2 * 48, 2 * 52), (2 * 48 + 1, 2 * 52 + 1))
    assert harmony.codes(PIECE).tolist() == [0, 0, 2, 1, 1] + 15 * [0]
    assert harmony.codes(unseen)[0] == 2
    assert harmony.codes(unseen)[6] == 0


def test_other_notes_are_less_like_than_other_attacks_and_those_than_drums():
    chord = (96, 104)
    apart = [unlikeness(chord, other) for other in (chord, (96, 104, DRUM + 36), (97, 104), (96, 106))]
    assert apart == sorted(set(apart))
    assert apart[0] == 0


def test_who_plays_is_one_code_of_a_piece_and_an_unknown_company_keeps_its_lead():
    solo = replace(PIECE, tracks=(MELODY,))
    violin = replace(PIECE, tracks=(replace(MELODY, program=40), CHORD))
    with_harp = replace(PIECE, split="test", tracks=(MELODY, replace(CHORD, program=46)))
    companies = Companies.of([PIECE, PIECE, solo, violin, violin, violin, with_harp], 8)
    assert companies.companies == ((40, 2 * PART), (73, 2 * PART), (73,))
    assert [companies.code(p) for p in (violin, PIECE, solo)] == [0, 1, 2]
    assert companies.code(with_harp) == 2, "the flute alone is nearer than a violin with a piano"
    drums = replace(PIECE, tracks=(MELODY, Track(DRUMS, 9, (Note(0, 3, 36, 80),))))
    assert players_of(drums) == (73, 4 * PART)


def test_companies_with_a_part_in_common_have_vectors_in_common():
    companies = Companies(((40, 256), (73, 256), (40,), (73,)))
    vectors = companies.vectors(6, 16, 0.5)
    assert torch.equal(vectors, companies.vectors(6, 16, 0.5))
    torch.testing.assert_close(vectors[0] - vectors[2], vectors[1] - vectors[3])
    assert torch.cdist(vectors, vectors)[:4, 4:].min() > torch.cdist(vectors[:4], vectors[:4]).max()


def test_a_work_folder_keeps_the_vocabulary_that_it_was_begun_with(tmp_path):
    first = vocabulary(tmp_path, [PIECE], 3)
    assert first == Vocabulary.of([PIECE], 3)
    assert vocabulary(tmp_path, [replace(PIECE, tracks=(MELODY,))], 3) == first
    codes = first.codes(PIECE)
    assert codes.shape == (NOTES, PIECE.frames)
    np.testing.assert_array_equal(codes[0], melody_codes(PIECE))
    assert codes[1].max() == 2
    assert set(codes[2]) == {0}
