"""`tinymusician distill`: folders that are whole or not there, and runs that can be resumed."""

import json
import os
import shutil
import signal

import pytest
import torch
from commands import run

import tinymusician_core as tm
from tinymusician_core.cli import show, stopping
from tinymusician_core.tokens import write_tokens

PROMPT = "a calm piano waltz"


@pytest.fixture
def distil(capsys, tiny_family, tmp_path):
    """Run `distill` on a tiny teacher and tokens of noise; the student goes beside its teacher."""
    tokens, models = tmp_path / "tokens", tmp_path / "models"
    random = torch.Generator().manual_seed(0)
    for split, count in (("train", 3), ("validation", 1), ("test", 1)):
        clips = [torch.randint(0, 64, (4, 60), generator=random) for _ in range(count)]
        write_tokens(tokens, split, clips, [{"captions": [PROMPT], "bars": [0, 20], "facts": {}}] * count)
    shutil.copytree(tiny_family, models)

    def call(*more):
        small = ("--teacher", str(models / "teacher"), "--data", str(tokens), "--layers", "1", "--batch", "2")
        return run(capsys, "distill", *small, "--seconds", "0.5", "-o", str(models / "mine"), *more)

    return call, models / "mine"


def test_distill_writes_a_student(distil):
    call, out = distil
    code, printed, err = call("--steps", "10", "--json")
    assert (code, err) == (0, "")
    record = json.loads(printed.splitlines()[-1])
    assert (record["path"], record["layers"], record["steps"]) == (str(out), [0], 10)
    assert record["validation_kl"] > 0
    assert (out / "model.safetensors").exists()
    code, _, err = call("--steps", "10")
    assert code == 2
    assert "resume it, or remove" in err


def test_ctrl_c_in_the_middle_of_distill_can_be_resumed(distil, monkeypatch):
    call, out = distil
    show_step = show.Bar.show

    def interrupt(bar, text, done, total, note=""):
        show_step(bar, text, done, total, note)
        if total:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(show.Bar, "show", interrupt)
    code, _, err = call("--steps", "30")
    assert code == 130
    assert "stopped after 10 steps; resume goes on from" in err
    assert err.count("\n") == 1
    assert not out.exists()
    monkeypatch.setattr(show.Bar, "show", show_step)
    code, printed, _ = call("--steps", "30", "--resume")
    assert code == 0
    assert "30 steps" in printed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_a_run_hard():
    with stopping.stop_on_ctrl_c() as should_stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


SETTINGS = ("--layers", "0,2", "--batch", "2", "--seconds", "0.5", "--precision", "fp32", "--json")


