"""Trained parts -> `assets/`: model folders, and the manifest with every file's hash, size, licence and recipe."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file

from tinymusician_core.bundle import save_family
from tinymusician_core.files import sha256_of, whole_file
from tinymusician_core.guidance import GUIDANCE, read_guidance
from tinymusician_core.made_for import MadeFor
from tinymusician_core.pretrain.codec import finished_codec
from tinymusician_core.pretrain.teacher import LONGEST_S, PROBES, TeacherConfig, TeacherTraining
from tinymusician_core.quant.size import json_text
from tinymusician_core.quant.skeleton import ENCODER_FILE
from tinymusician_core.training import kept_state

LICENCE = "MIT"
MADE_FOR = MadeFor(cfg=2.0, top_p=0.95)  # the card says what they were chosen by
SOURCES = (
    "Tunes: Ryan's Mammoth Collection (1883), O'Neill's Music of Ireland (1903), Aird's Airs (1782-1801), "
    "all in the public domain, from the music21 corpus. "
    "Sound: MuseScore General soundfont (MIT, parts public domain or CC0) through FluidSynth."
)
TEACHER = (
    "python -m tinymusician_core.pretrain notes --work WORK, then teacher --minutes 75, stopped at step 900; "
    "then tokens, and teacher --minutes 95, stopped at step 1,367; then teacher --minutes 165; then, from that one "
    "(--start-from), teacher --minutes 60 --learning-rate 6e-4, up to step 760 on the notes of audio --hours 66, from "
    "there on the tokens of audio --hours 20; then, from that one and on the tokens of audio --hours 66, half of them "
    "--unheard: teacher --minutes 62 --learning-rate 1.5e-4, and that one went on with --probes teach: --minutes 97 "
    "--learning-rate 5e-4, --minutes 277 --learning-rate 2.5e-4 stopped at step 1,595, --minutes 170 --learning-rate "
    "5e-4; up to step 1,710 with fewer short windows than LENGTHS has"
)
RECIPES = {
    "models/codec": "python -m tinymusician_core.pretrain codec --work WORK --minutes 27 --start-from CODEC, which had "
    "been trained for 24 and then 30 minutes with fewer written codebooks; then polish --minutes 14, and that one, its "
    "silent oscillators taken out, as WORK/codec/model again: polish --minutes 48, then on with --minutes 80, both on "
    "1,000 pieces; then, in another WORK with audio --hours 35 and that codec as codec/model, hear --minutes 9; then, "
    "in a WORK with that one as codec/model and half of audio --hours 66, by hand what polish --judged-from 1 "
    "--learning-rate 4e-4 does: 12 minutes on the 1,000 pieces, and from there two runs of 22 minutes, on half of the "
    "3,282 pieces each and with three windows of four from those not among the 1,000, the mean of whose weights it is; "
    "then publish-codec",
    "models/text": TEACHER,
    "models/teacher": TEACHER,
    "models/student": "tinymusician distill --teacher assets/models/teacher --data WORK/tokens --layers 4 --minutes "
    "75 --batch 3 --seconds 40 --shortest 5 --temperature 2:1 -o STUDENT, on the teacher of 165 minutes and tokens of "
    "audio --hours 35; then the same with --minutes 25 --start-from that one, on the teacher after its next hour and "
    "tokens of audio --hours 20; then with --minutes 23 --temperature 4:1 --start-from that one, on the teacher as it "
    "is and tokens of half of audio --hours 66; then python -m tinymusician_core.pretrain publish-student --student "
    "STUDENT",
    "models/quantized": "tinymusician quantize --model assets/models/student --teacher assets/models/teacher --data "
    "WORK/tokens --max-mb 5.8 --schemes fp16,bf16,int8,int8-weight,int4,int4-row --compare --recover 22 -o QUANTIZED, "
    "with tokens of half of the 66 hours, the recovery on one core; then python -m tinymusician_core.pretrain "
    "publish-quantized --quantized QUANTIZED",
    "listener": "python -m tinymusician_core.pretrain listener --work WORK --minutes 45, some pieces drawn more often "
    "by hand; then, from that one (--start-from) and in a WORK with half of audio --hours 66, listener --minutes 35 "
    "--learning-rate 1e-3; then publish-listener",
    "evaluation": "python -m tinymusician_core.pretrain held-out --work WORK",
    "pictures": "python -m tests.e2e.screenshots",
    "reports/ablation": "tinymusician ablate PLAN.json -o DIR --runs RUNS, with the plan that lies there; its data are "
    "WORK/tokens of part 1/12 of audio --hours 66 for train and test and 1/4 for validation, in a WORK whose plan was "
    "cut down to these pieces by hand",
    "reports/ablation-cooling": "the same, with that plan",
    "reports/ablation-temperatures": "the same, with that plan",
    "reports/ablation-layers": "the same, with that plan, whose null was 2:1 then, on the teacher of 165 minutes",
    "reports/evaluation": "tinymusician evaluate --threads 1 -o DIR, whose report that is",
    "reports/steadiness": "tinymusician evaluate --seconds 30 --prompts in-domain --clips 50 --threads 1 --listen "
    "-o DIR, whose report and sheet of spectrograms that is",
    "reports/out-of-domain": "tinymusician evaluate --seconds 30 --prompts out-of-domain --clips 20 --threads 1 "
    "--listen -o DIR, whose report and sheet of spectrograms that is",
    "reports/plan-teacher": "tinymusician quantize --model teacher --data WORK/tokens --max-mb 12 "
    "--schemes fp16,bf16,int8,int8-weight,int4,int4-row --compare -o DIR, whose report that is; on the teacher of 165 "
    "minutes",
    "reports/plan-small": "python -m tinymusician_core.measure.random_musicgen --shape small -o random-small; then "
    "tinymusician quantize --model random-small --max-mb 400 -o DIR, whose report that is",
    "reports/one-pass": "tinymusician distill --teacher student --data WORK/tokens --layers 4 --guidance fixed:2 "
    "--cross-entropy 0 --dropout 0 --loss forward-kl --temperature 1 --batch 4 --seconds 20 --shortest 5 "
    "--learning-rate 1e-4 --minutes 10 -o one-pass, with tokens of six of the 66 hours; then tinymusician evaluate "
    "--threads 1 --models student,one-pass -o DIR, whose report that is, with student, codec and listener as they "
    "were before their last training",
    "reports/recovered": "tinymusician quantize --model student --data WORK/tokens --max-mb 4.2 "
    "--schemes fp16,bf16,int8,int8-weight,int4,int4-row --recover 5 -o DIR, whose report that is, with student and "
    "codec as they were before their last training, and without a weight for true tokens",
    "reports/bench": "tinymusician bench -o assets/reports/bench",
    "reports/bench-again": "the same command as reports/bench, some minutes later",
}


def averaged_teacher(work: Path) -> tuple[TeacherTraining, dict]:
    """The teacher with the weights to keep, and how long it was trained."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "teacher" / "tokenizer")
    model = TeacherTraining(TeacherConfig(), tokenizer)
    state = kept_state(work / "teacher")
    model.load_state_dict({k: v for k, v in state["weights"].items() if not k.startswith(PROBES)})
    return model.eval(), {"steps": state["step"], "minutes": round(state["elapsed_s"] / 60, 1)}


