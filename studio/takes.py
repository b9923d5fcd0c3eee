"""Making a take: one prompt, several models one after the other, each in a process of its own. Gradio-free.

A `Bench` belongs to one output folder. It remembers what was ordered, lets one model compute at a time, and turns the
work into `Card` states that a page can show while it goes on. A clip is on disk and in the history before its card says
that it is done, so a closed page loses nothing that was finished, and a stopped model nothing that could be heard.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from studio import wording
from studio.naming import free_path, slug
from studio.orders import Form, Job, Made, Maker, Order, Watch
from studio.preview import Heard, Preview, remove_stale
from studio.sources import check_source, keep_source
from studio.store import ClipRow, Store, StoreError
from tinymusician_core.audio import clip_tags, write_wav
from tinymusician_core.files import whole_file
from tinymusician_core.looping import make_loop
from tinymusician_core.records import Cancelled, Clip, Progress

State = Literal["idle", "waiting", "working", "done", "failed", "cancelled", "missing"]
BEAT_S = 0.5  # seldom enough that drawing the page does not slow the model it tells of
MAX_ORDERS = 64
UNHEARD = "Stopped before its first sound"
UNSTARTED = "Not started"


@dataclass(frozen=True)
class Card:
    """What is known of one model in a take: it has been computing for `waited_s`, and is at `run` of `runs`.

    `heard` is what its preview holds while it works; a clip that was stopped on the way says so itself.
    """

    model: str
    state: State = "idle"
    progress: Progress | None = None
    heard: Heard | None = None
    clip: ClipRow | None = None
    form: Form = field(default_factory=Form)
    message: str = ""
    waited_s: float = 0.0
    run: int = 1
    runs: int = 1


@dataclass
class _Work:
    """What the thread that makes a clip and the one that shows it have between them."""

    order: Order
    job: Job
    preview: Preview | None
    news: queue.SimpleQueue[Progress] = field(default_factory=queue.SimpleQueue)
    left: threading.Event = field(default_factory=threading.Event)
    sounded: Future = field(default_factory=Future)

    def should_stop(self) -> bool:
        return self.order.stop.is_set() or self.left.is_set()

    def watch(self) -> Watch:
        return Watch(self.news.put, self.should_stop, self._hear if self.preview else None)

    def _hear(self, chunk: np.ndarray, sample_rate_hz: int) -> None:
        self.preview.add(chunk, sample_rate_hz)
        if self.preview.heard and not self.sounded.done():
            self.sounded.set_result(None)


class Bench:
    """Everything that computes and keeps clips for one output folder."""

    def __init__(self, folder: Path, make: Maker):
        self.folder = Path(folder).expanduser().resolve()
        self.clips, self.exports = self.folder / "clips", self.folder / "exports"
        self.sources, self.previews = self.folder / "sources", self.folder / "previews"
        for place in (self.clips, self.exports, self.sources, self.previews):
            place.mkdir(parents=True, exist_ok=True)
        remove_stale(self.previews)
        self.store = Store(self.folder)
        self._make = make
        self._turn = threading.Lock()
        self._orders: dict[str, Order] = {}  # at most MAX_ORDERS; those that are over go first

    @property
    def busy(self) -> bool:
        """True while a take is being made."""
        return self._turn.locked() or any(o.started.is_set() and not o.done.is_set() for o in self._orders.values())

    def order(self, order: Order) -> str:
        """Put a take down to be made; returns the id under which it is performed and stopped."""
        if len(self._orders) >= MAX_ORDERS:
            over = (old for old, known in self._orders.items() if known.done.is_set())
            self._orders.pop(next(over, next(iter(self._orders))))
        key = secrets.token_hex(8)
        self._orders[key] = order
        return key

    def find(self, key: str) -> Order | None:
        return self._orders.get(key)

    def stop(self, key: str) -> bool:
        """Ask a take to stop at its next step, or never to start; False when it is over or was never ordered."""
        order = self._orders.get(key)
        if order is None or order.done.is_set():
            return False
        order.stop.set()
        if not order.started.is_set():
            order.done.set()
        return True

    def close(self) -> None:
        """Stop everything that is still computing; for the end of the program."""
        for order in self._orders.values():
            order.stop.set()

    def perform(self, key: str) -> Iterator[Card]:
        """Make an ordered take, one model after the other, and tell of every change. Does nothing a second time.

        Closing the iterator stops the model that is computing. A failure is its own model's: the others still run.
        """
        order = self._orders.get(key)
        if order is None or order.started.is_set() or order.done.is_set():
            return
        order.started.set()
        try:
            for model in order.models:
                if order.stop.is_set():
                    yield Card(model, "cancelled", message=UNSTARTED)
                else:
                    yield from self._perform_one(order, model)
        finally:
            order.done.set()

    def path(self, clip: ClipRow) -> Path:
        return self.folder / clip.file

    def keep_source(self, path: Path | str) -> tuple[str, float]:
        """Check a sound to go on from and keep a copy; returns its file relative to the output folder, and its seconds.

        Raises ValueError for a file that cannot be gone on from, OSError when the disk is full.
        """
        seconds = check_source(Path(path))
        return keep_source(Path(path), self.sources).relative_to(self.folder).as_posix(), seconds

    def export_all(self, take_id: int) -> Path:
        """Put a take's clips into one zip of tagged WAVs in the output folder. Raises ValueError when it has none."""
        take = self.store.take(take_id)
        files = [self.path(clip) for clip in take.clips] if take else []
        files = [file for file in files if file.is_file()]
        if not take or not files:
            raise ValueError("this take has no clips to export; generate it again")
        target = self.exports / f"{slug(take.prompt)}_seed{take.settings['seed']}_take{take.id}.zip"
        with whole_file(target) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.name)
        return target

    def _perform_one(self, order: Order, model: str) -> Iterator[Card]:
        if order.take_id is None:
            settings, form = order.sampling.as_dict(), order.form.as_dict()
            order.take_id = self.store.add_take(order.prompt, settings, order.models, order.blind, form)
        job = order.job(model, self.folder)
        expected_s = job.sampling.seconds + order.form.source_s
        work = _Work(order, job, None if order.blind else Preview(self.previews, expected_s))
        thread = ThreadPoolExecutor(1, thread_name_prefix="take")
        future = thread.submit(self._work, work)
        thread.shutdown(wait=False)
        began, card = time.monotonic(), Card(model, "working", run=0, runs=job.runs)
        try:
            while not future.done():
                yield card
                wait({future} if work.sounded.done() else {future, work.sounded}, BEAT_S, FIRST_COMPLETED)
                card = replace(_caught_up(card, work), waited_s=time.monotonic() - began)
            yield _outcome(model, order.form, future)
        finally:
            work.left.set()

    def _work(self, work: _Work) -> ClipRow:
        """Runs in a thread of its own: wait for the turn, make the clip, keep it."""
        try:
            with self._turn:
                if work.should_stop():
                    raise Cancelled("the take was stopped")
                made = self._make(work.job, work.watch())
                if made.stopped and work.order.blind:
                    raise Cancelled("a clip that was stopped is not judged")
                return self._keep(work, made)
        finally:
            if work.preview is not None:
                work.preview.remove()

    def _keep(self, work: _Work, made: Made) -> ClipRow:
        order, model = work.order, work.job.model
        clip, marks, tags = _shaped(made, order)
        stem = "_".join([slug(clip.prompt), slug(wording.model_title(model)), f"seed{clip.sampling.seed}", *marks])
        path = free_path(self.clips, stem)
        write_wav(path, clip.waveform, clip_tags(clip, **tags))
        file, figures = path.relative_to(self.folder).as_posix(), made.figures.as_dict() | made.figures.more()
        return self.store.add_clip(order.take_id, model, clip.model_hash, file, clip.seconds, figures, made.stopped)


