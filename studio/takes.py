"""Making a take: one prompt, several models one after the other, each in a process of its own. Gradio-free.

A `Bench` belongs to one output folder. It remembers what was ordered, lets one model compute at a time, and turns the
work into `Card` states that a page can show while it goes on. A clip is on disk and in the history before its card says
that it is done, so a closed page loses nothing that was finished.
"""

from __future__ import annotations

import queue
import re
import secrets
import threading
import time
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from studio import wording
from studio.store import ClipRow, Store, StoreError
from tinymusician_core.files import whole_file
from tinymusician_core.records import Cancelled, Clip, Figures, Progress, SamplingSpec, check_prompt

State = Literal["idle", "waiting", "working", "done", "failed", "cancelled", "missing"]
BEAT_S = 0.5  # seldom enough that drawing the page does not slow the model it tells of
MAX_ORDERS = 64
MEASURED_RUNS = 3
MAX_MODEL_CHARS = 300
MAX_MODELS = 4


@dataclass(frozen=True)
class Made:
    """What a maker hands back: the clip and what was measured while it was made."""

    clip: Clip
    figures: Figures


Maker = Callable[[str, str, SamplingSpec, int, Callable[[Progress], None], Callable[[], bool]], Made]


@dataclass(frozen=True)
class Card:
    """What is known of one model in a take: it has been computing for `waited_s`, and is at `run` of `runs`."""

    model: str
    state: State = "idle"
    progress: Progress | None = None
    clip: ClipRow | None = None
    message: str = ""
    waited_s: float = 0.0
    run: int = 1
    runs: int = 1


@dataclass
class Order:
    """A take that was asked for. `stop` ends it at the next step; `started` is set as soon as its turn has come."""

    prompt: str
    sampling: SamplingSpec
    models: tuple[str, ...]
    blind: bool = False
    take_id: int | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def runs(self, model: str) -> int:
        """How often a model plays, so that its figures are medians: once in a blind take, or where it is a big one."""
        return MEASURED_RUNS if model in wording.MODELS and not self.blind else 1


class Bench:
    """Everything that computes and keeps clips for one output folder."""

    def __init__(self, folder: Path, make: Maker):
        self.folder = Path(folder).expanduser().resolve()
        self.clips, self.exports = self.folder / "clips", self.folder / "exports"
        for place in (self.clips, self.exports):
            place.mkdir(parents=True, exist_ok=True)
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
                    yield Card(model, "cancelled")
                else:
                    yield from self._perform_one(order, model)
        finally:
            order.done.set()

    def path(self, clip: ClipRow) -> Path:
        return self.folder / clip.file

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
            order.take_id = self.store.add_take(order.prompt, order.sampling.as_dict(), order.models, order.blind)
        news: queue.SimpleQueue[Progress] = queue.SimpleQueue()
        left = threading.Event()
        thread = ThreadPoolExecutor(1, thread_name_prefix="take")
        future = thread.submit(self._work, order, model, news.put, lambda: order.stop.is_set() or left.is_set())
        thread.shutdown(wait=False)
        began, card = time.monotonic(), Card(model, "working", run=0, runs=order.runs(model))
        try:
            yield card
            while not future.done():
                wait([future], timeout=BEAT_S)
                card = replace(_caught_up(card, news), waited_s=time.monotonic() - began)
                yield card
            yield _outcome(model, future)
        finally:
            left.set()

    def _work(self, order: Order, model: str, on_progress, should_stop) -> ClipRow:
        """Runs in a thread of its own: wait for the turn, make the clip, keep it."""
        with self._turn:
            if should_stop():
                raise Cancelled("the take was stopped")
            made = self._make(model, order.prompt, order.sampling, order.runs(model), on_progress, should_stop)
            return self._keep(order, model, made)

    def _keep(self, order: Order, model: str, made: Made) -> ClipRow:
        clip = made.clip
        path = free_path(self.clips, f"{slug(clip.prompt)}_{slug(wording.model_title(model))}_seed{clip.sampling.seed}")
        clip.save(path)
        file = path.relative_to(self.folder).as_posix()
        return self.store.add_clip(order.take_id, model, clip.model_hash, file, clip.seconds, made.figures.as_dict())


def check_order(prompt, models: list[str], own_model: str, settings: dict) -> Order:
    """Turn what was typed into an order.

    Raises ValueError with one sentence: no words in the prompt, a setting out of range, no model chosen.
    """
    prompt = check_prompt(prompt)
    if not any(letter.isalnum() for letter in prompt):
        shown = prompt if len(prompt) <= 24 else prompt[:24] + "…"
        raise ValueError(f"prompt “{shown}” has no words; describe the music in words, such as “{wording.EXAMPLES[0]}”")
    chosen = [name for name in wording.MODELS if name in models]
    own_model = (own_model or "").strip()
    if len(own_model) > MAX_MODEL_CHARS:
        raise ValueError(f"model name has {len(own_model)} characters; at most {MAX_MODEL_CHARS} are allowed")
    if own_model and own_model not in chosen:
        chosen.append(own_model)
    if not chosen:
        raise ValueError(f"no model is chosen; tick at least one of {', '.join(wording.MODELS)}")
    return Order(prompt, SamplingSpec(**settings), tuple(chosen))


def slug(text: str, most: int = 48) -> str:
    """A readable, safe part of a file name: plain letters, digits and hyphens; never empty."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if len(words) > most:
        words = words[: most + 1].rpartition("-")[0] or words[:most]
    return words or "clip"


def free_path(folder: Path, stem: str) -> Path:
    """`folder/stem.wav`, or with _2, _3 ... where that is taken."""
    path, count = folder / f"{stem}.wav", 1
    while path.exists():
        count += 1
        path = folder / f"{stem}_{count}.wav"
    return path


def _caught_up(card: Card, news: queue.SimpleQueue) -> Card:
    """The card with the newest progress; each run begins with the text."""
    run, progress = card.run, card.progress
    with suppress(queue.Empty):
        while True:
            progress = news.get_nowait()
            run += progress.stage == "text" and progress.done == 0
    return replace(card, run=run, progress=progress)


def _outcome(model: str, future: Future) -> Card:
    title = wording.model_title(model)
    try:
        return Card(model, "done", clip=future.result())
    except Cancelled:
        return Card(model, "cancelled")
    except StoreError as error:
        return Card(model, "failed", message=f"{title} was made but could not be kept: {error}.")
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        return Card(model, "failed", message=f"{title} could not be made: {_sentence(error)}")


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "!", "?")) else text + "."