def test_every_setting_reaches_the_run(capsys, tiny_family, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a calm piano waltz\nlively flute\n")
    how = ["--teacher", str(tiny_family / "teacher"), "--prompts", str(prompts), "--clips", "4", "--steps", "4"]
    how += ["--width", "16", "--heads", "2", "--ffn", "20", "--loss", "alpha-beta:0.3,0.6", "--temperature", "2:1"]
    how += ["--cross-entropy", "0", "--codebook-weights", "3,2,1,0.5", "--guidance", "fixed:3", "--dropout", "0"]
    how += ["--optimizer", "adamw"]
    how += ["--cache-logits", "16", "--accumulate", "2", "--patience", "3", "--validate-every", "2"]
    how += ["--validation-windows", "6", "-o", str(out)]
    code, printed, err = run(capsys, "distill", *how, *SETTINGS)
    assert (code, err) == (0, "")
    record = json.loads(printed.splitlines()[-1])
    assert (record["layers"], record["steps"], record["guidance"]) == ([0, 2], 4, 3.0)
    assert record["cache"]["tokens_kept"] == 16
    settings = json.loads((tmp_path / "out.training" / "settings.json").read_text())
    assert {name: value for name, value in settings.items() if name != "teacher"} == {
        "layers": [0, 2],
        "width": 16,
        "heads": 2,
        "ffn": 20,
        "loss": "alpha-beta:0.3,0.6",
        "temperature": "2:1",
        "cross_entropy": 0.0,
        "codebook_weights": [3.0, 2.0, 1.0, 0.5],
        "hidden": None,
        "batch": 2,
        "seconds": 0.5,
        "shortest": None,
        "accumulate": 2,
        "learning_rate": 0.001,
        "optimizer": "adamw",
        "dropout": 0.0,
        "on_policy": 0.0,
        "cache_logits": 16,
        "guidance": "fixed:3",
        "patience": 3,
        "validate_every": 2,
        "validation_windows": 6,
        "bf16": False,
        "start_from": None,
        "seed": 0,
    }


def test_a_run_starts_from_an_earlier_student_and_has_shorter_windows(capsys, tiny_family, tmp_path):
    teacher = ["--teacher", str(tiny_family / "teacher"), "--prompts", "built-in", "--clips", "4", "--steps", "1"]
    assert run(capsys, "distill", *teacher, *SETTINGS, "-o", str(tmp_path / "one"))[0] == 0
    how = ["--start-from", str(tmp_path / "one"), "--shortest", "0.25", "-o", str(tmp_path / "two")]
    assert run(capsys, "distill", *teacher, *SETTINGS, *how)[0] == 0
    settings = json.loads((tmp_path / "two.training" / "settings.json").read_text())
    assert settings["shortest"] == 0.25
    assert len(settings["start_from"]) == 16


def test_a_dry_run_measures_and_writes_nothing(capsys, tiny_family, tmp_path):
    how = ["--teacher", str(tiny_family / "teacher"), "--prompts", "built-in", "--steps", "1000", "--dry-run"]
    code, printed, err = run(capsys, "distill", *how, *SETTINGS, "--cache-logits", "8", "-o", str(tmp_path / "out"))
    assert (code, err) == (0, "")
    cost = json.loads(printed.splitlines()[-1])
    teacher = tm.load(tiny_family / "teacher")
    layer = 8 * 32 * 32 + 2 * 32 * 48 + 6 * 32
    outside = 4 * 65 * 32 + 4 * 64 * 32 + 2 * 32
    assert cost["decoder_parameters"] == 4 * layer + outside
    assert cost["student_parameters"] == 2 * layer + outside
    assert sum(p.numel() for p in teacher.decoder.parameters()) == cost["decoder_parameters"]
    assert cost["gradient_bytes"] == 4 * cost["student_parameters"]
    matrices = 2 * (8 * 32 * 32 + 2 * 32 * 48)
    moments = 8 * (cost["student_parameters"] - matrices) + 4 * matrices  # Muon has one where AdamW has two
    assert cost["optimizer_bytes"] == pytest.approx(moments, rel=0.01)
    assert cost["weights_bytes"] >= 4 * cost["student_parameters"]
    assert cost["activation_bytes"] > 0
    assert cost["peak_memory_bytes"] > cost["optimizer_bytes"]
    assert cost["flops_per_step"] > 6 * 2 * 12 * 2 * layer  # 2 windows of 12 frames, forwards and backwards
    assert cost["hours"] == pytest.approx(1000 * cost["step_s"] / 3600)
    text = teacher.text_encoder.encoder
    assert 4 * sum(p.numel() for p in text.parameters()) <= cost["teacher_bytes"] < cost["decoder_parameters"] * 4
    windows = round(0.9 * 256 * 0.5 / 0.5 / 2) * 2 + 8
    assert cost["cache_bytes"] == windows * 4 * (12 + 3) * 8 * 4
    assert list(tmp_path.iterdir()) == []
    code, printed, _ = run(capsys, "distill", *how, *SETTINGS[:-1], "--on-policy", "0.5")
    assert code == 0
    for words in ("optimizer", "activations", "peak memory", "1,000 steps", "the time in which the teacher plays"):
        assert words in printed


def test_a_dry_run_for_a_machine_that_is_not_here(capsys, tiny_family, tmp_path):
    how = ["distill", "--teacher", str(tiny_family / "teacher"), "--prompts", "built-in", "--layers", "0,2"]
    how += ["--seconds", "2", "--batch", "12", "--accumulate", "3", "--steps", "1000", "--dry-run"]
    code, printed, err = run(capsys, *how, "--precision", "bf16", "--json")
    assert (code, err) == (0, "")
    here = json.loads(printed.splitlines()[-1])
    assert here["assumed_tflops"] is None
    code, printed, err = run(capsys, *how, "--device", "cuda", "--assume-tflops", "40", "--json")
    assert (code, err) == (0, ""), "no GPU is needed"
    _, in_parts, _ = run(capsys, *how, "--shortest", "0.5", "--device", "cuda", "--assume-tflops", "40", "--json")
    assert in_parts == printed, "a step of shorter windows has more of them"
    there = json.loads(printed.splitlines()[-1])
    assert (there["device"], there["assumed_tflops"], there["threads"]) == ("cuda", 40.0, None)
    assert there["peak_memory_bytes"] is None
    assert there["flops_per_step"] == pytest.approx(here["flops_per_step"], rel=1e-3)
    assert there["activation_bytes"] == pytest.approx(here["activation_bytes"], rel=0.02)
    assert there["step_s"] == pytest.approx(there["flops_per_step"] / 40e12)
    assert there["hours"] == pytest.approx(1000 * there["step_s"] / 3600)
    parts = ("teacher", "weights", "average", "gradient", "optimizer", "activation")
    for cost in (here, there):
        assert cost["expected_memory_bytes"] == sum(cost[f"{name}_bytes"] for name in parts)
    code, printed, _ = run(
        capsys, *how[:-3], "--minutes", "10", "--dry-run", "--device", "cuda", "--assume-tflops", "40"
    )
    assert code == 0
    assert f"{int(600 / there['step_s']):,} steps, 0.17 hours" in printed
    assert "time is an estimate from the 40 TFLOP/s that were assumed: no cuda was timed" in printed
    assert "on cuda at 40 TFLOP/s, estimated" in printed
    assert "measured" not in printed.split("peak memory")[1].split("\n")[0].replace("not measured", "")


def test_attention_counts_among_a_steps_operations():
    from torch.nn.functional import scaled_dot_product_attention
    from torch.utils.flop_counter import FlopCounterMode

    from tinymusician_core.distill.cost import ATTENTION_FLOPS

    query = torch.randn(1, 2, 64, 16, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        made = scaled_dot_product_attention(query, query, query, is_causal=True)
    forward = counter.get_total_flops()
    assert forward == 2 * 2 * 2 * 64 * 64 * 16, "two products for each of two heads"
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        made.sum().backward()
    assert counter.get_total_flops() == pytest.approx(2.5 * forward), "five products, one of them made anew"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layers", "2", "-o", "out", "--data", "d", "--assume-tflops", "40"), "--assume-tflops is for --dry-run"),
        (("--layers", "2", "--dry-run", "--assume-tflops", "-1"), "assume tflops must be a number above 0"),
        (("--layers", "2", "--dry-run", "--assume-tflops", "40", "--on-policy", "0.5"), "leave on_policy out"),
        (("--layers", "2"), "-o is missing"),
        (("--layers", "2", "-o", "out"), "--data or --prompts is missing"),
        (("--layers", "0,x", "-o", "out", "--data", "d"), "layers must be whole numbers with commas"),
        (("--layers", "2", "-o", "out", "--data", "d", "--guidance", "wild"), "guidance is 'wild'"),
        (("--layers", "2", "-o", "out", "--data", "d", "--codebook-weights", "1,x"), "a codebook weight must be"),
        (("--layers", "2", "-o", "out", "--prompts", "none.txt"), "none.txt cannot be read as prompts"),
        (("--layers", "2", "-o", "out", "--data", "d", "--prompts", "p"), "not allowed with argument"),
    ],
)
def test_wrong_settings_are_one_sentence(capsys, arguments, words):
    code, _, err = run(capsys, "distill", *arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_ablate_reports_the_best(capsys, tiny_family, tmp_path):
    random = torch.Generator().manual_seed(0)
    for split in ("train", "validation"):
        clips = [torch.randint(0, 64, (4, 60), generator=random) for _ in range(3)]
        write_tokens(tmp_path / "tokens", split, clips, [{"captions": [PROMPT], "bars": [0], "facts": {}}] * 3)
    plan = {"teacher": str(tiny_family / "teacher"), "data": "tokens", "losses": ["stage-mixed", "jsd"], "layers": [1]}
    plan |= {"seeds": [0], "steps": 1, "options": {"batch": 2, "seconds": 0.5, "validation_windows": 6}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, printed, err = run(capsys, "ablate", str(tmp_path / "plan.json"), "-o", str(tmp_path / "out"), "--json")
    assert (code, err) == (0, "")
    record = json.loads(printed.splitlines()[-1])
    assert record["best"] in ("stage-mixed, 1 layers", "jsd, 1 layers")
    code, printed, _ = run(capsys, "ablate", str(tmp_path / "plan.json"), "-o", str(tmp_path / "out"))
    assert code == 0
    assert printed.splitlines()[-1].endswith("report.md, report.json, ablation.png")
    code, _, err = run(capsys, "ablate", str(tmp_path / "none.json"), "-o", str(tmp_path / "x"))
    assert code == 2
    assert "cannot be read as a JSON plan" in err
