"""What an evaluation may be asked to do, and that a folder is kept to what it was begun with."""

import json

import pytest

from tinymusician_core.evaluate.settings import Settings, claim, read_prompts

FACTS = {"models": ["teacher", "student"], "clips": 20, "reference": None}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models": ()}, "at least one name"),
        ({"models": ("teacher", "teacher")}, "each once"),
        ({"models": ("teacher", "tutor")}, "no such model: got 'tutor'"),
        ({"clips": 19}, "clips must be a whole number from 20 to 10000, got 19"),
        ({"seconds": 0.5}, "seconds must be 1 or more"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"device": "tpu"}, "device must be one of cpu, cuda, got 'tpu'"),
        ({"prompts": ()}, "at least one, got none"),
        ({"reference": "nowhere"}, "reference must be a folder of sound files, got 'nowhere'"),
    ],
)
def test_what_is_not_allowed_gets_one_sentence(demo_family, change, says):
    with pytest.raises(ValueError, match=says):
        Settings(**{"models": ("teacher",), **change})


def test_settings_as_json_tell_prompts_and_references_apart(demo_family, tmp_path):
    plain = Settings(("teacher", "student"), clips="20").as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert (plain["clips"], plain["prompts"], plain["reference"]) == (20, None, None)
    one, two = (Settings(("teacher",), prompts=(text,)).as_dict()["prompts"] for text in ("a jig", "a reel"))
    assert one != two
    assert Settings(("teacher",), reference=tmp_path).as_dict()["reference"] == str(tmp_path.resolve())


def test_prompts_come_one_a_line(tmp_path):
    (tmp_path / "prompts.txt").write_text("  a jig\n\na “sad” air \n", encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.txt") == ("a jig", "a “sad” air")


@pytest.mark.parametrize(
    ("content", "says"), [(b"\n \n", "holds no prompt"), (b"\xff\xfe\x00", "got "), (b"x" * 1001, "1001 characters")]
)
def test_files_without_prompts(tmp_path, content, says):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_prompts(tmp_path / "prompts.txt")


def test_no_such_file_of_prompts(tmp_path):
    with pytest.raises(ValueError, match="there is no"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="a prompt a line; got"):
        read_prompts(tmp_path)


def test_a_run_is_begun_once_and_gone_on_with(tmp_path):
    folder = tmp_path / "deep" / "run"
    claim(folder, "settings.json", FACTS)
    (folder / "clips.jsonl").write_text("{}\n")
    claim(folder, "settings.json", FACTS)
    assert json.loads((folder / "settings.json").read_text()) == FACTS


def test_other_settings_are_named(tmp_path):
    claim(tmp_path, "settings.json", FACTS)
    with pytest.raises(ValueError, match="whose clips was 20, not 40; go on with the same settings, or give another"):
        claim(tmp_path, "settings.json", FACTS | {"clips": 40})
    with pytest.raises(ValueError, match="whose models was teacher, student, not teacher;"):
        claim(tmp_path, "settings.json", FACTS | {"models": ["teacher"]})
    with pytest.raises(ValueError, match="whose speed was None, not True;"):
        claim(tmp_path, "settings.json", FACTS | {"speed": True})


def test_a_folder_of_something_else_stays_as_it_is(tmp_path):
    (tmp_path / "letter.txt").write_text("dear all")
    with pytest.raises(ValueError, match="holds files that are no evaluation"):
        claim(tmp_path, "settings.json", FACTS)
    with pytest.raises(ValueError, match=r"output must be a folder, got the file '.*letter.txt'"):
        claim(tmp_path / "letter.txt", "settings.json", FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
