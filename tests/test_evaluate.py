"""An evaluation from end to end on tiny models: its records, its figures, a kill in the middle, a stop, its files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from evaluation import make_assets, quick_judges, records
from test_cli import FIGURES, run
from test_embedders import save_tiny_clap

import tinymusician_core as tm
from tinymusician_core.cli.command import command_line
from tinymusician_core.evaluate.jury import Judged
from tinymusician_core.evaluate.listener import Listener
from tinymusician_core.evaluate.retention import likelihood_kept, retention
from tinymusician_core.evaluate.run import evaluate
from tinymusician_core.evaluate.summary import FIGURES as QUALITY
from tinymusician_core.records import Cancelled

MODELS = ("teacher", "student")
QUICK = {"models": MODELS, "clips": 20, "seconds": 1, "speed": False}
ONE = QUICK | {"models": ("student",)}
COMMAND = ("evaluate", "--models", "teacher,student", "--clips", "20", "--seconds", "1", "--no-speed")
QUICK_COMMAND = """import sys, evaluation, pytest
from tinymusician_core.cli import main
evaluation.quick_judges(pytest.MonkeyPatch())
sys.exit(main(sys.argv[1:]))
"""
FILES = {"report.json", "report.md", "quality-size.png", "quality-speed.png"}


@pytest.fixture(autouse=True, scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        quick_judges(patch)
        yield


@pytest.fixture(scope="module")
def assets(quick, tiny_family, tmp_path_factory):
    return make_assets(tmp_path_factory.mktemp("evaluate"), tiny_family)


@pytest.fixture(autouse=True)
def tiny_assets(assets, monkeypatch):
    monkeypatch.setenv("TINYMUSICIAN_ASSETS", str(assets))


@pytest.fixture(scope="module")
def whole(assets, tmp_path_factory):
    """A folder with a run that nothing disturbed, and its evaluation."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYMUSICIAN_ASSETS", str(assets))
        return folder, evaluate(**QUICK, output=folder, command=command_line((*COMMAND, "-o", str(folder))))


def environment_here() -> dict[str, str]:
    """The environment of a process that finds both the package and these tests."""
    folder = Path(__file__).resolve().parent
    return dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder), str(folder.parent)]))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_clip_and_window_has_a_record(whole):
    folder, _ = whole
    assert {path.name for path in folder.iterdir()} == {"settings.json", "1-teacher", "2-student", *FILES}
    for name in ("1-teacher", "2-student"):
        clips, windows = (records(folder / name / file) for file in ("clips.jsonl", "tokens.jsonl"))
        assert [clip["index"] for clip in clips] == [clip["seed"] for clip in clips] == list(range(20))
        assert [window["index"] for window in windows] == list(range(20))
        assert all(len(window["nll"]) == 4 for window in windows)
    assert [window["kl"] for window in records(folder / "1-teacher" / "tokens.jsonl")] == [None] * 20
    assert all(min(window["kl"]) > 0 for window in windows)


def test_the_public_name_is_the_function():
    with pytest.raises(ValueError, match="at least one name, each once"):
        tm.evaluate(models=())


def test_a_clip_is_what_generate_makes_of_its_prompt_and_seed(whole):
    folder, _ = whole
    record = records(folder / "2-student" / "clips.jsonl")[3]
    clip = tm.generate(tm.load("student"), record["prompt"], seconds=1, seed=3)
    heard = Listener.from_folder().hear(clip.audio, clip.sample_rate_hz)
    np.testing.assert_array_equal(Judged.from_record(record).embedding, heard.embedding)


def test_figures_have_intervals_and_belong_together(whole):
    made = whole[1].as_dict()
    assert [variant["model"] for variant in made["variants"]] == list(MODELS)
    teacher, student = (variant["quality"] for variant in made["variants"])
    for quality in (teacher, student, *(each["quality"] for each in made["baselines"])):
        for name in QUALITY:
            figure = quality[name]
            if figure is not None:
                assert figure["low"] <= figure["value"] <= figure["high"], name
                assert figure["n"] in (20, 32)
    assert teacher["kl_to_teacher"] is None
    assert teacher["clap_score"] is None
    assert teacher["perplexity"]["value"] == pytest.approx(np.exp(teacher["nll"]["value"]))
    assert np.mean([each["value"] for each in student["nll_per_codebook"]]) == pytest.approx(student["nll"]["value"])
    assert [each["name"] for each in made["baselines"]] == ["real audio", "codec round trip"]
    assert set(made["codec"]) == {"log_mel_l1", "si_sdr_db"}
    assert set(made["judges"]) == {"listener", "second opinion"}


