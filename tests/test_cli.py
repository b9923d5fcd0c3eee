"""The `tinymusician` command: what it writes, what it prints, and what it says when something is wrong."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from commands import run
from rich.console import Console

from tinymusician_core import audio, cli
from tinymusician_core.cli import show
from tinymusician_core.records import Figures, Progress

PROMPT = "a calm piano waltz"
FIGURES = {"first_sound_ms", "ms_per_step", "x_realtime", "total_s", "stages_ms", "peak_memory_bytes", "disk_bytes"}
FIGURES |= {"threads", "device", "runs"}
TO = ("--data", "none", "-o", "new")


@pytest.fixture
def generate(capsys, demo_family, tmp_path):
    """Run `generate` on the tiny family for half a second."""

    def call(*more, output="a.wav"):
        path = tmp_path / output
        return (*run(capsys, "generate", PROMPT, "--seconds", "0.5", "-o", str(path), "--json", *more), path)

    return call


def test_generate_writes_the_clip_and_one_line_of_json(generate):
    code, out, err, path = generate("--seed", "7")
    assert (code, err) == (0, "")
    record = json.loads(out.splitlines()[-1])
    assert set(record) == {"model", "prompt", "seed", "seconds", "sample_rate_hz", "path", "figures"}
    assert (record["model"], record["prompt"], record["seed"], record["path"]) == ("student", PROMPT, 7, str(path))
    assert set(record["figures"]) == FIGURES
    assert set(record["figures"]["stages_ms"]) == {"text", "lm", "codec"}
    assert None not in record["figures"].values()
    sound = audio.read(path)
    assert sound.seconds == pytest.approx(0.5, abs=0.1)
    assert np.abs(sound.audio).max() > 0
    assert json.loads(audio.read_tags(path)["comment"])["seed"] == 7


def test_the_same_seed_gives_the_same_file_and_another_seed_another(generate):
    files = [generate("--seed", seed, output=name)[3].read_bytes() for seed, name in (("7", "a.wav"), ("7", "b.wav"))]
    other = generate("--seed", "8", output="c.wav")[3].read_bytes()
    assert files[0] == files[1]
    assert files[0] != other


def test_without_json_it_prints_a_table_and_without_a_name_makes_one(capsys, demo_family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "generate", f"  {PROMPT}!", "--seconds", "0.5", "--model", "teacher", "--threads", "1")
    assert code == 0
    assert "x real time" in out
    assert "wrote a-calm-piano-waltz-teacher-7.wav (0.5 s)" in out
    assert [path.name for path in tmp_path.iterdir()] == ["a-calm-piano-waltz-teacher-7.wav"]


def test_compare_gives_a_record_a_variant(capsys, demo_family, tmp_path):
    folder = tmp_path / "clips"
    code, out, err = run(
        capsys, "compare", PROMPT, "--models", "teacher, student", "--seconds", "0.5", "--runs", "1",
        "-o", str(folder), "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    variants = json.loads(out.splitlines()[-1])["variants"]
    assert [record["model"] for record in variants] == ["teacher", "student"]
    assert all(set(record["figures"]) == FIGURES for record in variants)
    assert variants[0]["figures"]["disk_bytes"] > variants[1]["figures"]["disk_bytes"]
    assert [Path(record["path"]).name for record in variants] == ["1-teacher.wav", "2-student.wav"]
    assert all(audio.read(record["path"]).seconds == pytest.approx(0.5, abs=0.1) for record in variants)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", PROMPT, "--seconds", "abc"], "'abc'"),
        (["generate", PROMPT, "--seconds", "1e9"], "'1e9'"),
        (["generate", PROMPT, "--seconds", "-1"], "'-1'"),
        (["generate", PROMPT, "--seconds", "0"], "seconds must be a number from 0.5 to 600, got '0'"),
        (["generate", PROMPT, "--seconds", "nan"], "'nan'"),
        (["generate", PROMPT, "--seed", "1.5"], "seed must be a whole number"),
        (["generate", PROMPT, "--top-k", "-3"], "'-3'"),
        (["generate", PROMPT, "--threads", "0"], "threads must be a whole number of 1 or more, got '0'"),
        (["generate", ""], "prompt is empty"),
        (["generate", "   "], "prompt is empty"),
        (["generate", "x" * 10_000], "prompt has 10000 characters; at most 1000 are allowed"),
        (["generate", PROMPT, "-o", "a.mp3"], "must be a file that ends in .wav, got 'a.mp3'"),
        (["generate", PROMPT, "-o", "no/such/a.wav"], "got 'no/such/a.wav'"),
        (["generate", PROMPT, "--loud"], "unrecognized arguments: --loud"),
        (["generate"], "required: prompt"),
        (["sing", PROMPT], "invalid choice: 'sing'"),
        ([], "required: COMMAND"),
        (["compare", PROMPT, "--models", "teacher,studnet"], "got 'studnet'"),
        (["compare", PROMPT, "--models", ""], "no such model: got ''"),
        (["compare", PROMPT, "--models", "student,student"], "each once"),
        (["quantize", "--preset", "int3", "-o", "small"], "no such preset: 'int3'; allowed: paper, int8, fast, int4"),
        (["quantize", "--plan", "no.json", "-o", "small"], "the plan no.json cannot be read"),
        (["quantize", "--model", "studnet", "-o", "small"], "no such model: got 'studnet'"),
        (["quantize"], "required: -o/--output"),
        (["distill", *TO, "--layers", "two"], "layers must be a whole number of 1 or more, got 'two'"),
        (["distill", *TO, "--layers", "1", "--minutes", "0"], "minutes must be a number above 0, got '0'"),
        (["distill", *TO, "--layers", "1", "--minutes", "nan"], "got 'nan'"),
        (["distill", *TO, "--layers", "1", "--loss", "best"], "no such loss: 'best'; allowed: stage-mixed"),
        (["distill", *TO, "--layers", "1", "--minutes", "1", "--steps", "1"], "not allowed with argument --minutes"),
        (["distill", *TO, "--layers", "1", "--teacher", "teach"], "no such model: got 'teach'"),
        (["distill", *TO, "--layers", "1"], "none"),
        (["compare", PROMPT, "--runs", "0"], "runs must be a whole number of 1 or more, got '0'"),
    ],
)
def test_a_wrong_argument_exits_2_with_one_sentence_and_no_file(
    capsys, demo_family, tmp_path, monkeypatch, arguments, says
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("prompt", "model", "code", "says"),
    [
        ("🎹🎸🥁", "student", 2, "prompt '🎹🎸🥁' has no word that this model knows"),
        (PROMPT, "flute-o-matic", 2, "no such model: got 'flute-o-matic'; allowed are teacher, student, quantized"),
        (PROMPT, ".", 2, "is no model"),
        (PROMPT, "quantized", 1, "quantized is not at"),
    ],
)
def test_a_model_or_prompt_that_cannot_be_is_one_sentence(
    capsys, demo_family, tmp_path, monkeypatch, prompt, model, code, says
):
    monkeypatch.chdir(tmp_path)
    got, out, err = run(capsys, "generate", prompt, "--model", model, "--json")
    assert (got, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_changed_weights_exit_1_and_name_the_file(capsys, tiny_family, tmp_path, monkeypatch):
    folder = tmp_path / "models"
    for part in ("student", "text", "codec"):
        (folder / part).mkdir(parents=True)
        for file in (tiny_family / part).iterdir():
            (folder / part / file.name).write_bytes(file.read_bytes())
    weights = folder / "student" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "generate", PROMPT, "--model", str(folder / "student"))
    assert code == 1
    assert f"{weights} is not the file it was" in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_ctrl_c_exits_130_and_leaves_nothing(demo_family, tmp_path):
    command = [sys.executable, "-m", "tinymusician_core.cli", "generate", PROMPT, "--seconds", "30", "-o", "a.wav"]
    environment = dict(os.environ, PYTHONPATH=str(Path(cli.__file__).parents[2]))
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    with running:
        deadline = time.monotonic() + 60
        while not psutil.Process(running.pid).children() and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=60)[1]
    assert running.returncode == 130
    assert said == "tinymusician generate: stopped while the model was loading\n"
    assert list(tmp_path.iterdir()) == []


def test_the_bar_shows_what_is_done_and_the_time_left():
    screen = io.StringIO()
    with show.bar(Console(file=screen, force_terminal=True, width=120)) as bar:
        bar.step("student [x]", Progress("loading", 0, 1, 0.0))
        for done in range(0, 101, 20):
            bar.step("student [x]", Progress("lm", done, 100, done / 50))
            time.sleep(0.12)
    text = screen.getvalue()
    assert "student [x]: loading" in text
    assert "student [x]: composing" in text
    assert "left" in text
    assert "80%" in text


def test_a_pipe_gets_no_bar():
    screen = io.StringIO()
    with show.bar(Console(file=screen)) as bar:
        bar.show("working", 1, 2)
    assert screen.getvalue() == ""


def test_what_was_not_measured_says_so(capsys):
    show.print_figures([("student", Figures(total_s=1.5, runs=3, threads=2, device="cpu"))])
    out = capsys.readouterr().out
    assert "not measured" in out
    assert "1.50 s" in out
    assert "median of 3 runs" in out
