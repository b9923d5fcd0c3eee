"""What the studio's server hands out, asked without a browser."""

import json
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np

from studio.cards import file_url
from studio.store import FILE_NAME
from tinymusician_core import audio
from tinymusician_core.records import Waveform

from .conftest import REPO


def fetch(url: str, **headers) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""


def test_only_the_output_folder_is_served_and_not_its_history(studio):
    clip = audio.write_wav(studio.folder / "clips" / "here.wav", Waveform(np.zeros((1, 99), dtype=np.float32), 8000))
    assert fetch(studio.url + file_url(clip)) == (200, clip.read_bytes())
    assert fetch(studio.url + file_url(clip), Range="bytes=0-3") == (206, b"RIFF")
    assert (studio.folder / FILE_NAME).is_file()
    for path in (studio.folder / FILE_NAME, studio.folder.parent / "log", studio.folder / ".." / "log"):
        assert fetch(studio.url + file_url(path))[0] in (403, 404)


def test_the_page_names_no_address_but_its_own(studio):
    status, page = fetch(studio.url)
    assert status == 200
    assert b"TinyMusician" in page
    assert b"fonts.googleapis.com" not in page
    config = json.loads(fetch(studio.url + "config")[1])
    assert config["analytics_enabled"] is False
    assert config["stylesheets"] == []
    assert config["footer_links"] == []


def test_build_gives_blocks_over_a_new_folder(tmp_path):
    code = "import sys; from studio.app import build; print(type(build(sys.argv[1])).__name__)"
    folder = tmp_path / "new" / "folder"
    said = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["Blocks"]
    assert (folder / "clips").is_dir()
