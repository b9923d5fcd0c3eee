"""What the studio shows, without a browser: words and figures, pictures, cards, and pages that give nothing away."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from studio_bench import FIGURES, RATE, ended, perform, play, row, tone

from studio import app, ballots, cards, core, wording
from studio.blind import BlindFiles
from studio.players import file_url
from studio.store import ClipRow, Take
from studio.takes import Bench, Card
from studio.trial import Pair, Preference, Vote, pairs_of
from tinymusician_core import audio
from tinymusician_core.records import Progress, SamplingSpec, Spread, Waveform


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path / "music", play)


# words and figures


def test_unknown_words_are_those_that_the_core_names(demo_family):
    import tinymusician_core as tm

    encoder = tm.load("student").modules["text_encoder"]
    for prompt in (
        "a calm piano waltz",
        "A calm hurdy-gurdy, waltz!!",
        "🎹 in G major, très doux",
        "flute? FLUTE zither.",
    ):
        assert core.unknown_words(prompt) == encoder.unknown_words(prompt)


def test_without_a_family_no_word_is_called_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYMUSICIAN_ASSETS", str(tmp_path))
    assert core.unknown_words("a zither") == []


FAMILY_WORDS = Path(__file__).resolve().parents[1] / "assets" / core.TOKENIZER


@pytest.mark.skipif(not FAMILY_WORDS.is_file(), reason="the demo family is not in assets/")
def test_the_demo_family_knows_every_word_of_the_examples(monkeypatch):
    monkeypatch.delenv("TINYMUSICIAN_ASSETS", raising=False)
    assert {prompt: core.unknown_words(prompt) for prompt in wording.EXAMPLES} == dict.fromkeys(wording.EXAMPLES, [])


def test_the_hint_names_the_words():
    assert wording.unknown_words_hint([]) == ""
    assert wording.unknown_words_hint(["zither"]) == (
        "The demo models have never seen “zither”; it will be passed over."
    )
    assert "“a”, “b” and “c”; they" in wording.unknown_words_hint(["a", "b", "c"])
    assert "and 3 more" in wording.unknown_words_hint(list("abcdefghi"))


def test_figures_are_written_with_their_units_and_never_invented():
    shown = {words.name: wording.figure_parts(words, FIGURES.as_dict()) for words in wording.FIGURES}
    assert shown == {
        "first_sound_ms": ("0.90", "s"),
        "ms_per_step": ("12.5", "ms"),
        "x_realtime": ("2.25", "× real time"),
        "peak_memory_bytes": ("not measured", ""),
        "disk_bytes": ("31.2", "MB"),
    }
    assert wording.ran_on(FIGURES.as_dict()) == "CPU, 2 threads"
    assert wording.ran_on({"device": None}) == "not measured"


def test_a_card_says_how_far_the_runs_lie_apart(tmp_path):
    three = replace(FIGURES, runs=3, spread=Spread(x_realtime=(2.0, 2.5), ms_per_step=(11.94, 13.2)))
    values = json.loads(json.dumps(three.as_dict() | three.more()))
    assert wording.apart(wording.FIGURE["ms_per_step"], values) == "11.9 to 13.2 ms in 3 runs"
    assert "Mean time of one decoder step; 11.9 to 13.2 ms in 3 runs" in cards.figures(values)
    assert wording.apart(wording.FIGURE["peak_memory_bytes"], values) == ""
    assert wording.apart(wording.FIGURE["x_realtime"], FIGURES.as_dict()) == "", "a take of an older version"
    clip = ClipRow(1, 1, 0.0, "student", "0", "gone.wav", 1.0, values)
    assert "median of 3 runs · speed 2.00 to 2.50 × real time · text 4 ms" in cards._split(clip)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min"), (125, "2 min 5 s"), (7500, "2 h 5 min")]
)
def test_waiting_times_are_for_people(seconds, expected):
    assert wording.duration(seconds) == expected


def test_settings_in_a_line_leave_out_what_is_usual():
    assert wording.setting_line(SamplingSpec(seed=3).as_dict(), {}) == "8 s · seed 3"
    assert wording.setting_line(SamplingSpec(cfg=5, top_p=0.9).as_dict(), {}) == "8 s · seed 0 · cfg 5 · top-p 0.9"
    assert wording.setting_line(SamplingSpec(greedy=True).as_dict(), {}) == "8 s · seed 0 · greedy"


def test_the_form_of_a_take_is_named():
    settings = SamplingSpec(seed=3).as_dict()
    assert wording.setting_line(settings, {"loop": True, "bpm": 92.5}) == "8 s · loop at 92.5 BPM · seed 3"
    assert wording.setting_line(settings, {"loop": True}) == "8 s · loop · seed 3"
    assert wording.setting_line(settings, {"source": "sources/1a/riff.wav"}) == "8 s · goes on from riff.wav · seed 3"

    loop = {"loop": True, "bpm": 120.0}
    assert wording.form_words(loop, 8.0) == "loop of 4 bars at 120 BPM"
    assert wording.form_words(loop, 1.5) == "loop of 3 beats at 120 BPM"
    assert wording.form_words({"loop": True}, 8.0) == "loop"


def test_a_long_wait_is_estimated_from_what_was_measured_and_says_so():
    fast, slow = {"x_realtime": 12.0}, {"x_realtime": 2.0}
    measured = {"teacher": slow, "student": fast, "odd": {"x_realtime": None}}
    assert wording.estimate(8, {"student": 3}, measured) == ""
    assert wording.estimate(600, {}, measured) == ""
    assert wording.estimate(600, {"student": 1}, measured) == "About 50 s: an estimate from the last takes."
    assert wording.estimate(600, {"teacher": 1, "student": 1, "odd": 1}, measured) == (
        "About 5 min 50 s for Teacher and Student: an estimate from the last takes; odd not measured here yet."
    )
    assert wording.estimate(20, {"teacher": 3}, measured) == "About 30 s: an estimate from the last takes."
    assert wording.estimate(60, {"quantized": 1}, {}) == "Quantized has not been measured here yet: no estimate."
    assert wording.estimate(30, {"quantized": 3}, {}) == ""


# markup


def test_what_a_person_typed_is_escaped(bench):
    nasty = '<img src=x onerror="alert(1)"> & “waltz”'
    take = Take(1, 0.0, nasty, SamplingSpec().as_dict(), ("<b>",), (row(1, "<b>"),))
    failed = Card("<b>", "failed", message=nasty)
    for markup in (cards.history([take]), cards.card(failed, bench.folder), cards.note(nasty)):
        assert "<img" not in markup
        assert "<b>" not in markup


def test_a_card_shows_every_figure_and_says_what_was_not_measured(bench):
    done = ended(perform(bench, "teacher"))["teacher"]
    markup = cards.card(done, bench.folder)
    assert re.findall(r'data-figure="(\w+)"', markup) == [words.name for words in wording.FIGURES] + ["device"]
    assert markup.count(wording.NOT_MEASURED) == 1
    assert 'download="a-calm-piano-waltz_teacher_seed7.wav"' in markup
    bench.path(done.clip).unlink()
    assert "is gone" in cards.card(done, bench.folder)
    bench.path(done.clip).write_bytes(b"no sound")
    assert "cannot be read" in cards.card(done, bench.folder)


def test_a_long_history_is_cut_off_and_says_so():
    takes = [Take(i, 0.0, "x", SamplingSpec().as_dict(), (), ()) for i in range(cards.MAX_LISTED + 5)]
    markup = cards.history(takes)
    assert markup.count("data-take=") == cards.MAX_LISTED
    assert "5 older ones are in the output folder" in markup


def test_progress_tells_stage_share_and_time_left(bench):
    working = Card("student", "working", Progress("lm", 25, 100, 10.0), waited_s=12.0, run=2, runs=3)
    markup = cards.card(working, bench.folder)
    for words in ("Composing, run 2 of 3", "25%", "about 30 s left", "12 s so far", 'aria-valuenow="25"'):
        assert words in markup
    assert "is-open" in cards.card(Card("student", "working", Progress("loading", 0, 1, 1.0)), bench.folder)


def test_the_chart_needs_two_models_and_leaves_the_unmeasured_bar_empty():
    one, two = (Card(model, "done", clip=row(place, model)) for place, model in enumerate(("teacher", "student")))
    assert cards.chart([one, Card("student", "failed")]) == ""
    markup = cards.chart([one, two])
    assert markup.count("width:0.0%") == 2
    assert markup.count(wording.NOT_MEASURED) == 2
    for words in ("Speed", "Peak memory", "Size on disk", "2.25", "31.2"):
        assert words in markup


def test_a_preference_is_told_with_its_interval():
    markup = ballots.results([Preference("teacher", "student", 6, 4, 2)])
    for words in ("6 of 10 votes that chose a side, 60% (95% interval 31% to 83%)", "No clear preference so far."):
        assert words in markup
    assert "Student is preferred" in ballots.results([Preference("teacher", "student", 1, 19, 0)])
    assert "No vote has chosen a side" in ballots.results([Preference("teacher", "student", 0, 0, 1)])


# blind pairs


@pytest.fixture
def pair(bench) -> Pair:
    perform(bench, "teacher", "student", seconds=2.0)
    (found,) = pairs_of(bench.store.takes(), bench.store.seed())
    return found


def test_blind_files_match_in_loudness_length_and_rate_and_carry_no_tags(bench, pair):
    assert abs(audio.loudness(tone("teacher")) - audio.loudness(tone("student"))) > 10
    paths = BlindFiles(bench.folder).prepare(pair)
    a, b = (audio.read(path) for path in paths)
    assert audio.loudness(a) == pytest.approx(audio.loudness(b), abs=0.1)
    assert a.audio.shape == b.audio.shape
    assert [audio.read_tags(path) for path in paths] == [{}, {}]
    assert paths[0].stat().st_size == paths[1].stat().st_size
    assert [path.relative_to(bench.folder).as_posix() for path in paths] == [
        f"listening/{pair.id}/a.wav",
        f"listening/{pair.id}/b.wav",
    ]


def test_nothing_on_a_blind_page_names_a_model(bench, pair):
    urls = [file_url(path) for path in BlindFiles(bench.folder).prepare(pair)]
    markup = ballots.trial(pair, *urls, left=1).lower().replace(str(bench.folder).lower(), "")
    for clue in (*wording.MODELS, "hash", "seed", "clips/", *(clip.file for clip in (pair.a, pair.b)), "12.5"):
        assert clue not in markup
    making = ballots.making(Card("student", "working", Progress("lm", 5, 10, 1.0)), 1, 3)
    assert "Clip 2 of 3 · composing · 50%" in making
    assert "student" not in making


def test_the_reveal_names_both_and_the_choice(pair):
    markup = ballots.reveal(pair, Vote(pair, "b", 8, 8), "a.wav", "b.wav")
    assert f"You preferred the {pair.b.model}." in markup
    assert markup.count('data-figure="ms_per_step"') == 2
    assert "no difference" in ballots.reveal(pair, Vote(pair, "same", 8, 8), "a.wav", "b.wav")


def test_a_silent_clip_makes_no_pair(bench, pair):
    audio.write_wav(bench.folder / pair.a.file, Waveform(np.zeros((1, RATE), dtype=np.float32), RATE))
    with pytest.raises(ValueError, match="silent"):
        BlindFiles(bench.folder).prepare(pair)


def test_files_of_judged_pairs_are_removed(bench, pair):
    files = BlindFiles(bench.folder)
    a, _ = files.prepare(pair)
    files.forget(["never there", pair.id])
    assert not a.exists()


def test_the_output_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYMUSICIAN_HOME", str(tmp_path / "here"))
    assert app.output_folder() == tmp_path / "here"
    assert app.output_folder(tmp_path / "there") == tmp_path / "there"
    monkeypatch.delenv("TINYMUSICIAN_HOME")
    assert app.output_folder().name == "TinyMusician"
