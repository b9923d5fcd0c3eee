"""What a model plays with where nothing else is asked for: in its folder, in what is made of it, in a MusicGen."""

import json
import shutil

import pytest
from test_distill import SMALL, write_clips

import tinymusician_core as tm
from tinymusician_core.made_for import MadeFor


def made_for(models, name: str, **settings):
    """The model `name` beside `models`, whose config.json names these settings."""
    folder = models / name
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def test_a_model_plays_with_what_it_is_made_for_where_nothing_else_is_asked_for(tiny_family, tmp_path):
    models, tokens = shutil.copytree(tiny_family, tmp_path / "models"), write_clips(tmp_path / "tokens")
    plain = tm.generate(tm.load(models / "teacher"), "a calm piano", 1)
    assert (plain.sampling.cfg, plain.sampling.top_p) == (3.0, 0.0)
    teacher = made_for(models, "teacher", guidance_scale=2.0, top_p=0.5)
    tm.distill(teacher, tokens, 1, models / "mine", steps=1, **SMALL)
    tm.quantize(teacher, "int8", models / "small")
    for name in ("teacher", "mine", "small"):
        model = tm.load(models / name)
        clip, asked = (tm.generate(model, "a calm piano", 1, **ask) for ask in ({}, {"cfg": 2.0, "top_p": 0.5}))
        assert model.made_for == MadeFor(2.0, 0.5)
        assert (clip.sampling.cfg, clip.sampling.top_p) == (2.0, 0.5)
        assert (clip.codes == asked.codes).all()
        for other in ({"cfg": 5.0}, {"top_p": 0.0}):
            assert (tm.generate(model, "a calm piano", 1, **other).codes != clip.codes).any()


def test_a_musicgen_plays_with_what_its_generation_config_says(tiny_musicgen, tmp_path):
    assert tm.load(tiny_musicgen).made_for == MadeFor(3.0, 0.0)
    folder = shutil.copytree(tiny_musicgen, tmp_path / "own")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"guidance_scale": 4.5, "top_p": 0.9}))
    assert tm.load(folder).made_for == MadeFor(4.5, 0.9)
    file.unlink()
    assert tm.load(folder).made_for == MadeFor(3.0, 0.0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"guidance_scale": "much"}, "guidance_scale of 'much': cfg must be"),
        ({"top_p": 1.5}, "top_p of 1.5: top_p must be"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(tiny_family, tmp_path, settings, says):
    models = shutil.copytree(tiny_family, tmp_path / "models")
    with pytest.raises(tm.ModelError, match=f"the model teacher is made for a {says}"):
        tm.load(made_for(models, "teacher", **settings))
