"""The Compare tab in a real browser: generate, export, bad input, a killed worker, a refresh, a second page."""

import zipfile

import pytest

from tinymusician_core import audio

from .conftest import settled

pytestmark = pytest.mark.browser

PROMPT = "a calm piano waltz in G major"
MODELS = ("teacher", "student", "quantized")


def compose(page, prompt: str = PROMPT, seconds: str = "1") -> None:
    page.fill("#tm-prompt textarea", prompt)
    page.fill("#tm-seconds input", seconds)


def choose(page, *models: str) -> None:
    """Tick these models and no others."""
    for model in MODELS:
        page.set_checked(f'#tm-models input[name="{model}"]', model in models)


def generate(page, prompt: str = PROMPT, seconds: str = "1", models: tuple[str, ...] = MODELS) -> None:
    compose(page, prompt, seconds)
    choose(page, *models)
    press_generate(page)


def press_generate(page) -> None:
    """Press it, and mark the cards that are there: what is drawn anew loses its mark."""
    page.evaluate("document.querySelectorAll('.tm-card').forEach((card) => (card.dataset.old = 1))")
    page.click("#tm-generate")


def card(model: str, state: str = "") -> str:
    return f'.tm-card[data-model="{model}"]' + (f'[data-state="{state}"]' if state else "")


def wait_done(page, *models: str) -> None:
    for model in models or MODELS:
        page.wait_for_selector(card(model, "done") + ":not([data-old])")
    page.wait_for_selector("#tm-generate:not([disabled]):text-is('Generate')")


def problem(page) -> str:
    return page.inner_text(".tm-note.is-problem")


