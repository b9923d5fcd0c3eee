import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tinymusician_core import ModelError, SamplingSpec, load
from tinymusician_core.bundle import load_parts, save_family
from tinymusician_core.files import identity_of, sha256_of, whole_file
from tinymusician_core.stored import Weights, weight_files
from tinymusician_core.variants import assets_folder, resolve


@pytest.fixture
def family(tiny_family, tmp_path) -> Path:
    """A copy of the tiny family that a test may break."""
    return Path(shutil.copytree(tiny_family, tmp_path / "models"))


@pytest.fixture
def musicgen(tiny_musicgen, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_musicgen, tmp_path / "musicgen"))


def one_sentence(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def flip_a_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_the_demo_family_loads_by_name(demo_family):
    assert assets_folder() == demo_family.parent
    teacher, student = load("teacher"), load("student")
    assert (teacher.name, student.name) == ("teacher", "student")
    assert len(teacher.decoder.layers) == 4
    assert len(student.decoder.layers) == 2
    assert (student.sample_rate_hz, student.frame_rate_hz) == (32000, 25.0)
    assert len(student.hash) == 16
    assert student.hash != teacher.hash


def test_disk_bytes_counts_each_file_that_generating_reads(demo_family):
    names = {"student/config.json", "student/model.safetensors", "codec/config.json", "codec/decoder.safetensors"}
    names |= {"text/config.json", "text/model.safetensors", "text/tokenizer.json"}
    student = load("student")
    assert {file.resolve().relative_to(demo_family).as_posix() for file in student.files} == names
    assert student.disk_bytes == sum((demo_family / name).stat().st_size for name in names)


def test_weights_come_back_as_they_were_saved(tiny_family):
    stored = load_file(tiny_family / "student" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    decoder = load_parts(tiny_family / "student").decoder
    layer = "decoder.model.decoder.layers.1."
    q, k, v = decoder.layers[1].qkv.weight.chunk(3)
    assert q.dtype == torch.float32
    assert torch.equal(q, stored[layer + "self_attn.q_proj.weight"].float())
    assert torch.equal(k, stored[layer + "self_attn.k_proj.weight"].float())
    assert torch.equal(v, stored[layer + "self_attn.v_proj.weight"].float())
    assert torch.equal(decoder.heads.weight[64:128], stored["decoder.lm_heads.1.weight"].float())


def test_a_transformers_folder_loads_through_the_same_call(tiny_musicgen):
    model = load(tiny_musicgen)
    assert model.name == "tiny-musicgen"
    assert (model.sample_rate_hz, model.frame_rate_hz) == (32000, 50.0)
    assert model.disk_bytes == sum(file.stat().st_size for file in model.files)
    assert {file.name for file in model.files} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert load(str(tiny_musicgen)).hash == model.hash


def test_sharded_weights_give_the_same_model(tiny_musicgen, musicgen):
    from transformers import MusicgenForConditionalGeneration

    MusicgenForConditionalGeneration.from_pretrained(tiny_musicgen).save_pretrained(musicgen, max_shard_size="50KB")
    (musicgen / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(musicgen.glob("model-*.safetensors"))
    assert len(shards) > 1
    whole, sharded = load(tiny_musicgen), load(musicgen)
    assert {file.name for file in sharded.files} >= {shard.name for shard in shards}
    spec = SamplingSpec(seconds=0.5, seed=3)
    assert (whole.generate("a jig", spec).codes == sharded.generate("a jig", spec).codes).all()
    shards[0].unlink()
    with pytest.raises(ModelError, match=f"{shards[0].name} is missing"):
        load(musicgen)


@pytest.mark.parametrize("name", ["student/model.safetensors", "text/model.safetensors", "codec/decoder.safetensors"])
@pytest.mark.parametrize("at", [-1, 200])
def test_one_changed_byte_is_noticed_and_the_file_named(family, name, at):
    flip_a_byte(family / name, at)
    with pytest.raises(ModelError, match="is not the file it was: its sha256 differs") as caught:
        load(family / "student")
    assert name.split("/")[1] in one_sentence(caught)


def test_a_missing_file_is_named(family):
    (family / "text" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        load(family / "student")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_weights_that_were_cut_short_are_one_sentence(musicgen, share):
    weights = musicgen / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(weights.stat().st_size * share)])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged or cut short") as caught:
        load(musicgen)
    one_sentence(caught)


def test_weights_of_another_shape_or_number_are_named(family):
    student = family / "student"
    config = json.loads((student / "config.json").read_text())
    config["decoder"]["num_hidden_layers"] = 3
    (student / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"weights lack .*layers\.2\."):
        load(student)
    config["decoder"].update(num_hidden_layers=2, ffn_dim=40)
    (student / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"fc1.weight is \(48, 32\), its configuration says \(40, 32\)"):
        load(student)
    del config["decoder"]["hidden_size"]
    (student / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="lacks hidden_size"):
        load(student)


def test_a_transformers_folder_that_lacks_weights_is_refused(musicgen):
    state = load_file(musicgen / "model.safetensors")
    del state["decoder.lm_heads.2.weight"]
    save_file(state, musicgen / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"weights lack decoder\.lm_heads\.2\.weight"):
        load(musicgen)


@pytest.mark.parametrize(
    "name", ["text_encoder.encoder.final_layer_norm.weight", "audio_encoder.encoder.layers.0.conv.bias"]
)
def test_a_part_that_lacks_weights_is_refused(musicgen, name):
    state = load_file(musicgen / "model.safetensors")
    del state[name]
    save_file(state, musicgen / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 weights, among them " + name.split(".", 1)[1].replace(".", r"\.")):
        load(musicgen)


def test_weights_that_no_part_has_a_place_for_are_not_passed_over(musicgen):
    state = load_file(musicgen / "model.safetensors")
    state["decoder.model.decoder.layers.0.fc1.bias"] = torch.ones(48)
    save_file(state, musicgen / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"holds 1 weights that this model has no place for, among them .*fc1\.bias"):
        load(musicgen)


def test_weights_pickled_by_pytorch_are_refused_with_the_way_out(musicgen):
    (musicgen / "model.safetensors").unlink()
    (musicgen / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin alone, and only safetensors are read") as caught:
        load(musicgen)
    assert "save_pretrained" in one_sentence(caught)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_stored_in_half_the_bits_run_in_float32(musicgen, dtype):
    state = {name: tensor.to(dtype) for name, tensor in load_file(musicgen / "model.safetensors").items()}
    save_file(state, musicgen / "model.safetensors", metadata={"format": "pt"})
    model = load(musicgen)
    assert {tensor.dtype for tensor in model.modules.parameters()} == {torch.float32}
    stored = state["decoder.model.decoder.layers.1.fc2.weight"]
    assert torch.equal(model.decoder.get_parameter("layers.1.fc2.weight"), stored.float())
    assert model.generate("a calm piano", SamplingSpec(seconds=0.5)).audio.shape == (1, 16000)


def test_weights_are_read_one_by_one_into_memory_of_their_own(musicgen):
    [path] = weight_files(musicgen)
    weights, stored = Weights([path]), load_file(path)
    name = "decoder.lm_heads.0.weight"
    first, second = weights[name], weights[name]
    assert torch.equal(first, stored[name])
    assert first.data_ptr() != second.data_ptr()
    weights["extra"] = first
    assert weights.pop("extra") is first
    assert set(weights.take("decoder.lm_heads.")) == {f"{k}.weight" for k in range(4)}
    assert name not in weights
    assert len(weights) == len(stored) - 4


def test_the_identity_of_a_big_file_rests_on_a_sample_of_it(tmp_path, monkeypatch):
    small, big = tmp_path / "small", tmp_path / "big"
    small.write_bytes(b"x" * 1000)
    assert identity_of(small) == sha256_of(small)
    monkeypatch.setattr("tinymusician_core.files.SAMPLED_BYTES", 1 << 20)
    data = torch.randint(0, 256, (9 << 20,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    big.write_bytes(data.tobytes())
    first = identity_of(big)
    assert first.startswith("sampled-")
    assert identity_of(big) == first
    for start, end in ((0, 1), (5 << 20, (5 << 20) + 16384), (data.size - 1, data.size)):
        changed = data.copy()
        changed[start:end] += 1
        big.write_bytes(changed.tobytes())
        assert identity_of(big) != first
    big.write_bytes(data.tobytes() + b"x")
    assert identity_of(big) != first


def test_two_fine_tunes_have_two_hashes(tiny_musicgen, musicgen, monkeypatch):
    state = load_file(musicgen / "model.safetensors")
    state["decoder.model.decoder.layers.2.fc1.weight"] *= 1.01
    save_file(state, musicgen / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("tinymusician_core.files.SAMPLED_BYTES", 1 << 16)
    assert load(musicgen).hash != load(tiny_musicgen).hash


def test_a_transformers_folder_without_a_tokenizer_is_refused(musicgen):
    for path in musicgen.glob("*token*"):
        path.unlink()
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load(musicgen)


def test_a_codec_that_does_not_fit_is_refused(family):
    from tinymusician_core.codec.spectral import SpectralCodec, SpectralConfig

    SpectralCodec(SpectralConfig(codebook_size=32, decoder_dim=16, decoder_blocks=1)).save(family / "codec")
    config = json.loads((family / "student" / "config.json").read_text())
    config["files"] = {name: sha256_of(family / "student" / name) for name in config["files"]}
    (family / "student" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="makes 4 codebooks of 64 entries, its codec reads 4 of 32"):
        load(family / "student")


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "gpt2"}', "{}"])
def test_a_folder_of_another_kind_is_no_model(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((ValueError, ModelError)) as caught:
        load(tmp_path)
    assert str(tmp_path) in one_sentence(caught)


def test_a_folder_without_a_configuration_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="is no model: .*tinymusician, tinymusician-quantized.* there is none"):
        load(tmp_path)


def test_a_family_folder_must_list_its_files(family):
    config = json.loads((family / "student" / "config.json").read_text())
    del config["files"]
    (family / "student" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="lists no files with their hashes"):
        load(family / "student")


@pytest.mark.parametrize("name", ["nope", "", "a/b/c", "./student", "🎹", None, 7, "x" * 5000, "a\0b"])
def test_unknown_names_are_told_what_is_allowed(name):
    with pytest.raises(ValueError, match="^no such model: got .*; allowed are teacher, student, quantized, ") as caught:
        load(name)
    one_sentence(caught)


def test_a_family_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYMUSICIAN_ASSETS", str(tmp_path))
    with pytest.raises(ModelError, match="the demo family's quantized is not at"):
        load("quantized")


def test_an_unreachable_hub_is_one_sentence_with_the_way_out(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def unreachable(**wanted):
        asked.append(wanted)
        raise LocalEntryNotFoundError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ModelError, match="facebook/musicgen-small is no folder here and could not be had") as caught:
        load("facebook/musicgen-small")
    assert "https://huggingface.co/facebook/musicgen-small" in one_sentence(caught)
    assert [call.get("local_files_only", False) for call in asked] == [True, False]
    assert all(call["etag_timeout"] <= 5 for call in asked)


def test_a_hub_model_that_was_downloaded_before_needs_no_network(tiny_musicgen, monkeypatch):
    import huggingface_hub

    def offline(repo_id, local_files_only=False, **_):
        assert local_files_only, "the network was asked for"
        return str(tiny_musicgen)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert load("someone/a-model").name == "someone/a-model"


def test_half_a_download_is_taken_up_again(tiny_musicgen, musicgen, monkeypatch):
    import huggingface_hub

    (musicgen / "model.safetensors").unlink()

    def download(repo_id, local_files_only=False, **_):
        return str(musicgen if local_files_only else tiny_musicgen)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("someone/a-model") == tiny_musicgen


def test_saving_leaves_no_half_written_folder(family, monkeypatch):
    student = family / "student"
    before = {path.name: path.read_bytes() for path in student.iterdir()}

    def full(path, *_, **__):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinymusician_core.bundle.save_file", lambda tensors, path: full(path))
    with pytest.raises(OSError, match="No space left"):
        save_family(student, "student", {}, {"x": torch.zeros(1)})
    assert {path.name: path.read_bytes() for path in student.iterdir()} == before


def test_whole_file_appears_only_when_all_went_well(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail():
        with whole_file(target) as path:
            path.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    with whole_file(target) as path:
        path.write_text("new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]
    nowhere = tmp_path / "nowhere" / "b"
    with pytest.raises(FileNotFoundError, match="the folder .*nowhere does not exist"), whole_file(nowhere):
        pass


def test_the_window_that_a_model_was_trained_on_travels_with_it(family, tiny_musicgen, tmp_path):
    from tinymusician_core.quant.apply import quantize

    assert load_parts(family / "student").window_s == load_parts(tiny_musicgen).window_s == 30.0
    config = json.loads((family / "student" / "config.json").read_text())
    (family / "student" / "config.json").write_text(json.dumps(config | {"window_s": 20}))
    student = load(family / "student")
    assert student.window_s == 20.0
    quantize(student, "int8", tmp_path / "small")
    assert load(tmp_path / "small").window_s == 20.0


@pytest.mark.parametrize("window", [0, -1.0, "20", None, True, float("inf"), float("nan")])
def test_a_window_that_is_no_length_is_refused(family, window):
    config = json.loads((family / "student" / "config.json").read_text())
    (family / "student" / "config.json").write_text(json.dumps(config | {"window_s": window}))
    with pytest.raises(ModelError, match="model student has a window_s of .*; a number above 0 is allowed") as caught:
        load(family / "student")
    one_sentence(caught)
    with pytest.raises(ValueError, match="window_s is"):
        save_family(family / "other", "other", {}, {}, window_s=window)
    assert not (family / "other").exists()
