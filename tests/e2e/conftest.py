"""A studio in a process of its own over a tiny random family, and a Chromium to drive it with."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

REPO = Path(__file__).resolve().parents[2]
PATIENCE_S = 240
TEACHER_LAYERS = 96
SERVE = "import sys; from studio.app import serve; serve('127.0.0.1', int(sys.argv[1]), False, sys.argv[2])"
CHROMIUM_ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required", "--mute-audio",
]  # fmt: skip


@dataclass(frozen=True)
class Studio:
    """A running studio: where it answers, where it keeps its clips, and its process."""

    url: str
    folder: Path
    process: subprocess.Popen

    def workers(self) -> list[psutil.Process]:
        """The processes in which models are computing."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "tinymusician_core" in " ".join(child.cmdline())]


def settled(page) -> None:
    """Wait until a fresh page shows its history and has put the newest take's prompt into its box."""
    page.wait_for_selector("#tm-history .tm-takes, #tm-history .tm-empty")
    page.wait_for_function(
        """() => {
            const newest = document.querySelector('#tm-history .tm-prompt');
            return !newest || document.querySelector('#tm-prompt textarea').value === newest.textContent;
        }"""
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def family_of_three(tmp_path_factory) -> Path:
    """An assets folder in which all three of the demo family are there: `quantized` is a copy of the tiny student.

    The teacher is tiny but deep, so that a browser has time to do something while it plays.
    """
    from conftest import save_tiny_family
    from studio_bench import give_encoder

    models = save_tiny_family(tmp_path_factory.mktemp("family") / "models", TEACHER_LAYERS)
    give_encoder(models)
    shutil.copytree(models / "student", models / "quantized")
    return models.parent


@pytest.fixture(scope="module")
def studio(family_of_three, tmp_path_factory):
    """A studio with an empty history, for all tests of one file."""
    folder = tmp_path_factory.mktemp("studio") / "TinyMusician"
    environment = dict(os.environ, TINYMUSICIAN_ASSETS=str(family_of_three), OMP_NUM_THREADS="1")
    log = open(folder.parent / "log", "w+", encoding="utf-8")  # noqa: SIM115 - it has to outlive this function
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(free_port()), str(folder)],
        cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip
    try:
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        assert found, f"the studio did not start: {said} {(folder.parent / 'log').read_text()}"
        yield Studio(found[0], folder, process)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()
        log.close()


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium; skips where none is installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine: install chromium to run the browser tests")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Remember how a test's body ended, for `open_page`."""
    report = yield
    if report.when == "call":
        item.failed = report.failed
    return report


@pytest.fixture
def open_page(chromium, studio, request):
    """Open the studio; every page's errors and every request that leaves this machine fail the test.

    What the pages say is printed when a test fails.
    """
    pages, trouble = [], []

    def watch(request) -> None:
        if not request.url.startswith((studio.url, "data:", "blob:")):
            trouble.append(f"asked for {request.url}")

    def opened(width: int = 1440, height: int = 900, theme: str = "light"):
        page = chromium.new_page(viewport={"width": width, "height": height}, accept_downloads=True)
        page.set_default_timeout(1000 * PATIENCE_S)
        page.on("pageerror", lambda error: trouble.append(f"script error: {error}"))
        page.on("request", watch)
        page.goto(f"{studio.url}?__theme={theme}")
        settled(page)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        if getattr(request.node, "failed", False):
            print(f"--- the page when the test failed\n{page.inner_text('body')}\n{page.inner_html('#tm-note')}")
        page.close()
    assert trouble == []