def _shaped(made: Made, order: Order) -> tuple[Clip, list[str], dict]:
    """The clip as it is kept, what its file's name says of it, and its tags; a loop is closed unless it was stopped."""
    clip, form = made.clip, order.form
    tags = {"continues": Path(form.source).name} if form.source else {}
    if made.stopped:
        return clip, ["stopped"], {**tags, "stopped": True}
    if order.loop is not None:
        clip = replace(clip, audio=make_loop(clip.waveform, order.loop.seconds).audio)
        return clip, ["loop", *([] if form.bpm is None else [f"{form.bpm:g}bpm"])], {"loop": asdict(order.loop)}
    return clip, ["continued"] if form.source else [], tags


def _caught_up(card: Card, work: _Work) -> Card:
    """The card with the newest progress and sound; each run begins with the text."""
    run, progress = card.run, card.progress
    with suppress(queue.Empty):
        while True:
            progress = work.news.get_nowait()
            run += progress.stage == "text" and progress.done == 0
    return replace(card, run=run, progress=progress, heard=work.preview.heard if work.preview else None)


def _outcome(model: str, form: Form, future: Future) -> Card:
    title = wording.model_title(model)
    try:
        return Card(model, "done", clip=future.result(), form=form)
    except Cancelled:
        return Card(model, "cancelled", message=UNHEARD)
    except StoreError as error:
        return Card(model, "failed", message=f"{title} was made but could not be kept: {error}.")
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        return Card(model, "failed", message=f"{title} could not be made: {_sentence(error)}")


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "!", "?")) else text + "."
