"""While music is made, in a real browser: heard early, stopped and kept, looped, gone on from a file, and long."""

import json

import numpy as np
import pytest
import soundfile

from studio.wording import exact
from tinymusician_core import audio

from .test_compare import card, choose, fits, generate, press_generate, wait_done

pytestmark = pytest.mark.browser

LONG, LONGEST = "240", "600"
AT = "model => window.tmSound.at(document.querySelector(`[data-model=${model}] .tm-player`))"


def advanced(page) -> None:
    page.click("text=Advanced settings")
    page.wait_for_selector("#tm-loop input")


def exported(page, model: str, tmp_path) -> audio.Waveform:
    """The sound that the card's WAV button gives."""
    with page.expect_download() as download:
        page.click(f"{card(model)} .tm-download")
    download.value.save_as(tmp_path / "exported.wav")
    return audio.read(tmp_path / "exported.wav")


def test_a_clip_is_heard_while_it_is_made_and_goes_on_in_the_whole(open_page, studio):
    page = open_page()
    fetched = []
    page.on(
        "response",
        lambda answer: (
            fetched.append((answer.status, len(answer.body()), page.get_attribute(card("teacher"), "data-state")))
            if ".pcm" in answer.url
            else None
        ),
    )
    generate(page, seconds=LONG, models=("teacher",))
    page.wait_for_selector(f"{card('teacher', 'working')} .is-live .tm-shape path")
    assert fetched == []  # nobody has pressed play
    page.click(f"{card('teacher')} .tm-play")
    page.wait_for_function(f"({AT})('teacher') > 0.1")
    assert page.get_attribute(card("teacher"), "data-state") == "working"
    assert page.locator(f"{card('teacher')} .tm-download").count() == 0
    wait_done(page, "teacher")
    page.wait_for_function("document.querySelector('[data-model=teacher] audio').currentTime > 0.5")
    assert page.locator(f"{card('teacher')} .is-live").count() == 0
    assert not page.evaluate("document.querySelector('[data-model=teacher] audio').paused")
    assert fetched[0][0] == 206
    assert sum(size for _, size, state in fetched if state == "working") >= 32000  # half a second, 16 bit at 32 kHz
    assert list((studio.folder / "previews").iterdir()) == []


def test_stop_keeps_a_shorter_clip_and_starts_no_other(open_page, studio, tmp_path):
    page = open_page(width=390, height=844)
    generate(page, seconds=LONGEST)
    page.wait_for_selector(f"{card('teacher', 'working')} .is-live")
    page.click("#tm-stop")
    page.wait_for_selector(card("teacher", "done") + "[data-stopped] .tm-spectrum")
    wait_done(page, "teacher")
    for other in ("student", "quantized"):
        assert "Not started" in page.inner_text(card(other, "cancelled"))
    sound = exported(page, "teacher", tmp_path)
    assert 0.4 < sound.seconds < float(LONGEST)
    assert f"Stopped after {exact(sound.seconds)}" in page.inner_text(card("teacher"))
    assert "not measured" not in page.inner_text(card("teacher"))
    assert page.locator(".tm-takes li:first-child .is-stopped").count() == 1
    assert studio.workers() == []
    assert fits(page)
    page.click("role=tab[name=Listen]")
    page.wait_for_selector("#tm-stage .tm-empty:not(:has-text('Preparing'))")  # no pair of what was stopped
    page.click("role=tab[name=Compare]")
    generate(page, models=("student",))
    wait_done(page, "student")


def test_stop_before_the_first_sound_keeps_nothing(open_page, studio):
    page = open_page()
    kept = len(list((studio.folder / "clips").iterdir()))
    generate(page, "a slow flute", seconds=LONG)
    page.wait_for_selector(card("teacher", "working"))
    page.click("#tm-stop")
    page.wait_for_selector(f"{card('teacher', 'cancelled')}:has-text('Stopped before its first sound')")
    page.wait_for_selector("#tm-generate:not([disabled]):text-is('Generate')")
    assert page.locator('.tm-takes button:has-text("a slow flute")').count() == 0
    assert len(list((studio.folder / "clips").iterdir())) == kept


