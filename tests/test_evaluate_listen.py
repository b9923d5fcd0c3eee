"""Long clips, and clips to listen to: how steady they are, the page, the sheet of spectrograms, the sounds."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluation import make_assets, quick_judges, records
from PIL import Image
from test_cli import run

import tinymusician_core as tm
from tinymusician_core import audio
from tinymusician_core.evaluate import jury, reference, steadiness
from tinymusician_core.evaluate import listen as listening
from tinymusician_core.evaluate.held_out import FOLDER, STEADY, HeldOut, read_records
from tinymusician_core.evaluate.jury import Judged
from tinymusician_core.evaluate.limits import MEASURES, REFERENCE
from tinymusician_core.evaluate.listener import Listener
from tinymusician_core.evaluate.pictures import CELL_BYTES, MAX_ROWS, Sheet, picture
from tinymusician_core.evaluate.run import evaluate
from tinymusician_core.evaluate.settings import read_prompts
from tinymusician_core.pretrain import held_out
from tinymusician_core.records import Cancelled

MODELS = ("teacher", "student")
LONG = {"models": MODELS, "clips": 20, "seconds": 1.6, "speed": False, "prompts": "in-domain"}
PROMPTS = ["a calm piano waltz in G major", 'a <b>"lively"</b> flute jig & more', "slow violin air in d minor"]


def quick_chroma(samples: np.ndarray) -> np.ndarray:
    """Twelve bands of frequency [12,T]: librosa's chroma takes long to set up for every clip."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, 2048)[::512]
    return np.abs(np.fft.rfft(frames))[:, 5:65].reshape(len(frames), 12, 5).sum(2).T


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Steadiness from a second on, and few windows of real music."""
    with pytest.MonkeyPatch.context() as patch:
        quick_judges(patch)
        patch.setattr(steadiness, "MIN_S", 1.0)
        for module in (jury, reference):
            patch.setattr(module, "MIN_S", 1.5)
        patch.setattr(held_out, "REFERENCE", 24)
        patch.setattr(steadiness, "chroma_of", quick_chroma)
        yield


@pytest.fixture(scope="module")
def assets(quick, tiny_family, tmp_path_factory):
    assets = make_assets(tmp_path_factory.mktemp("listen"), tiny_family)
    held_out.write_steady(held_out._Maker(assets.parent / "work", assets, 1.6), assets / FOLDER)
    (assets / "prompts").mkdir()
    (assets / "prompts" / "in-domain.txt").write_text("\n".join(PROMPTS))
    return assets


@pytest.fixture(autouse=True)
def tiny_assets(assets, monkeypatch):
    monkeypatch.setenv("TINYMUSICIAN_ASSETS", str(assets))


@pytest.fixture(scope="module")
def whole(assets, tmp_path_factory):
    """A folder with an evaluation of long clips to listen to, and what it found."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYMUSICIAN_ASSETS", str(assets))
        return folder, evaluate(**LONG, listen=True, output=folder).as_dict()


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Page(HTMLParser):
    """The tags of a page with their attributes, and all of its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data

    def all(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


# steadiness


def test_real_music_is_kept_in_longer_windows(assets):
    kept = HeldOut.from_folder(assets / FOLDER)
    assert {name: len(each) for name, each in kept.steady.items()} == {
        REFERENCE: 24,
        "real audio": 16,
        "codec round trip": 16,
    }
    assert kept.steady_s == 1.6
    first = read_records(assets / FOLDER / STEADY)[0]
    piece, start = first["id"].split("@")
    sound = audio.read(assets.parent / "work" / "audio" / f"{piece}.flac").audio[:, int(start) * 1280 :][:, : 40 * 1280]
    assert steadiness.steadiness(sound, 32000).as_record().items() <= first.items()


def test_an_evaluation_of_long_clips_says_how_steady_they_are(whole):
    folder, made = whole
    found = made["steadiness"]
    assert (found["seconds"], found["windows"], set(found["limits"])) == (1.6, 24, set(MEASURES))
    assert list(found["rows"]) == [*MODELS, "real audio", "codec round trip"]
    for number, name in enumerate(MODELS, start=1):
        clips = [each["steadiness"] for each in records(folder / f"{number}-{name}" / "clips.jsonl")]
        row = found["rows"][name]
        assert row["mean"]["noise"]["value"] == pytest.approx(np.mean([each["noise"] for each in clips]))
        share = np.mean([each["noise"] <= found["limits"]["noise"] for each in clips])
        assert row["within"]["noise"]["value"] == pytest.approx(share)
        assert row["within"]["noise"]["low"] <= share <= row["within"]["noise"]["high"]
    report = (folder / "report.md").read_text()
    assert "## Whether clips of 1.6 s stay one piece of music" in report
    assert "Limits of 24 windows of real music of 1.6 s: key at least" in report
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(made))


def test_the_end_of_a_long_clip_is_compared_and_all_of_it_is_heard(whole):
    folder, _ = whole
    record = Judged.from_record(records(folder / "2-student" / "clips.jsonl")[4])
    clip, listener = tm.generate(tm.load("student"), record.prompt, seconds=1.6, seed=4), Listener.from_folder()
    end = listener.hear(clip.audio[:, -32000:], 32000)
    np.testing.assert_array_equal(record.embedding, end.embedding)
    heard = listener.hear(clip.audio, 32000).probabilities
    for name, values in heard.items():
        np.testing.assert_allclose(record.heard.probabilities[name], values, atol=1e-5)


def test_short_clips_have_no_steadiness(tmp_path):
    made = evaluate(**LONG | {"models": ("student",), "seconds": 1}, output=tmp_path / "run")
    assert made.steadiness is None
    assert "one piece of music" not in (tmp_path / "run" / "report.md").read_text()
    assert "steadiness" not in records(tmp_path / "run" / "1-student" / "clips.jsonl")[0]


def test_a_reference_of_ones_own_sets_its_own_limits(assets, tmp_path):
    work = assets.parent / "work" / "audio"
    found = evaluate(**LONG | {"models": ("student",)}, reference=work).as_dict()["steadiness"]
    assert list(found["rows"]) == ["student", "real audio"]
    assert (found["seconds"], found["windows"]) == (1.6, 32)


# listening


def test_every_clip_is_kept_as_it_was_played(whole):
    folder, _ = whole
    for number, name in enumerate(MODELS, start=1):
        files = sorted((folder / f"{number}-{name}" / "clips").iterdir())
        assert [file.name for file in files] == [f"{index:03}.wav" for index in range(20)]
    file = folder / "2-student" / "clips" / "007.wav"
    clip = tm.generate(tm.load("student"), PROMPTS[7 % 3], seconds=1.6, seed=7)
    assert np.abs(audio.read(file).audio - clip.audio).max() <= 1 / 32768
    assert audio.read_tags(file)["title"] == PROMPTS[1]


def test_the_page_holds_all_clips_of_all_prompts(whole):
    folder, _ = whole
    page = Page((folder / "listen.html").read_text(encoding="utf-8"))
    players = [each["src"] for each in page.all("audio")]
    assert players == [f"{k}-{name}/clips/{i:03}.wav" for i in range(20) for k, name in enumerate(MODELS, start=1)]
    assert all((folder / player).is_file() for player in players)
    assert len(page.all("tr")) == 21
    for index in range(20):
        assert f"{index + 1}. {PROMPTS[index % 3]}seed {index}" in page.words
    assert not page.all("b"), "prompts are text"
    pictures = [each["src"] for each in page.all("img")]
    assert len(pictures) == 40
    first = Image.open(io.BytesIO(base64.b64decode(pictures[0].removeprefix("data:image/jpeg;base64,"))))
    seen = np.asarray(first, dtype=float)
    drawn = np.asarray(picture(folder / players[0]), dtype=float)
    assert seen.shape == drawn.shape
    assert np.abs(seen - drawn).mean() < 8


def test_the_page_needs_nothing_from_elsewhere(whole):
    text = (whole[0] / "listen.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    assert not Page(text).all("link")


def test_the_page_says_what_was_heard_and_asked_for(whole):
    folder, made = whole
    page = (folder / "listen.html").read_text(encoding="utf-8")
    cell = page.split("<td ")[1]
    clip = Judged.from_record(records(folder / "1-teacher" / "clips.jsonl")[0])
    for name, wanted in (("instrument", "piano"), ("style", "waltz"), ("mode", "major"), ("tempo", "slow")):
        heard = clip.heard.best(name)
        kind, mark = ("yes", "✓") if heard == wanted else ("no", "✗")
        assert f'<li class="{kind}">{mark} {heard} ' in cell
    beyond = [name for name in MEASURES if made["steadiness"]["limits"] and listening.BEYOND[name] in cell]
    assert beyond == list(listening.failures(clip.steadiness, made["steadiness"]["limits"]))
    assert "asks for: piano, waltz, slow, major" in page


def test_the_sheet_shows_every_clip(whole):
    sheet = Image.open(whole[0] / "spectrograms.jpg")
    assert sheet.size == (2 * 246 + 6, 18 + 20 * 82 + 6)
    assert (whole[0] / "spectrograms.jpg").stat().st_size <= 2 * 20 * CELL_BYTES
    small = picture(whole[0] / "2-student" / "clips" / "003.wav").resize((240, 64), Image.Resampling.BOX)
    left, top = 6 + 246, 18 + 3 * 82 + 18
    shown = np.asarray(sheet, dtype=float)[top : top + 64, left : left + 240]
    assert np.abs(shown - np.asarray(small, dtype=float)).mean() < 10


def test_a_sheet_has_room_for_so_many_and_cuts_long_prompts_off(tmp_path):
    with pytest.raises(ValueError, match=f"at most {MAX_ROWS} prompts, got {MAX_ROWS + 1}"):
        Sheet(["student"], MAX_ROWS + 1)
    sheet = Sheet(["student"], 1)
    sheet.add("1. " + "very " * 100 + "long", [])
    assert sheet.save(tmp_path / "sheet.jpg").stat().st_size < 10_000


def test_a_stop_and_a_lost_sound_change_nothing(whole, tmp_path):
    """A clip that was recorded and has no sound is played again, and gives the same bytes; others are not."""
    folder, steps = tmp_path / "run", []
    with pytest.raises(Cancelled, match="stopped after 2 of 20 clips of student"):
        evaluate(
            **LONG,
            listen=True,
            output=folder,
            on_progress=steps.append,
            should_stop=lambda: (steps[-1].model, steps[-1].stage, steps[-1].done) == ("student", "clips", 2),
        )
    (folder / "1-teacher" / "clips" / "005.wav").unlink()
    (folder / "2-student" / "clips" / "002.wav").write_bytes(b"half a fi")
    steps.clear()
    evaluate(**LONG, listen=True, output=folder, on_progress=steps.append)
    assert [step.done for step in steps if (step.model, step.stage) == ("teacher", "clips")] == [5, 20]
    assert contents(folder) == contents(whole[0])


def test_an_evaluation_can_be_listened_to_afterwards(whole, tmp_path):
    silent = {name: content for name, content in contents(whole[0]).items() if "/clips/" not in name}
    del silent["listen.html"], silent["spectrograms.jpg"]
    for name, content in silent.items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(content)
    evaluate(**LONG, output=tmp_path / "run")
    assert contents(tmp_path / "run") == silent
    evaluate(**LONG, listen=True, output=tmp_path / "run")
    assert contents(tmp_path / "run") == contents(whole[0])


def test_the_command_plays_a_shipped_set_and_says_where_the_page_is(whole, capsys, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    command = ("evaluate", "--models", "teacher,student", "--clips", "20", "--seconds", "1.6", "--no-speed")
    code, out, err = run(capsys, *command, "--prompts", "in-domain", "--listen", "-o", str(tmp_path / "run"))
    assert (code, err) == (0, "")
    assert out.rstrip().endswith("listen.html")
    assert "as real music" in out
    made, before = contents(tmp_path / "run"), contents(whole[0])
    typed = f"{' '.join(command)} --prompts in-domain --listen -o DIR"
    for name, end in (("report.md", "`"), ("report.json", '"')):
        assert f"tinymusician {typed}{end}" in made.pop(name).decode()
        assert typed not in before.pop(name).decode()
    assert made == before


def test_listening_needs_a_folder_and_has_a_limit(tmp_path):
    with pytest.raises(ValueError, match="need an output folder, got none"):
        evaluate(**LONG, listen=True)
    with pytest.raises(ValueError, match=f"at most {listening.MAX_CLIPS} clips a variant, got 5000"):
        evaluate(**LONG | {"clips": 5000}, listen=True, output=tmp_path / "run")


def test_the_sets_are_found_by_name(monkeypatch):
    assert read_prompts("in-domain") == tuple(PROMPTS)
    monkeypatch.delenv("TINYMUSICIAN_ASSETS")
    assert (len(read_prompts("in-domain")), len(read_prompts("out-of-domain"))) == (50, 20)
    with pytest.raises(ValueError, match="in-domain, out-of-domain, or a text file with a prompt a line; there is no"):
        read_prompts("indomain")