def test_retention_is_what_its_definition_says(whole):
    made = whole[1].as_dict()
    kept, (teacher, student) = made["retention"]["student/teacher"], (each["quality"] for each in made["variants"])
    values = {part: kept[part]["value"] for part in ("likelihood", "sound", "prompt")}
    assert values["likelihood"] == pytest.approx(likelihood_kept(teacher["nll"]["value"], student["nll"]["value"]))
    sounds = [1 - each["fad_infinity"]["value"] / made["context"]["total_variance"] for each in (teacher, student)]
    if sounds[0] > 0:
        assert values["sound"] == pytest.approx(max(0, sounds[1]) / sounds[0])
    assert kept["retention"]["value"] == retention(**values)
    for name in ("nll", "perplexity", "fad"):
        ratio = student[name]["value"] / teacher[name]["value"]
        assert kept["ratios"][name]["value"] == pytest.approx(ratio)
    assert set(kept["heard"]) == set(student["adherence"]["listener"])
    for name, gain in kept["heard"].items():
        before, after = (each["adherence"]["listener"][name]["accuracy"] for each in (teacher, student))
        assert gain["value"] == pytest.approx(after["value"] - before["value"])
        assert gain["n"] == before["n"]
    assert kept["speed_ratios"]["disk_bytes"]["value"] < 1
    assert kept["speed_ratios"]["x_realtime"] is None, "speed was not measured"


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = []
    evaluate(**ONE, on_progress=steps.append)
    assert not list(tmp_path.iterdir())
    assert [(step.stage, step.done) for step in steps] == [
        *(("clips", done) for done in range(21)),
        *(("likelihood", done) for done in range(21)),
        *(("figures", done) for done in range(2)),
    ]
    assert {(step.model, step.total) for step in steps} == {("student", 20), ("all", 1)}


def test_a_kill_in_the_middle_changes_nothing(whole, tmp_path):
    """kill -9 while the second variant plays, then the same command again, in a process of its own as well."""
    output = tmp_path / "run"
    command = [sys.executable, "-c", QUICK_COMMAND, *COMMAND, "-o", str(output)]
    environment = environment_here()
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        journal = output / "2-student" / "clips.jsonl"
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
            time.sleep(0.02)
        process.kill()
    made = journal.read_bytes().count(b"\n")
    assert process.returncode == -signal.SIGKILL
    assert 3 <= made < 20
    with open(journal, "ab") as file:
        file.write(b'{"index": 5, "see')
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert contents(output) == contents(whole[0])


def test_a_stop_says_how_to_go_on(whole, tmp_path):
    steps = []
    with pytest.raises(Cancelled, match="stopped after 4 of 20 clips of teacher; the same call goes on from there"):
        evaluate(
            **QUICK,
            output=tmp_path / "run",
            on_progress=steps.append,
            should_stop=lambda: bool(steps) and (steps[-1].stage, steps[-1].done) == ("clips", 4),
        )
    assert len(records(tmp_path / "run" / "1-teacher" / "clips.jsonl")) == 4
    evaluate(**QUICK, output=tmp_path / "run", command=whole[1].context["command"])
    assert contents(tmp_path / "run") == contents(whole[0])
    with pytest.raises(Cancelled, match="nothing was kept: give an output folder"):
        evaluate(**QUICK, should_stop=lambda: True)


