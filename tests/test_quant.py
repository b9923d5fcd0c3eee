import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import scramble
from torch import nn

import tinymusician_core as tm
from tinymusician_core.codec.spectral import SpectralCodec, SpectralEncoder
from tinymusician_core.pretrain.publish import publish_codec, publish_quantized
from tinymusician_core.quant import apply, loading
from tinymusician_core.quant.apply import apply_plan, quantize
from tinymusician_core.quant.plan import PRESETS, Plan, packable, preset
from tinymusician_core.quant.schemes import to_tensors
from tinymusician_core.quant.size import Stored
from tinymusician_core.quant.skeleton import build
from tinymusician_core.records import Cancelled, ModelError, SamplingSpec

MIXED = Plan.of(
    {
        "*": "fp16",
        "decoder.*": "int8",
        "decoder.layers.0.*": "bf16",
        "decoder.layers.*.fc1": "nf4",
        "decoder.layers.1.fc2": "bnb-int8",
        "decoder.heads": "int8-weight",
        "text_encoder.*": "int8",
    },
    "mixed",
)
SPEC = SamplingSpec(seconds=1, seed=3)


@pytest.fixture(params=["tiny_musicgen", "tiny_family"])
def folder(request):
    found = request.getfixturevalue(request.param)
    return found if request.param == "tiny_musicgen" else found / "student"


@pytest.fixture
def student(tiny_family):
    return tm.load(tiny_family / "student")


def sizes(root: nn.Module) -> set[str]:
    return {type(module).__name__ for module in root.modules()}


def test_the_last_rule_that_matches_wins(student):
    found = MIXED.assign(student.modules)
    assert found["decoder.layers.0.qkv"] == "bf16"
    assert found["decoder.layers.0.fc1"] == found["decoder.layers.1.fc1"] == "nf4"
    assert found["decoder.layers.1.fc2"] == "bnb-int8"
    assert found["decoder.layers.1.qkv"] == found["decoder.embeddings.0"] == "int8"
    assert found["decoder.heads"] == "int8-weight"
    assert found["decoder.norm"] == found["codec.decoder.blocks.0.conv"] == "fp16"
    assert list(found) == list(packable(student.modules))


def test_what_no_rule_reaches_stays_float(student):
    found = Plan.of({"decoder.heads": "int8"}).assign(student.modules)
    assert found.pop("decoder.heads") == "int8"
    assert set(found.values()) == {"fp32"}


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({}, "at least one rule"),
        ({"decoder.*": "int3"}, "'int3'; allowed: fp32, bf16, fp16, int8"),
        ({"decoder.*": 8}, "needs a scheme's name, got 8"),
        ({"": "int8"}, "got ''"),
        (["decoder"], "got list"),
        ({"decoder.layers.9.qkv": "int8"}, "'decoder.layers.9.qkv' is no module of this model; there are decoder.emb"),
        ({"nothing.*": "int8"}, r"'nothing.\*' is no module"),
        ({"decoder.norm": "int8"}, "cannot take a LayerNorm; fp32, bf16, fp16 can"),
        ({"decoder.embeddings.*": "nf4"}, "cannot take a Embedding"),
    ],
)
def test_bad_plans_are_named(student, rules, words):
    with pytest.raises(ValueError, match=words):
        Plan.of(rules).assign(student.modules)


def test_a_plan_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"decoder.*": "fp16"}))
    assert Plan.read(path) == Plan((("decoder.*", "fp16"),), "mine")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"mine.json is no JSON"):
        Plan.read(path)
    with pytest.raises(ValueError, match="none.json cannot be read: No such file"):
        Plan.read(tmp_path / "none.json")


def test_the_papers_map(folder):
    modules = tm.load(folder).modules
    found = preset("paper", modules).assign(modules)
    kinds = {name: type(module) for name, module in packable(modules).items()}
    assert {found[name] for name in found if name.startswith("codec.")} == {"fp32"}
    assert {found[name] for name in found if name.startswith("decoder.")} == {"fp16"}
    inner = {name for name in found if name.startswith("text_encoder.")}
    products = {name for name in inner if kinds[name] in (nn.Linear, nn.Embedding)}
    assert {found[name] for name in products} == {"int8"}
    assert {found[name] for name in inner - products} == {"fp32"}


