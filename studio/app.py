"""The studio: a Gradio page over one output folder. `build` makes it, `serve` puts it on a local address.

Everything that computes shares one queue of length one; everything that is kept is in the output folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from studio import cards, theme
from studio.compare import QUIET, CompareTab
from studio.core import make_clip, unknown_words
from studio.listen import ListenTab
from studio.orders import Maker
from studio.takes import Bench
from studio.theme import html

MAX_UPLOAD = "200mb"  # ten minutes of stereo WAV in studio quality
DEFAULT_FOLDER = "~/TinyMusician"


def output_folder(folder: Path | str | None = None) -> Path:
    """Where clips go: the argument, else the environment variable TINYMUSICIAN_HOME, else ~/TinyMusician."""
    return Path(folder or os.environ.get("TINYMUSICIAN_HOME") or DEFAULT_FOLDER).expanduser().resolve()


def build(
    output_dir: Path | str | None = None,
    make: Maker = make_clip,
    unknown: Callable[[str], list[str]] = unknown_words,
) -> gr.Blocks:
    """The studio as Gradio Blocks, not yet served. `make` and `unknown` are the core's unless a test says otherwise.

    Raises OSError when the folder cannot be made, StoreError when its history cannot be read.
    """
    return lay_out(Bench(output_folder(output_dir), make), unknown)


def serve(
    host: str = "127.0.0.1", port: int | None = 7860, open_browser: bool = True, output_dir: Path | str | None = None
) -> None:
    """Serve the studio until Ctrl-C. Raises OSError when the port is taken or the folder cannot be written."""
    bench = Bench(output_folder(output_dir), make_clip)
    page = lay_out(bench, unknown_words)
    try:
        url = launch(page, bench, host, port, open_browser)
        print(f"TinyMusician is at {url} and keeps its clips in {bench.folder}. Ctrl-C ends it.", flush=True)
        page.block_thread()
    finally:
        bench.close()
        page.close(verbose=False)


def lay_out(bench: Bench, unknown: Callable[[str], list[str]]) -> gr.Blocks:
    """The page over a bench: header, the tabs, footer, and what a fresh page asks for."""
    with gr.Blocks(title="TinyMusician", analytics_enabled=False, fill_width=True) as page:
        html(cards.header())
        with gr.Tabs(elem_id="tm-tabs"):
            with gr.Tab("Compare", id="compare"):
                compare = CompareTab(bench, unknown)
            with gr.Tab("Listen", id="listen") as tab:
                listen = ListenTab(bench)
        html(cards.footer(bench.folder))
        page.load(compare.restore_newest, None, compare.restored, queue=False, **QUIET)
        tab.select(listen.revisit, listen.state, listen.shown, queue=False, **QUIET)
    return page


def launch(page: gr.Blocks, bench: Bench, host: str, port: int | None, open_browser: bool = False) -> str:
    """Start serving in the background; returns the address. Only the output folder can be fetched, less its history."""
    _, url, _ = page.queue(max_size=32).launch(
        server_name=host, server_port=port, inbrowser=open_browser, prevent_thread_lock=True, quiet=True, share=False,
        theme=theme.theme(), css_paths=[theme.CSS], head=theme.head(), favicon_path=theme.FAVICON,
        allowed_paths=[str(bench.folder)], blocked_paths=[str(file) for file in bench.store.files],
        max_file_size=MAX_UPLOAD,
        footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, mcp_server=False, show_error=True,
    )  # fmt: skip
    return url
