"""`tinymusician generate`: loops, continuations, and clips that are stopped with Ctrl-C."""

import json
import os
import signal

import numpy as np
import pytest

from tinymusician_core import audio, cli
from tinymusician_core.cli import show
from tinymusician_core.records import Waveform

PROMPT = "a calm piano waltz"
KEYS = {"model", "prompt", "seed", "seconds", "sample_rate_hz", "path", "figures"}


@pytest.fixture
def generate(capsys, demo_family, tmp_path, monkeypatch):
    """Run `generate` in an empty folder; gives the exit code, standard output and standard error."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments):
        try:
            code = cli.main(["generate", PROMPT, *arguments])
        except SystemExit as left:
            code = left.code
        return code, *capsys.readouterr()

    call.folder = folder
    return call


@pytest.fixture
def press_ctrl_c(monkeypatch):
    """Press Ctrl-C so many times as soon as `at` of a stage is done."""

    def when(at: float, times: int = 1, stage: str = "lm"):
        step, pressed = show.Bar.step, []

        def press(bar, who, progress):
            step(bar, who, progress)
            if progress.stage == stage and progress.done >= at * progress.total and not pressed:
                pressed.append(True)
                for _ in range(times):
                    os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(show.Bar, "step", press)

    return when


@pytest.mark.parametrize(
    ("arguments", "samples", "loop", "words"),
    [
        (["--seconds", "1.3"], 41600, {"seconds": 1.3, "beats": None, "bars": None}, "(1.3 s, a loop)"),
        (["--seconds", "2", "--bpm", "130"], 59077, {"beats": 4, "bars": 1}, "(1.8 s, a loop of 1 bar)"),
        (["--seconds", "5", "--bpm", "90"], 170667, {"beats": 8, "bars": 2}, "(5.3 s, a loop of 2 bars)"),
        (["--seconds", "0.5", "--bpm", "90"], 21333, {"beats": 1, "bars": None}, "(0.7 s, a loop of 1 beat)"),
    ],
)
def test_a_loop_has_its_exact_length_and_says_what_it_is(generate, arguments, samples, loop, words):
    code, out, err = generate("--loop", *arguments, "-o", "a.wav", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert set(record) == KEYS | {"loop"}
    assert set(record["loop"]) == {"seconds", "beats", "bars"}
    assert record["loop"] | loop == record["loop"]
    sound = audio.read("a.wav")
    assert sound.audio.shape == (1, samples)
    assert record["seconds"] == sound.seconds == pytest.approx(record["loop"]["seconds"], abs=1 / 32000)
    twice = np.tile(sound.audio, 2)[0]
    steps = np.abs(np.diff(twice))
    assert steps[samples - 1] <= np.quantile(steps, 0.999)
    assert json.loads(audio.read_tags("a.wav")["comment"])["loop"] == record["loop"]
    assert words in generate("--loop", *arguments, "-o", "b.wav")[1]
    assert (generate.folder / "a.wav").read_bytes() == (generate.folder / "b.wav").read_bytes()


@pytest.fixture
def tune(tmp_path):
    """Two seconds of a tone in stereo at 44.1 kHz, which is not what the model makes."""
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(2 * 44100) / 44100)
    return audio.write_wav(tmp_path / "tune.wav", Waveform(np.stack([tone, tone]), 44100))


def test_a_continuation_is_the_sound_and_then_new_music(generate, tiny_musicgen, tune):
    more = ("--model", str(tiny_musicgen), "--continue", str(tune), "-o", "a.wav", "--json")
    code, out, err = generate("--seconds", "1", *more)
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert set(record) == KEYS
    sound = audio.read("a.wav")
    assert record["seconds"] == sound.seconds == pytest.approx(3, abs=0.03)
    given = audio.resample(audio.read(tune), 32000).audio[:1, :60000]
    np.testing.assert_allclose(sound.audio[:, :60000], given, atol=1e-3)
    assert json.loads(audio.read_tags("a.wav")["comment"])["continues"] == "tune.wav"
    figures = record["figures"]
    assert figures["x_realtime"] == pytest.approx(1 / figures["total_s"], rel=0.01)  # the new second alone counts


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bpm", "120"], "bpm is for loops only; --loop makes one"),
        (["--loop", "--bpm", "fast"], "bpm must be a number from 20 to 300, got 'fast'"),
        (["--loop", "--bpm", "nan"], "got 'nan'"),
        (["--loop", "--seconds", "600"], "a loop can be up to 599 seconds long, got 600"),
        (["--loop", "--seconds", "0"], "seconds must be a number from 0.5 to 600, got '0'"),
        (["--loop", "--continue", "a.wav"], "not allowed with argument --loop"),
        (["--continue", "none.wav"], "no such file: none.wav"),
        (["--continue", "."], "no such file: ."),
        (["--continue", __file__], "is no WAV, FLAC, OGG or MP3 that can be read"),
    ],
)
def test_what_does_not_go_together_exits_2_with_one_sentence(generate, arguments, says):
    code, out, err = generate(*arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert list(generate.folder.iterdir()) == []


def test_ctrl_c_writes_what_was_made(generate, press_ctrl_c):
    press_ctrl_c(at=0.02)
    code, out, err = generate("--seconds", "100", "-o", "a.wav")
    assert (code, err) == (130, "")
    sound = audio.read("a.wav")
    assert 1.5 < sound.seconds < 90
    assert out == f"stopped after {sound.seconds:.1f} s; wrote a.wav\n"
    assert [path.name for path in generate.folder.iterdir()] == ["a.wav"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_with_json_says_that_it_was_stopped(generate, press_ctrl_c):
    press_ctrl_c(at=0.02)
    code, out, err = generate("--seconds", "100", "--loop", "-o", "a.wav", "--json")
    assert (code, err) == (130, "")
    record = json.loads(out)
    assert set(record) == KEYS | {"loop", "stopped"}
    assert (record["stopped"], record["loop"]) == (True, None)
    assert record["seconds"] == audio.read("a.wav").seconds < 90
    assert None not in record["figures"].values()


def test_ctrl_c_on_a_loop_says_that_it_is_none(generate, press_ctrl_c):
    press_ctrl_c(at=0.02)
    code, out, _ = generate("--seconds", "100", "--loop", "-o", "a.wav")
    assert code == 130
    assert "too soon for a loop; wrote a.wav" in out


def test_ctrl_c_before_any_music_writes_nothing(generate, press_ctrl_c):
    press_ctrl_c(at=0, stage="loading")
    code, out, err = generate("--seconds", "100", "-o", "a.wav")
    assert (code, out) == (130, "")
    assert err.startswith("tinymusician generate: stopped")
    assert err.count("\n") == 1
    assert list(generate.folder.iterdir()) == []


def test_a_second_ctrl_c_leaves_at_once(generate, press_ctrl_c):
    press_ctrl_c(at=0.02, times=2)
    assert generate("--seconds", "100", "-o", "a.wav") == (130, "", "tinymusician generate: stopped\n")
    assert list(generate.folder.iterdir()) == []
