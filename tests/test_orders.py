"""What can be ordered: prompts, settings, loops and files to go on from, checked before anything computes."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from studio_bench import PROMPT, RATE, tone

from studio.naming import free_path, slug
from studio.orders import Form, check_order, runs_of
from studio.sources import check_source


@pytest.mark.parametrize(
    ("prompt", "models", "own", "settings", "says"),
    [
        ("", ["teacher"], "", {}, "prompt is empty"),
        ("   \n", ["teacher"], "", {}, "prompt is empty"),
        ("x" * 10_000, ["teacher"], "", {}, "10000 characters; at most 1000"),
        ("🎹🎻 🥁", ["teacher"], "", {}, "“🎹🎻 🥁” has no words"),
        (PROMPT, ["teacher"], "", {"seconds": 0}, "seconds must be a number from 0.5 to 600, got 0"),
        (PROMPT, ["teacher"], "", {"seconds": -1}, "got -1"),
        (PROMPT, ["teacher"], "", {"seconds": 1e9}, "got 1000000000.0"),
        (PROMPT, ["teacher"], "", {"seconds": "abc"}, "got 'abc'"),
        (PROMPT, ["teacher"], "", {"seconds": None}, "got None"),
        (PROMPT, ["teacher"], "", {"seed": 1.5}, "whole number"),
        (PROMPT, [], "", {}, "no model is chosen"),
        (PROMPT, ["neighbour"], " ", {}, "no model is chosen"),
        (PROMPT, [], "m" * 400, {}, "400 characters"),
    ],
)
def test_bad_input_is_one_sentence(prompt, models, own, settings, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        check_order(prompt, models, own, settings)
    assert "\n" not in str(error.value)


def test_an_order_keeps_the_usual_order_and_adds_a_model_of_ones_own():
    order = check_order(
        f" {PROMPT} ", ["quantized", "teacher"], " facebook/musicgen-small ", {"seconds": 3, "seed": 2.0}
    )
    assert (order.prompt, order.models) == (PROMPT, ("teacher", "quantized", "facebook/musicgen-small"))
    assert (order.sampling.seconds, order.sampling.seed) == (3.0, 2)
    assert check_order(PROMPT, ["teacher"], "teacher", {}).models == ("teacher",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A calm, piano waltz!", "a-calm-piano-waltz"),
        ("Jeg älskar ../../etc", "jeg-alskar-etc"),
        ("钢琴", "clip"),
        ("long " * 40, "long-long-long-long-long-long-long-long-long"),
        ("x" * 100, "x" * 48),
    ],
)
def test_names_of_files_are_readable_and_safe(text, expected):
    assert slug(text) == expected


def test_a_taken_name_gets_a_number(tmp_path):
    for expected in ("a.wav", "a_2.wav", "a_3.wav"):
        path = free_path(tmp_path, "a")
        assert path.name == expected
        path.touch()


def test_only_short_takes_of_the_family_that_are_not_blind_play_three_times():
    assert [runs_of(model, 8.0) for model in ("teacher", "facebook/musicgen-small")] == [3, 1]
    assert [runs_of("teacher", seconds) for seconds in (30.0, 30.5, 600.0)] == [3, 1, 1]
    assert runs_of("teacher", 8.0, blind=True) == 1


def test_a_take_is_no_loop_of_a_continuation():
    with pytest.raises(ValueError, match="untick Loop or remove the file"):
        Form("sources/x.wav", 2.0, loop=True)


@pytest.mark.parametrize(
    ("seconds", "bpm", "says"), [(8, 10, "bpm must be a number from 20 to 300"), (600, None, "up to 599 seconds long")]
)
def test_a_loop_that_cannot_be_is_refused_before_it_is_ordered(seconds, bpm, says):
    with pytest.raises(ValueError, match=says):
        check_order(PROMPT, ["teacher"], "", {"seconds": seconds}, Form(loop=True, bpm=bpm))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_file_to_go_on_from_is_checked(tmp_path):
    sound = tone("teacher", 0.5)
    for ending in (".wav", ".flac", ".ogg", ".mp3"):
        soundfile.write(tmp_path / f"fine{ending}", sound.audio.T, RATE)
        assert check_source(tmp_path / f"fine{ending}") == pytest.approx(0.5, abs=0.1)
    wav = (tmp_path / "fine.wav").read_bytes()
    soundfile.write(tmp_path / "long.wav", np.zeros(601 * 100), 100)
    for path, says in (
        (write(tmp_path / "text.wav", b"no sound at all"), "the file text.wav is no WAV, MP3, FLAC or OGG file"),
        (write(tmp_path / "empty.mp3", b""), "empty.mp3 is no WAV"),
        (write(tmp_path / "cut.wav", wav[:44]), "cut.wav holds no sound"),
        (tmp_path / "gone.wav", "gone.wav is no WAV"),
        (tmp_path / "long.wav", "long.wav is 10 min 1 s long; at most 10 min are allowed"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)) as error:
            check_source(path)
        assert str(tmp_path) not in str(error.value)