def test_a_loop_has_whole_bars_and_plays_past_its_end(open_page, tmp_path):
    page = open_page()
    advanced(page)
    page.check("#tm-loop input")
    page.fill("#tm-bpm :is(input, textarea)", "5")
    generate(page, "a calm march", seconds="2.2", models=("student",))
    page.wait_for_selector(".tm-note.is-problem:has-text(\"Bpm must be a number from 20 to 300, got '5'.\")")
    page.fill("#tm-bpm :is(input, textarea)", "120")
    press_generate(page)
    wait_done(page, "student")
    assert "Loop of 1 bar at 120 BPM · 2.0 s" in page.inner_text(card("student"))
    sound = exported(page, "student", tmp_path)
    assert sound.audio.shape[1] == 2 * sound.sample_rate_hz
    tags = json.loads(audio.read_tags(tmp_path / "exported.wav")["comment"])
    assert (tags["loop"]["beats"], tags["loop"]["bars"]) == (4, 1)
    page.click(f"{card('student')} .tm-play")
    page.wait_for_function(f"({AT})('student') > 1.5")
    page.wait_for_function(f"({AT})('student') < 0.5 && document.querySelector('[data-model=student] .is-playing')")
    page.click(f"{card('student')} .tm-play")
    page.wait_for_selector(f"{card('student')} .tm-player:not(.is-playing)")
    page.reload()
    page.wait_for_selector(f"{card('student', 'done')} [data-loop]")
    assert "2.2 s · loop at 120 BPM" in page.inner_text(".tm-takes li:first-child")
    advanced(page)
    assert not page.is_checked("#tm-loop input")  # a new page begins with a plain piece
    page.click(".tm-takes li:first-child button")
    page.wait_for_selector("#tm-loop input:checked")
    page.wait_for_function("document.querySelector('#tm-bpm :is(input, textarea)')?.value === '120'")


def test_a_file_is_gone_on_from(open_page, tmp_path):
    page = open_page()
    advanced(page)
    (tmp_path / "broken.mp3").write_bytes(b"no sound at all")
    page.set_input_files("#tm-source input[type=file]", tmp_path / "broken.mp3")
    page.wait_for_selector("#tm-source-note :text('The file broken.mp3 is no WAV, MP3, FLAC or OGG file')")
    generate(page, seconds="1", models=("student",))
    page.wait_for_selector('.tm-note.is-problem:has-text("The file broken.mp3 is no WAV")')
    page.click("#tm-source button[aria-label=Clear]")
    time_s = np.arange(44_100) / 44_100
    stereo = np.stack([0.4 * np.sin(2 * np.pi * 440 * time_s), 0.4 * np.sin(2 * np.pi * 440 * time_s)], axis=1)
    soundfile.write(tmp_path / "My riff.wav", stereo, 44_100)
    page.set_input_files("#tm-source input[type=file]", tmp_path / "My riff.wav")
    page.wait_for_selector("#tm-source-note :text('1.0 s long')")
    press_generate(page)
    wait_done(page, "student")
    assert "Goes on from my-riff.wav · 2.0 s" in page.inner_text(card("student"))
    sound = exported(page, "student", tmp_path)
    assert sound.seconds == pytest.approx(2.0, abs=0.05)
    beginning = sound.audio[0, : sound.sample_rate_hz // 2]
    expected = 0.4 * np.sin(2 * np.pi * 440 * np.arange(len(beginning)) / sound.sample_rate_hz)
    assert np.corrcoef(beginning, expected)[0, 1] > 0.99
    page.reload()
    page.wait_for_selector(card("student", "done"))
    assert "goes on from my-riff.wav" in page.inner_text(".tm-takes li:first-child")


def test_a_long_take_is_estimated_and_its_length_is_a_press_away(open_page):
    page = open_page(width=390, height=844, theme="dark")
    generate(page, "a fast jig", models=("teacher",))
    wait_done(page, "teacher")
    assert page.inner_text("#tm-estimate") == ""
    choose(page, "teacher", "quantized")
    page.click('[data-pick="600"]')
    page.wait_for_function("document.querySelector('#tm-seconds input').value === '600'")
    page.wait_for_selector("#tm-estimate:has-text('Quantized not measured here yet')")
    page.wait_for_selector("#tm-estimate:has-text('an estimate from the last takes')")
    assert fits(page)