def publish_teacher(work: Path, assets: Path) -> None:
    """Write the codec, the text encoder and the teacher into `assets/models`."""
    models = assets / "models"
    models.mkdir(parents=True, exist_ok=True)
    shutil.copytree(finished_codec(work), models / "codec", dirs_exist_ok=True)
    model, _ = averaged_teacher(work)
    model.text_encoder.half().save_pretrained(models / "text")
    model.tokenizer.save_pretrained(models / "text")
    state = {f"decoder.{k}": v for k, v in model.decoder.state_dict().items() if "embed_positions" not in k}
    state |= {f"enc_to_dec_proj.{k}": v for k, v in model.enc_to_dec_proj.state_dict().items()}
    shape = model.config.decoder_config().to_dict()
    save_family(models / "teacher", "teacher", shape, state, dtype=torch.float32, window_s=LONGEST_S, made_for=MADE_FOR)


def publish_codec(work: Path, assets: Path) -> None:
    """Put a codec that was trained on into `assets/models`, for the teacher and the student that are there: its codes
    mean what they did. A quantized student has a codec of its own, and must be made anew.

    Raises:
        ValueError: it has other codebooks.
    """
    models, source = assets / "models", finished_codec(work)
    ours, theirs = (_codebooks(folder) for folder in (source, models / "codec"))
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        raise ValueError(f"{source} has other codebooks than {models / 'codec'}, whose codes the models there make")
    shutil.copytree(source, models / "codec", dirs_exist_ok=True)
    for folder in (models / "teacher", models / "student"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shared = [name for name in config["files"] if name.startswith(f"{config['codec']}/")]
        config["files"] |= {name: sha256_of(folder / name) for name in shared}
        with whole_file(folder / "config.json") as partial:
            partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _codebooks(codec: Path) -> dict[str, torch.Tensor]:
    return {name: table for name, table in load_file(codec / "decoder.safetensors").items() if "codebook" in name}


def publish_student(student: Path, assets: Path) -> None:
    """Write a distilled student into `assets/models`, beside the text encoder and the codec that are there: those that
    it was distilled with, or a codec polished since."""
    record = json.loads((student / "config.json").read_text(encoding="utf-8"))
    state, target = load_file(student / "model.safetensors"), assets / "models" / "student"
    guidance = read_guidance(record.get(GUIDANCE), "student")
    made = {"window_s": record["window_s"], "guidance": guidance, "made_for": MADE_FOR}
    save_family(target, "student", record["decoder"], state, **made)


def publish_quantized(quantized: Path, assets: Path) -> None:
    """Put a quantized student into `assets/models`, all but its copy of the codec's encoder, which lies there already.

    Raises:
        ValueError: it was made with another codec.
    """
    models, shared = assets / "models", f"../codec/{ENCODER_FILE}"
    config = json.loads((quantized / "config.json").read_text(encoding="utf-8"))
    config["files"][shared] = config["files"].pop(ENCODER_FILE, "")
    if config["files"][shared] != sha256_of(models / "codec" / ENCODER_FILE):
        raise ValueError(f"{quantized} was made with another codec than the one in {models / 'codec'}")
    target = models / "quantized"
    shutil.copytree(quantized, target, ignore=shutil.ignore_patterns(ENCODER_FILE), dirs_exist_ok=True)
    (target / ENCODER_FILE).unlink(missing_ok=True)
    with whole_file(target / "config.json") as partial:
        partial.write_text(json_text(config), encoding="utf-8")


def recipe_commit(folder: Path) -> str:
    """The commit of the code that is checked out; RuntimeError outside a git checkout."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{folder} is in no git checkout, so the manifest cannot say which commit made its files")
    return done.stdout.strip()


def write_manifest(assets: Path) -> Path:
    """assets/MANIFEST.json: path, size, sha256, licence, recipe and commit of every file beside it.

    A file that has not changed since the last manifest keeps its commit; a new one gets the commit checked out.
    """
    target = assets / "MANIFEST.json"
    earlier = json.loads(target.read_text(encoding="utf-8"))["files"] if target.exists() else []
    known = {(record["path"], record["sha256"]): record["commit"] for record in earlier}
    commit, files = recipe_commit(assets), []
    for path in sorted(p for p in assets.rglob("*") if p.is_file() and p != target):
        name, digest = path.relative_to(assets).as_posix(), sha256_of(path)
        record = {"path": name, "bytes": path.stat().st_size, "sha256": digest, "licence": LICENCE}
        recipe = next(({"recipe": text} for folder, text in RECIPES.items() if name.startswith(f"{folder}/")), {})
        files.append(record | recipe | {"commit": known.get((name, digest), commit)})
    with whole_file(target) as partial:
        partial.write_text(json.dumps({"sources": SOURCES, "files": files}, indent=1) + "\n", encoding="utf-8")
    return target