def test_other_settings_do_not_go_into_the_same_folder(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    with pytest.raises(ValueError, match="whose seed was 0, not 1;"):
        evaluate(**QUICK, seed=1, output=folder)
    settings = json.loads((folder / "1-teacher" / "model.json").read_text())
    (folder / "1-teacher" / "model.json").write_text(json.dumps(settings | {"hash": "0" * 16}))
    with pytest.raises(ValueError, match="1-teacher holds an evaluation whose hash was 0000000000000000, not"):
        evaluate(**QUICK, output=folder)


def test_prompts_of_ones_own_are_played_in_turn(tmp_path):
    (tmp_path / "prompts.txt").write_text("lively flute\na slow march in d minor\na calm guitar jig\n")
    evaluate(**ONE, prompts=tmp_path / "prompts.txt", output=tmp_path / "run")
    clips = records(tmp_path / "run" / "1-student" / "clips.jsonl")
    assert [clip["prompt"] for clip in clips[1:4]] == ["a slow march in d minor", "a calm guitar jig", "lively flute"]
    with pytest.raises(ValueError, match="no word that this model knows"):
        evaluate(**QUICK, prompts=["lively flute", "🎷"])


def test_a_folder_of_sounds_as_the_reference(tmp_path, assets):
    sounds = tmp_path / "sounds"
    shutil.copytree(assets.parent / "work" / "audio", sounds / "deeper")
    soundfile.write(sounds / "short.wav", np.zeros(16000, np.float32), 32000)
    made = evaluate(**ONE, reference=sounds, output=tmp_path / "run").as_dict()
    assert made["context"]["reference"] == "sounds (64 windows of 1 s)"
    assert [each["name"] for each in made["baselines"]] == ["real audio"]
    assert made["baselines"][0]["quality"]["adherence"] == {}
    assert made["baselines"][0]["quality"]["fad"]["n"] == 32
    judged = (tmp_path / "run" / "reference.jsonl").read_bytes()
    again = evaluate(**ONE, reference=sounds, output=tmp_path / "run").as_dict()
    assert again == made
    assert (tmp_path / "run" / "reference.jsonl").read_bytes() == judged
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no sound files; .wav, .flac, .ogg, .mp3 are allowed"):
        evaluate(**QUICK, reference=tmp_path / "empty")


def test_clap_needs_sounds_to_compare_with_and_scores_prompts(tmp_path, assets):
    clap = save_tiny_clap(tmp_path / "tiny-clap")
    with pytest.raises(ValueError, match="embedded by the listener alone; with tiny-clap-.* give a folder of sound"):
        evaluate(**ONE, embedder=str(clap))
    made = evaluate(**ONE, embedder=str(clap), reference=assets.parent / "work" / "audio").as_dict()
    quality = made["variants"][0]["quality"]
    assert -1 <= quality["clap_score"]["low"] <= quality["clap_score"]["value"] <= quality["clap_score"]["high"] <= 1
    assert quality["adherence"]["listener"]["instrument"]["accuracy"]["n"] == 20
    assert made["context"]["embedder"].startswith("tiny-clap-")


def test_a_model_with_another_codec_has_no_likelihood(tiny_musicgen):
    made = evaluate(**QUICK | {"models": ("student", str(tiny_musicgen))}).as_dict()
    quality = made["variants"][1]["quality"]
    assert (quality["nll"], quality["kl_to_teacher"]) == (None, None)
    assert quality["fad"]["value"] > 0
    kept = made["retention"][f"{tiny_musicgen}/student"]
    assert kept["likelihood"]["value"] is kept["retention"]["value"] is None
    assert kept["ratios"]["nll"] is None


def test_speed_is_measured_in_a_process_of_its_own(tmp_path):
    options = ONE | {"speed": True}
    made = evaluate(**options, output=tmp_path / "run").as_dict()
    figures = made["variants"][0]["figures"]
    assert set(figures) == FIGURES
    assert None not in figures.values()
    assert figures["runs"] == 3
    again = evaluate(**options, output=tmp_path / "run").as_dict()
    assert again == made, "speed is not measured again"


def test_the_command_prints_one_line_of_json(whole, capsys, tmp_path, monkeypatch):
    shutil.copytree(whole[0], tmp_path / "run")
    code, out, err = run(capsys, *COMMAND, "-o", str(tmp_path / "run"), "--json")
    assert (code, err) == (0, "")
    record = json.loads(out.splitlines()[-1])
    assert record["path"] == str(tmp_path / "run")
    assert set(record["variants"][0]["figures"]) == FIGURES
    assert record["variants"][0]["figures"]["x_realtime"] is None
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == {
        key: value for key, value in record.items() if key != "path"
    }


def test_the_command_prints_tables(whole, capsys, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    code, out, err = run(capsys, *COMMAND, "-o", str(tmp_path / "run"))
    assert (code, err) == (0, "")
    assert "student/teacher" in out
    assert "perplexity" in out
    assert "CLAP" not in out
    assert out.rstrip().endswith("report.md")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--clips", "5"), "clips must be a whole number from 20"),
        (("--clips", "few"), "clips must be a whole number of 1 or more, got 'few'"),
        (("--listen", "--clips", "5000"), "a page to listen to holds at most 797 clips a variant, got 5000"),
        (("--models", "teacher,nobody"), "no such model: got 'nobody'"),
        (("--prompts", "nowhere.txt"), "there is no 'nowhere.txt'"),
        (("--embedder", "ear"), "embedder"),
    ],
)
def test_wrong_arguments_exit_2_with_one_sentence(capsys, arguments, says, tmp_path):
    code, out, err = run(capsys, *COMMAND, *arguments, "-o", str(tmp_path / "run"))
    assert (code, out) == (2, "")
    assert err.startswith("tinymusician evaluate: ")
    assert says in err
    assert err.count("\n") == 1


def test_missing_parts_exit_1(capsys, assets, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYMUSICIAN_ASSETS", str(tmp_path))
    shutil.copytree(assets / "models", tmp_path / "models")
    code, _, err = run(capsys, *COMMAND)
    assert code == 1
    assert "no listener at" in err
    shutil.copytree(assets / "listener", tmp_path / "listener")
    code, _, err = run(capsys, *COMMAND)
    assert code == 1
    assert "no held-out music at" in err


def test_ctrl_c_keeps_what_was_made(tmp_path, assets):
    output = tmp_path / "run"
    command = [sys.executable, "-c", QUICK_COMMAND, *COMMAND, "-o", str(output)]
    with subprocess.Popen(command, env=environment_here(), stderr=subprocess.PIPE, text=True) as process:
        journal = output / "1-teacher" / "clips.jsonl"
        while process.poll() is None and not journal.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.startswith("tinymusician evaluate: stopped after ")
    assert said.endswith("the same call goes on from there\n")
    assert records(journal)