def test_fast_picks_the_kernel_by_shape(folder):
    modules = tm.load(folder).modules
    found = preset("fast", modules).assign(modules)
    assert found["decoder.layers.0.qkv"] == found["decoder.heads"] == "int8-weight"
    assert found["decoder.layers.0.cross_kv"] == found["decoder.embeddings.0"] == "int8"
    assert not [name for name, scheme in found.items() if scheme == "fp32"]
    modules["decoder"].heads = nn.Linear(32, 2**19, device="meta")
    modules["decoder"].layers[0].qkv = nn.Linear(30, 90, device="meta")
    found = preset("fast", modules).assign(modules)
    assert found["decoder.heads"] == found["decoder.layers.0.qkv"] == "int8"
    with pytest.raises(ValueError, match="no such preset: 'tiny'; allowed: paper, int8, fast"):
        preset("tiny", modules)


def test_the_int4_preset_gives_four_bits_to_large_matrices_alone(student, monkeypatch):
    modules = student.modules
    assert preset("int4", modules).assign(modules)["decoder.layers.0.fc1"] == "int8-weight"
    monkeypatch.setattr("tinymusician_core.quant.plan.FEW_WEIGHTS", 0)
    found = preset("int4", modules).assign(modules)
    assert {found[f"decoder.layers.0.{name}"] for name in ("qkv", "out", "cross_q", "fc1", "fc2")} == {"int4"}
    assert found["decoder.heads"] == "int8"


@pytest.mark.parametrize("plan", [*PRESETS, MIXED])
def test_a_saved_model_plays_what_the_packed_one_plays(folder, tmp_path, plan):
    source = tm.load(folder)
    before = {name: tensor.clone() for name, tensor in source.modules.state_dict().items()}
    if plan is MIXED and "codec.decoder.window" not in before:
        plan = Plan.of({**dict(MIXED.rules), "codec.*": "fp32"}, "mixed")
    written = quantize(source, plan, tmp_path / "q")
    after = source.modules.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    loaded = tm.load(tmp_path / "q")
    assert loaded.name == "q"
    read = [file for file in (tmp_path / "q").iterdir() if file.name != "encoder.safetensors"]
    assert loaded.disk_bytes == written.disk_bytes == sum(file.stat().st_size for file in read)
    assert written.source_bytes == source.disk_bytes
    assert sum(written.counts.values()) == len(written.schemes)
    apply_plan(source.modules, preset(plan, source.modules) if isinstance(plan, str) else plan)
    first, second = (model.generate("a calm piano waltz", SPEC) for model in (loaded, source))
    assert (first.codes == second.codes).all()
    assert (first.audio == second.audio).all()


@pytest.mark.parametrize("plan", PRESETS)
def test_a_quantized_model_stays_close_to_its_float_self(folder, tmp_path, plan):
    source, tokens = tm.load(folder), torch.randint(0, 64, (2, 4, 9), generator=torch.Generator().manual_seed(0))
    quantize(source, plan, tmp_path / "q")
    loaded = tm.load(tmp_path / "q")
    found, wanted = [], []
    for model, logits in ((source, wanted), (loaded, found)):
        states, mask = model.text_encoder.encode(["a calm piano", "the lively flute and drums"])
        with torch.inference_mode():
            logits.append(model.decoder.logits(tokens, states, mask))
    allowed = 0.1 if plan == "int4" else 0.05
    assert float((found[0] - wanted[0]).norm() / wanted[0].norm()) < allowed
    codes = torch.randint(0, 64, (1, 4, 20), generator=torch.Generator().manual_seed(1))
    first, second = loaded.codec.decode(codes), source.codec.decode(codes)
    assert float((first - second).norm() / second.norm()) < 0.1