def fits(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_first_visit_shows_an_empty_studio(open_page):
    page = open_page(width=390, height=844)
    assert page.inner_text("#tm-history").startswith("No takes yet")
    assert page.locator(card("teacher", "idle")).count() == 1
    assert not page.is_visible("#tm-export")
    assert not page.is_visible("#tm-stop")
    assert page.locator("footer a").count() == 0
    assert fits(page)


def test_three_models_play_one_prompt_and_leave_as_wav_and_zip(open_page, studio, tmp_path):
    page = open_page()
    page.click(f'[data-pick="{PROMPT}"]')
    page.wait_for_function("text => document.querySelector('#tm-prompt textarea').value === text", arg=PROMPT)
    page.fill("#tm-seconds input", "1")
    press_generate(page)
    page.wait_for_selector(card("teacher", "working") + " [role=progressbar]")
    page.wait_for_selector("#tm-stop:visible")
    wait_done(page)
    for model in MODELS:
        names = page.locator(f"{card(model)} [data-figure]").evaluate_all("all => all.map(one => one.dataset.figure)")
        assert names == ["first_sound_ms", "ms_per_step", "x_realtime", "peak_memory_bytes", "disk_bytes", "device"]
        assert page.locator(f"{card(model)} .tm-spectrum").count() == 1
    assert page.locator(".tm-chart .tm-group").count() == 3
    assert page.locator(".tm-chart li").count() == 9

    with page.expect_download() as download:
        page.click(f"{card('student')} .tm-download")
    assert download.value.suggested_filename == "a-calm-piano-waltz-in-g-major_student_seed7.wav"
    download.value.save_as(tmp_path / "student.wav")
    sound, tags = audio.read(tmp_path / "student.wav"), audio.read_tags(tmp_path / "student.wav")
    assert sound.seconds == pytest.approx(1.0, abs=0.1)
    assert tags["title"] == PROMPT
    assert (tmp_path / "student.wav").read_bytes() == (
        studio.folder / "clips" / download.value.suggested_filename
    ).read_bytes()

    with page.expect_download() as download:
        page.click("#tm-export")
    download.value.save_as(tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert archive.namelist() == [
            f"a-calm-piano-waltz-in-g-major_{name}_seed7.wav" for name in ("teacher", "student", "quantized")
        ]
        assert archive.testzip() is None
    assert fits(page)


def test_a_clip_plays_and_the_other_stops(open_page):
    page = open_page()
    generate(page, seconds="5", models=("teacher", "student"))
    wait_done(page, "teacher", "student")
    page.click(f"{card('teacher')} .tm-play")
    page.wait_for_function("document.querySelector('[data-model=teacher] audio').currentTime > 0.3")
    page.click(f"{card('student')} .tm-play")
    page.wait_for_function("!document.querySelector('[data-model=student] audio').paused")
    page.wait_for_function("document.querySelector('[data-model=teacher] audio').paused")
    page.focus(f"{card('student')} .tm-bar")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('[data-model=student] audio').paused")


def test_bad_input_is_answered_and_the_session_goes_on(open_page):
    page = open_page()
    for prompt, seconds, says in (
        ("", "1", "Prompt is empty; between 1 and 1000 characters are allowed."),
        ("🎹🎻", "1", "Prompt “🎹🎻” has no words"),
        ("waltz " * 2000, "1", "at most 1000 are allowed"),
        (PROMPT, "0", "Seconds must be a number from 0.5 to 600, got 0"),
        (PROMPT, "-1", "got -1"),
        (PROMPT, "1000000000", "got 1000000000"),
        (PROMPT, "", "Seconds must be a number from 0.5 to 600, got None"),
    ):
        generate(page, prompt, seconds)
        page.wait_for_selector(f'.tm-note.is-problem:has-text("{says}")')
    page.wait_for_timeout(1500)
    assert "got None" in problem(page)  # it stays until the next try
    assert page.locator("#tm-cfg").count() == 1, "boxes that are made once they are shown lose what is typed at once"
    assert page.locator("#tm-cfg").is_hidden()
    page.click("text=Advanced settings")
    for box, wrong, says in (("cfg", "0.5", "Cfg must be a number from 1 to"), ("top-p", "2", "Top_p must be a")):
        page.fill(f"#tm-{box} :is(input, textarea)", wrong)
        generate(page, models=("student",))
        page.wait_for_selector(f'.tm-note.is-problem:has-text("{says}")')
        page.fill(f"#tm-{box} :is(input, textarea)", "")
    page.fill("#tm-own input", "no-such-model")
    generate(page, models=("student",))
    page.wait_for_selector(card("no-such-model", "failed"))
    assert "no such model: got 'no-such-model'" in page.inner_text(card("no-such-model"))
    wait_done(page, "student")
    assert page.locator(".tm-card:visible").count() == 2


def test_words_that_no_model_knows_are_named_and_shown_as_typed(open_page):
    page = open_page()
    odd = "a calm zither ${1+1} {{value}} <b>waltz</b>"
    compose(page, odd)
    choose(page, "student")
    page.wait_for_selector('.tm-unknown:has-text("“zither”")')
    press_generate(page)
    wait_done(page, "student")
    newest = "document.querySelector('.tm-takes li:first-child .tm-prompt')"
    page.wait_for_function(f"odd => {newest}?.innerText === odd", arg=odd)
    compose(page, PROMPT)
    page.wait_for_selector(".tm-unknown", state="detached")


def test_a_killed_worker_is_named_and_the_others_still_play(open_page, studio):
    page = open_page()
    generate(page, seconds="300", models=("teacher", "student"))
    page.wait_for_selector(f'{card("teacher", "working")} .tm-state:has-text("Composing")')
    for worker in studio.workers():
        worker.kill()
    page.wait_for_selector(card("teacher", "failed"))
    assert "Teacher could not be made" in page.inner_text(card("teacher"))
    wait_done(page, "student")
    generate(page, models=("teacher",))
    wait_done(page, "teacher")


def test_a_refresh_in_the_middle_keeps_what_was_made(open_page, studio):
    page = open_page()
    generate(page, "a slow march", seconds="300", models=("teacher", "student", "quantized"))
    page.wait_for_selector(card("teacher", "done"))
    page.wait_for_selector(card("student", "working") + " .is-live")
    page.reload()
    settled(page)
    page.wait_for_selector(card("teacher", "done"))
    page.wait_for_selector(card("quantized", "missing"))
    assert page.inner_text(".tm-takes li:first-child .tm-prompt") == "a slow march"
    assert page.input_value("#tm-prompt textarea") == "a slow march"
    generate(page, "a lively flute", models=("student",))
    wait_done(page, "student")
    page.click('.tm-takes button:has-text("a slow march")')
    page.wait_for_selector(card("student", "done") + "[data-stopped]")
    page.wait_for_selector(card("quantized", "missing"))
    assert page.input_value("#tm-prompt textarea") == "a slow march"
    assert studio.workers() == []


def test_a_second_page_waits_its_turn_and_is_told_so(open_page):
    first, second, third = open_page(), open_page(), open_page()
    generate(first, seconds="120")
    first.wait_for_selector(card("teacher", "working"))
    generate(second, "a slow march in D minor", models=("student",))
    generate(third, "a lively flute")
    for page in (second, third):
        page.wait_for_selector('.tm-note.is-busy:has-text("yours is next")')
        assert page.inner_text("#tm-generate") == "In line …"
    third.click("#tm-stop")
    third.wait_for_selector('.tm-note:has-text("Taken out of the line")')
    first.click("#tm-stop")
    wait_done(second, "student")
    assert third.locator(card("teacher", "cancelled")).count() == 1
    assert third.is_enabled("#tm-generate")
