"""Every stage of the recipe, as it is called from the command line, calls its function with arguments that it takes."""

import sys
from pathlib import Path
from unittest import mock

import pytest

from tinymusician_core.pretrain import __main__ as recipe

CALLED = {
    "scores": "scores.build_scores",
    "audio": "render.build_audio",
    "codec": "codec.train_codec",
    "polish": "polish.polish_codec",
    "hear": "hear.train_ear",
    "tokens": "encode.build_tokens",
    "teacher": "teacher.train_teacher",
    "listener": "listener.train_listener",
    "figures": "figures.print_figures",
    "publish": "publish.publish_teacher",
    "publish-codec": "publish.publish_codec",
    "publish-listener": "listener.publish_listener",
    "held-out": "held_out.build_held_out",
}


@pytest.mark.parametrize(("stage", "function"), CALLED.items())
def test_a_stage_calls_its_function_with_what_it_takes(stage, function, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["pretrain", stage, "--work", str(tmp_path)])
    with mock.patch(f"tinymusician_core.pretrain.{function}", autospec=True) as called:
        recipe.main()
    given = called.call_args
    assert Path(tmp_path) in given.args
