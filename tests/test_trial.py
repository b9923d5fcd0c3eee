"""Blind trials: who is paired with whom, an order that tells nothing, votes that count, and honest intervals."""

import math
from dataclasses import replace

import pytest

from studio.store import ClipRow, Take, VoteRow
from studio.trial import Pair, Preference, Vote, next_pair, pairs_of, preferences, unveiled, wilson
from tinymusician_core.records import SamplingSpec

SEED = "a secret"
FAMILY = ("teacher", "student", "quantized")


def clip(number: int, model: str, take: int = 1, audio_s: float = 8.0, model_hash: str = "h") -> ClipRow:
    return ClipRow(number, take, 0.0, model, model_hash, f"clips/{number}.wav", audio_s, {})


def take(number: int, models=FAMILY, prompt: str = "a waltz", blind: bool = False, **settings) -> Take:
    clips = tuple(clip(10 * number + place, model, number) for place, model in enumerate(models))
    return Take(number, 0.0, prompt, SamplingSpec(**settings).as_dict(), tuple(models), clips, blind)


def vote(pair: Pair, choice: str = "a") -> VoteRow:
    return Vote(pair, choice, 8.0, 8.0).row()


def test_three_models_make_three_pairs():
    pairs = pairs_of([take(1)], SEED)
    met = {frozenset((pair.a.model, pair.b.model)) for pair in pairs}
    assert len(pairs) == 3
    assert met == {frozenset(two) for two in (FAMILY[:2], FAMILY[1:], FAMILY[::2])}


def test_what_was_stopped_looped_or_continued_is_not_judged():
    whole = take(1, ["teacher", "student"])
    stopped = replace(take(2, ["student"]), clips=(replace(clip(20, "student"), stopped=True),))
    (pair,) = pairs_of([whole, stopped], SEED)
    assert {pair.a.id, pair.b.id} == {10, 11}  # the whole clip, though the stopped one is newer
    for form in ({"loop": True}, {"source": "sources/1/riff.wav", "source_s": 2.0}):
        assert pairs_of([replace(whole, form=form)], SEED) == []


def test_only_clips_of_the_same_prompt_and_settings_meet():
    takes = [take(1, ["teacher"]), take(2, ["student"], prompt="a jig"), take(3, ["student"], seed=9)]
    assert pairs_of(takes, SEED) == []
    (pair,) = pairs_of([*takes, take(4, ["quantized"])], SEED)
    assert {pair.a.model, pair.b.model} == {"teacher", "quantized"}


def test_of_a_model_that_played_twice_the_newest_clip_counts():
    (pair,) = pairs_of([take(2, ["teacher", "student"]), take(1, ["teacher"])], SEED)
    assert {pair.a.id, pair.b.id} == {20, 21}


def test_the_same_seed_gives_the_same_pairs_whatever_order_they_are_read_in():
    takes = [take(1), take(2, seed=1), take(3, seed=2)]
    assert pairs_of(takes, SEED) == pairs_of(takes[::-1], SEED)
    assert {pair.id for pair in pairs_of(takes, SEED)}.isdisjoint(pair.id for pair in pairs_of(takes, "another"))


def test_either_model_comes_first_about_as_often():
    pairs = pairs_of([take(number, FAMILY[:2], seed=number) for number in range(400)], SEED)
    first = sum(pair.a.model == "teacher" for pair in pairs)
    assert 160 <= first <= 240
    assert len({pair.id for pair in pairs}) == 400


def test_the_id_of_a_pair_can_only_be_told_with_the_seed():
    (pair,) = pairs_of([take(1, FAMILY[:2])], SEED)
    assert len(pair.id) == 16
    assert int(pair.id, 16) >= 0


def test_the_least_judged_match_up_is_next():
    pairs = pairs_of([take(1), take(2, seed=1)], SEED)
    votes, met = [], []
    while (pair := next_pair(pairs, votes)) is not None:
        met.append(frozenset((pair.a.model, pair.b.model)))
        votes.append(vote(pair))
    assert len(met) == 6
    assert len(set(met[:3])) == 3
    assert next_pair([], []) is None


def test_a_pair_stays_until_it_is_judged():
    pairs = pairs_of([take(1), take(2, seed=1)], SEED)
    first = next_pair(pairs, [])
    assert next_pair(pairs, []) == first
    assert next_pair(pairs, [vote(first)]) != first


