"""An evaluation's report says all that its record has, how each variant was drawn, and the command that made it."""

import json
import re
import shutil

import pytest
import torch
from evaluation import make_assets, quick_judges, records
from safetensors.torch import load_file, save_file
from test_cli import run
from threadpoolctl import threadpool_info, threadpool_limits

import tinymusician_core as tm
from tinymusician_core.engine.threads import threads_for
from tinymusician_core.evaluate.jury import Judged
from tinymusician_core.evaluate.listener import HEADS, Listener
from tinymusician_core.evaluate.report import listening_notes, markdown, notes
from tinymusician_core.evaluate.run import evaluate
from tinymusician_core.evaluate.summary import SPEED
from tinymusician_core.files import sha256_of
from tinymusician_core.guidance import FEATURES, GUIDANCE, WEIGHT
from tinymusician_core.measure.report import NOTHING

THREADS = 1  # which every machine has

MODELS = ("teacher", "student")
QUICK = {"models": MODELS, "clips": 20, "seconds": 1, "speed": False}


@pytest.fixture(autouse=True, scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        quick_judges(patch)
        yield


@pytest.fixture(scope="module")
def assets(quick, tiny_family, tmp_path_factory):
    return make_assets(tmp_path_factory.mktemp("report"), tiny_family)


@pytest.fixture(autouse=True)
def tiny_assets(assets, monkeypatch):
    monkeypatch.setenv("TINYMUSICIAN_ASSETS", str(assets))


@pytest.fixture(scope="module")
def measured(assets, tmp_path_factory):
    """An evaluation with speed, of as many threads as were asked for: its folder and its record."""
    threads, folder = torch.get_num_threads(), tmp_path_factory.mktemp("measured") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYMUSICIAN_ASSETS", str(assets))
        made = evaluate(**QUICK | {"speed": True}, output=folder, threads=THREADS).as_dict()
    assert torch.get_num_threads() == threads, "the caller's threads are left as they were"
    return folder, made


def with_guidance(models, name: str, guidance) -> str:
    """A copy of the student beside it that says of itself that it has some guidance built in, or takes it."""
    folder = shutil.copytree(models / "student", models / name)
    config = json.loads((folder / "config.json").read_text()) | {"name": name, GUIDANCE: guidance}
    if isinstance(guidance, dict):
        weights, width = load_file(folder / "model.safetensors"), tm.load(models / "student").decoder.config.width
        save_file({**weights, WEIGHT: torch.zeros(FEATURES, 2 * width)}, folder / "model.safetensors")
        config["files"]["model.safetensors"] = sha256_of(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def guided(tiny_family, tmp_path):
    """Students with guidance of 2 built in, and of 4 to 6 as an input: neither takes the usual 3."""
    models = shutil.copytree(tiny_family, tmp_path / "models")
    return with_guidance(models, "fixed", 2.0), with_guidance(models, "told", {"low": 4.0, "high": 6.0})


def rows_of(text: str, heading: str) -> dict[str, list[str]]:
    """The first cell of each row of the table under a line of the report -> the others."""
    table = text.split(f"{heading}\n\n", 1)[1].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {first: others for first, *others in cells[:1] + cells[2:]}


def shown(figure, form: str) -> str:
    if figure["value"] is None:
        return NOTHING
    ends = "" if figure["low"] is None else f" ({form.format(figure['low'])} to {form.format(figure['high'])})"
    return form.format(figure["value"]) + ends


def test_every_codebook_has_its_likelihood_and_divergence(measured):
    folder, made = measured
    text = (folder / "report.md").read_text()
    assert text == markdown(json.loads((folder / "report.json").read_text()))
    teacher, student = (each["quality"] for each in made["variants"])
    likelihood = rows_of(text, "NLL in nats a token, codebook by codebook:")
    assert likelihood[""] == [f"codebook {number}" for number in (1, 2, 3, 4)]
    for name, quality in (("teacher", teacher), ("student", student)):
        assert likelihood[name] == [shown(each, "{:.3f}") for each in quality["nll_per_codebook"]]
    divergence = rows_of(text, "KL to teacher in nats a token, codebook by codebook:")
    assert set(divergence) == {"", "student"}, "the teacher is no distance from itself"
    assert divergence["student"] == [shown(each, "{:.3f}") for each in student["kl_per_codebook"]]


def test_the_codec_has_its_fidelity_with_intervals(measured):
    folder, made = measured
    found = rows_of((folder / "report.md").read_text(), "Held-out music, encoded and decoded, against itself:")
    codec = made["codec"]
    assert found["log-mel L1"] == ["less", shown(codec["log_mel_l1"], "{:.3f}"), str(codec["log_mel_l1"]["n"])]
    assert found["SI-SDR dB"] == ["more", shown(codec["si_sdr_db"], "{:.1f}"), str(codec["si_sdr_db"]["n"])]
    assert codec["si_sdr_db"]["low"] < codec["si_sdr_db"]["high"]


def test_the_codec_is_left_out_where_nothing_is_known_of_it(assets):
    own = evaluate(**QUICK | {"models": ("student",)}, reference=assets.parent / "work" / "audio").as_dict()
    text = markdown(own)
    assert "## The codec" not in text
    assert "nothing to compare it with" in text
    assert "the one over the other" not in text.lower()
    assert "the one than the other" not in text


def test_every_figure_has_its_ratio(measured):
    folder, made = measured
    text, kept = (folder / "report.md").read_text(), made["retention"]["student/teacher"]
    quality = rows_of(text, "Figure by figure, the one over the other:")
    titles = {"NLL": "nll", "perplexity": "perplexity", "FAD∞": "fad_infinity", "FAD": "fad", "KAD": "kad"}
    assert set(quality) == {"", *titles, "kappa"}, "what neither has is left out"
    for title, name in titles.items():
        assert quality[title] == ["less", shown(kept["ratios"][name], "{:.1%}")]
    assert quality["kappa"] == ["more", shown(kept["ratios"]["kappa"], "{:.1%}")]
    speed = rows_of(text, "The one over the other:")
    assert len(speed) == 1 + len(SPEED)
    assert speed["x real time"] == ["more", shown(kept["speed_ratios"]["x_realtime"], "{:.1%}")]
    assert speed["on disk MB"] == ["less", shown(kept["speed_ratios"]["disk_bytes"], "{:.1%}")]


def test_what_is_heard_more_often_is_in_points_with_an_interval(measured):
    folder, made = measured
    said = "How much more often the one than the other, prompt by prompt, as the listener hears it (in points):"
    found = rows_of((folder / "report.md").read_text(), said)
    gains = made["retention"]["student/teacher"]["heard"]
    assert found[""] == [name for name in HEADS if name in gains]
    for name, told in zip(found[""], found["student/teacher"], strict=True):
        points = {end: None if gains[name][end] is None else 100 * gains[name][end] for end in ("value", "low", "high")}
        assert told == shown(points, "{:+.1f}")


def test_a_ratio_of_speeds_lies_between_what_the_runs_allow(measured):
    teacher, student = measured[1]["variants"]
    for name, ratio in measured[1]["retention"]["student/teacher"]["speed_ratios"].items():
        if name == "disk_bytes":
            assert ratio["low"] is ratio["high"] is None, "a size is the same every time"
            continue
        assert ratio["value"] == pytest.approx(student["figures"][name] / teacher["figures"][name])
        assert ratio["low"] == pytest.approx(student["spread"][name][0] / teacher["spread"][name][1])
        assert ratio["high"] == pytest.approx(student["spread"][name][1] / teacher["spread"][name][0])
        assert ratio["low"] <= ratio["value"] <= ratio["high"]


def test_threads_are_those_that_were_asked_for(measured):
    folder, made = measured
    threads = THREADS
    assert made["context"]["threads"] == threads
    assert {each["figures"]["threads"] for each in made["variants"]} == {threads}
    assert f"{threads} thread" in (folder / "report.md").read_text()
    with pytest.raises(ValueError, match="an evaluation whose threads was"):
        evaluate(**QUICK | {"speed": True, "threads": THREADS + 1}, output=folder)
    with pytest.raises(ValueError, match="threads must be a whole number from 1 to 1024, got 0"), threads_for(0):
        pass


def test_torch_and_blas_compute_on_the_same_threads_and_then_on_theirs_again():
    def threads() -> set[int]:
        pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        assert pools
        return {torch.get_num_threads(), *pools}

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        with threads_for(1):
            assert threads() == {1}
        assert threads() == before


def test_each_variant_plays_with_the_guidance_that_it_takes(guided, tmp_path):
    fixed, told = guided
    made = evaluate(**QUICK | {"models": ("teacher", fixed, told)}, output=tmp_path / "run").as_dict()
    assert [each["guidance"] for each in made["variants"]] == [
        {"cfg": 3.0, "passes": 2, "built_in": None},
        {"cfg": 2.0, "passes": 1, "built_in": 2.0},
        {"cfg": 4.0, "passes": 1, "built_in": {"low": 4.0, "high": 6.0, "base": 4.0}},
    ]
    said = f"guidance teacher 3 (two passes), {fixed} 2 (built in: one pass), {told} 4 (an input, 4 to 6: one pass)"
    said += "; temperature 1, top-k 250"
    assert said in (tmp_path / "run" / "report.md").read_text()
    assert any(said in note for note in listening_notes(made))
    record = records(tmp_path / "run" / "2-fixed" / "clips.jsonl")[3]
    clip = tm.generate(tm.load(fixed), record["prompt"], seconds=1, seed=3, cfg=2)
    heard = Listener.from_folder().hear(clip.audio, clip.sample_rate_hz)
    assert (Judged.from_record(record).embedding == heard.embedding).all()


def test_another_guidance_and_top_p_can_be_asked_for(guided, capsys, tmp_path):
    fixed, told = guided
    command = ("evaluate", "--clips", "20", "--seconds", "1", "--no-speed")
    asked = (*command, "--models", f"teacher,{told}", "--cfg", "5", "--top-p", "0.5")
    asked = (*asked, "-o", str(tmp_path / "run"), "--json")
    code, out, err = run(capsys, *asked)
    assert (code, err) == (0, "")
    record = json.loads(out.splitlines()[-1])
    assert [each["guidance"]["cfg"] for each in record["variants"]] == [5.0, 5.0]
    assert (record["settings"]["cfg"], record["settings"]["top_p"]) == (5.0, 0.5)
    clips = records(tmp_path / "run" / "1-teacher" / "clips.jsonl")
    clip = tm.generate(tm.load("teacher"), clips[0]["prompt"], seconds=1, seed=0, cfg=5, top_p=0.5)
    heard = Listener.from_folder().hear(clip.audio, clip.sample_rate_hz)
    assert (Judged.from_record(clips[0]).embedding == heard.embedding).all()
    code, _, err = run(capsys, *command, "--models", f"teacher,{fixed}", "--cfg", "3", "-o", str(tmp_path / "other"))
    assert code == 2
    assert "the model fixed has guidance of 2 built in; cfg must be 2, got 3" in err
    assert not (tmp_path / "other").exists(), "it is said before anything plays"
    for wrong, says in ((("--cfg", "0.5"), "cfg must be a number from 1 to 20"), (("--top-p", "2"), "top_p must be")):
        code, _, err = run(capsys, *command, "--models", "teacher", *wrong)
        assert code == 2
        assert says in err


def test_guidance_that_is_off_and_the_same_for_all_is_said_once(measured):
    made = json.loads(json.dumps(measured[1]))
    assert sum("guidance 3 (two passes); " in note for note in notes(made)) == 1
    for variant in made["variants"]:
        variant["guidance"] |= {"cfg": 1.0, "passes": 1}
    assert any("; guidance 1 (off: one pass); temperature 1" in note for note in notes(made))


def test_the_report_names_the_command_that_made_it(measured, capsys, tmp_path):
    folder, made = measured
    assert made["context"]["command"] is None
    assert "made with" not in (folder / "report.md").read_text()
    shutil.copytree(folder, tmp_path / "run")
    threads = str(THREADS)
    arguments = ("--models", "teacher,student", "--clips", "20", "--seconds", "1", "--threads", threads)
    code, _, err = run(capsys, "evaluate", *arguments, "-o", str(tmp_path / "run"))
    assert (code, err) == (0, "")
    text = (tmp_path / "run" / "report.md").read_text()
    said = re.search(r"^- made with `(.*)`$", text, re.MULTILINE)[1]
    assert said.endswith(f"tinymusician evaluate {' '.join(arguments)} -o DIR")
    assert json.loads((tmp_path / "run" / "report.json").read_text())["context"]["command"] == said
    assert str(tmp_path) not in text


def test_the_pictures_are_in_the_report(measured):
    folder, _ = measured
    text = (folder / "report.md").read_text()
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    assert text.count("](quality-") == 2