def test_no_float_weights_are_made(folder, tmp_path):
    quantize(tm.load(folder), "int8", tmp_path / "q")
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    skeleton = build(config, tmp_path / "q")
    assert {p.device.type for m in skeleton.modules() if isinstance(m, nn.Linear) for p in m.parameters()} == {"meta"}
    loaded = tm.load(tmp_path / "q")
    assert not sizes(loaded.modules) & {"Linear", "Embedding"}
    assert {tensor.device.type for tensor in loaded.modules.state_dict().values()} == {"cpu"}


def test_a_plan_replays(student, tmp_path):
    quantize(student, MIXED, tmp_path / "a")
    quantize(student, Plan.read(tmp_path / "a" / "plan.json"), tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_the_codecs_encoder_lies_beside_and_is_read_when_a_sound_is_encoded(folder, tmp_path):
    source = tm.load(folder)
    if isinstance(source.codec, SpectralCodec):
        source.codec._encoder = scramble(SpectralEncoder(source.codec.config), seed=3)
    sound = torch.rand(1, 1, 12800, generator=torch.Generator().manual_seed(2)) - 0.5
    wanted = source.codec.encode(sound)
    written = quantize(source, "int8", tmp_path / "q")
    loaded = tm.load(tmp_path / "q")
    encoder = tmp_path / "q" / "encoder.safetensors"
    assert not [name for name in written.schemes if name.startswith(("codec.encoder", "codec._encoder"))]
    assert encoder not in loaded.files
    assert written.disk_bytes == loaded.disk_bytes
    assert float((loaded.codec.encode(sound) == wanted).float().mean()) > 0.9
    encoder.unlink()
    with pytest.raises((ModelError, FileNotFoundError), match="without its"):
        build(json.loads((tmp_path / "q" / "config.json").read_text()), tmp_path / "q")["codec"].encode(sound)


def test_a_published_one_reads_the_encoder_of_its_family(tiny_family, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(tiny_family, models)
    source = tm.load(models / "student")
    encoder = scramble(SpectralEncoder(source.codec.config), seed=3)
    source.codec.save(models / "codec", encoder)
    source = tm.load(models / "student")
    quantize(source, "int8", tmp_path / "q")
    publish_quantized(tmp_path / "q", tmp_path)
    assert not (models / "quantized" / "encoder.safetensors").exists()
    sound = torch.rand(1, 1, 12800, generator=torch.Generator().manual_seed(2)) - 0.5
    codes = [tm.load(path).codec.encode(sound) for path in (tmp_path / "q", models / "quantized")]
    assert torch.equal(*codes)
    (models / "codec" / "encoder.safetensors").write_bytes(b"other")
    with pytest.raises(ModelError, match="not the file it was"):
        tm.load(models / "quantized")
    with pytest.raises(ValueError, match="another codec"):
        publish_quantized(tmp_path / "q", tmp_path)


def test_a_codec_that_was_trained_on_is_published_beside_its_family(tiny_family, tmp_path):
    models = tmp_path / "assets" / "models"
    shutil.copytree(tiny_family, models)
    before = tm.load(models / "student")
    codec = before.codec
    with torch.no_grad():
        codec.decoder.magnitude.bias.add_(0.5)
    codec.save(tmp_path / "polish" / "model")
    publish_codec(tmp_path, tmp_path / "assets")
    for name in ("teacher", "student"):
        after = tm.load(models / name)
        assert torch.equal(after.codec.decoder.magnitude.bias, codec.decoder.magnitude.bias.half().float())
    with torch.no_grad():
        codec.decoder.score_codebook.weight.add_(0.5)
    codec.save(tmp_path / "polish" / "model")
    with pytest.raises(ValueError, match="other codebooks"):
        publish_codec(tmp_path, tmp_path / "assets")


def test_a_codec_without_an_encoder_is_quantized_without_one(student, tmp_path):
    student.codec.encoder_file = None
    quantize(student, "int8", tmp_path / "q")
    assert not (tmp_path / "q" / "encoder.safetensors").exists()
    with pytest.raises(FileNotFoundError, match="saved without its encoder"):
        tm.load(tmp_path / "q").codec.encode(torch.zeros(1, 1, 3200))


def test_what_is_quantized_already_and_unknown_models_are_refused(student, tmp_path):
    quantize(student, "int8", tmp_path / "q")
    with pytest.raises(ValueError, match="q is quantized already"):
        quantize(tmp_path / "q", "int8", tmp_path / "r")
    with pytest.raises(ValueError, match="no such model: got 'nobody'"):
        quantize("nobody", "int8", tmp_path / "r")
    with pytest.raises(ValueError, match="no such preset"):
        quantize(student, "tiny", tmp_path / "r")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q"]


def test_only_a_quantized_model_is_replaced(student, tiny_family, tmp_path):
    quantize(student, "int8", tmp_path / "q")
    first = tm.load(tmp_path / "q").hash
    quantize(student, "paper", tmp_path / "q")
    assert tm.load(tmp_path / "q").hash != first
    shutil.copytree(tiny_family / "student", tmp_path / "mine")
    with pytest.raises(ValueError, match="mine holds a tinymusician model; give a new folder"):
        quantize(student, "int8", tmp_path / "mine")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="notes holds files that are no model"):
        quantize(student, "int8", tmp_path / "notes")
    with pytest.raises(ValueError, match="is a file"):
        quantize(student, "int8", tmp_path / "notes" / "a.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "notes", "q"]


def test_a_run_that_is_stopped_or_fails_leaves_nothing(student, tmp_path, monkeypatch):
    told = []
    with pytest.raises(Cancelled):
        quantize(student, "int8", tmp_path / "q", lambda *step: told.append(step), lambda: len(told) == 5)
    assert [done for _, done, _ in told] == [1, 2, 3, 4, 5]
    assert not list(tmp_path.iterdir())
    quantize(student, "int8", tmp_path / "q")
    kept = tm.load(tmp_path / "q").hash

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(apply, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        quantize(student, "paper", tmp_path / "q")
    assert [path.name for path in tmp_path.iterdir()] == ["q"]
    assert tm.load(tmp_path / "q").hash == kept


@pytest.mark.parametrize("name", apply.FILES)
def test_changed_and_missing_files_are_named(student, tmp_path, name):
    quantize(student, "int8", tmp_path / "q")
    path = tmp_path / "q" / name
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ModelError, match=f"{name} is not the file it was"):
        tm.load(tmp_path / "q")
    path.unlink()
    with pytest.raises(ModelError, match=f"{name} is missing"):
        tm.load(tmp_path / "q")


def test_files_that_do_not_fit_together_are_named(student, tmp_path):
    quantize(student, "int8", tmp_path / "q")
    plan = json.loads((tmp_path / "q" / "plan.json").read_text())
    for schemes, words in (
        ({"decoder.heads": "int8"}, "do not fit together"),
        (plan["modules"] | {"decoder.heads": "fp16"}, "the stored weights lack half"),
    ):
        (tmp_path / "q" / "plan.json").write_text(json.dumps(plan | {"modules": schemes}))
        with pytest.raises(ModelError, match=words):
            loading.load_quantized(tmp_path / "q")


def test_a_plan_without_bitsandbytes_needs_none(student, tmp_path):
    quantize(student, "fast", tmp_path / "q")
    code = (
        "import sys; sys.modules['bitsandbytes'] = None; import tinymusician_core as tm;"
        f"tm.generate(tm.load({str(tmp_path / 'q')!r}), 'a calm piano', seconds=0.5)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("plan", [*PRESETS, MIXED])
def test_bytes_are_known_before_anything_is_written(folder, tmp_path, plan):
    source = tm.load(folder)
    if plan is MIXED and not isinstance(source.codec, SpectralCodec):
        plan = Plan.of({**dict(MIXED.rules), "codec.*": "fp32"}, "mixed")
    recipe = apply.recipe_of(source, preset(plan, source.modules) if isinstance(plan, str) else plan)
    targets = packable(source.modules)
    tensors = [
        Stored.of(f"{name}.{key}", tensor)
        for name, scheme in recipe.schemes.items()
        for key, tensor in to_tensors(targets[name], scheme).items()
    ]
    foreseen = apply.disk_bytes(source, recipe, tensors, "q")
    assert foreseen == apply.write(source, recipe, tmp_path / "q").disk_bytes