@pytest.mark.parametrize(("choice", "heard"), [("a", (4.0, 4.0)), ("same", (8.0, 4.0)), ("b", (4.0, 3.96))])
def test_a_vote_after_enough_listening_counts(choice, heard):
    (pair,) = pairs_of([take(1, FAMILY[:2])], SEED)
    row = Vote(pair, choice, *heard).row()
    assert (row.pair, row.choice, row.model_a, row.clip_b) == (pair.id, choice, pair.a.model, pair.b.id)


@pytest.mark.parametrize(
    ("choice", "heard", "says"),
    [
        ("c", (8, 8), "got 'c'"),
        ("a", (3.0, 8), "4.0 s of A"),
        ("b", (8, 0.0), "4.0 s of B"),
        ("a", (math.nan, 8), "of A"),
        ("a", (8, math.inf), "of B"),
    ],
)
def test_a_vote_that_does_not_count_says_why(choice, heard, says):
    (pair,) = pairs_of([take(1, FAMILY[:2])], SEED)
    with pytest.raises(ValueError, match=says):
        Vote(pair, choice, *heard)


def test_of_a_short_clip_most_must_be_heard():
    pair = Pair("id", "a waltz", clip(1, "teacher", audio_s=2.0), clip(2, "student", audio_s=3.0))
    assert pair.needed_s == pytest.approx(1.8)


def test_votes_add_up_whichever_side_a_model_was_on():
    pairs = pairs_of([take(number, FAMILY[:2], seed=number) for number in range(20)], SEED)
    assert {pair.a.model for pair in pairs} == {"teacher", "student"}
    votes = [vote(pair, "a" if pair.a.model == "student" else "b") for pair in pairs[:12]]
    votes += [vote(pair, "a" if pair.a.model == "teacher" else "b") for pair in pairs[12:17]]
    votes += [vote(pair, "same") for pair in pairs[17:]]
    assert preferences(votes, FAMILY) == [Preference("teacher", "student", 5, 12, 3)]
    (found,) = preferences(votes, FAMILY)
    assert (found.votes, found.decided, found.share) == (20, 17, 5 / 17)
    assert preferences(votes) == [Preference("student", "teacher", 12, 5, 3)]


def test_another_version_of_a_model_is_another_model():
    old = Pair("1", "x", clip(1, "teacher", model_hash="0" * 16), clip(2, "student"))
    new = Pair("2", "x", clip(3, "teacher", model_hash="f" * 16), clip(4, "student"))
    names = [(row.first, row.second) for row in preferences([vote(old), vote(new)], FAMILY)]
    assert sorted(names) == [("student", "teacher (00000000)"), ("student", "teacher (ffffffff)")]


@pytest.mark.parametrize(
    ("wins", "total", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (50, 100, 0.4038, 0.5962)]
)
def test_wilson_agrees_with_published_values(wins, total, low, high):
    assert wilson(wins, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("total", [1, 2, 7, 40])
def test_wilson_ends_are_where_the_score_test_stands_at_its_limit(total):
    z = 1.959963984540054
    for wins in range(total + 1):
        low, high = wilson(wins, total)
        assert 0 <= low <= wins / total <= high <= 1
        for end in (low, high):
            if 1e-9 < end < 1 - 1e-9:
                assert abs(wins / total - end) == pytest.approx(z * math.sqrt(end * (1 - end) / total))


@pytest.mark.parametrize(("wins", "total"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_what_is_no_share(wins, total):
    with pytest.raises(ValueError, match="got"):
        wilson(wins, total)


def test_a_preference_is_only_named_beyond_chance():
    assert Preference("x", "y", 6, 4, 0).leader is None
    assert Preference("x", "y", 18, 2, 0).leader == "x"
    assert Preference("x", "y", 2, 18, 5).leader == "y"
    undecided = Preference("x", "y", 0, 0, 4)
    assert (undecided.share, undecided.interval, undecided.leader) == (None, None, None)


def test_a_take_made_for_listening_is_named_once_it_is_judged_through():
    named, blind = take(1), take(2, blind=True, seed=2)
    pairs = pairs_of([blind], SEED)
    votes = [vote(pair) for pair in pairs]
    assert unveiled([named, blind], []) == [named]
    assert unveiled([named, blind], votes[:2]) == [named]
    assert unveiled([named, blind], votes) == [named, blind]
