"""The Compare tab: one prompt, several models, one card each, filled one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import gradio as gr

from studio import cards, wording
from studio.composer import QUIET, Composer
from studio.orders import MAX_MODELS, Form
from studio.players import download
from studio.store import StoreError, Take
from studio.takes import UNSTARTED, Bench, Card
from studio.theme import html
from studio.trial import unveiled

COMPUTE = {"concurrency_id": "compute", "concurrency_limit": 1}
BUSY = "Another take is being made on this machine; yours is next and starts by itself."
OPEN_JS = """element.addEventListener('click', (event) => {
  const row = event.target.closest('[data-take]');
  if (row) trigger('open', {take: Number(row.dataset.take)});
});"""
FETCH_JS = "() => setTimeout(() => document.querySelector('#tm-zip a')?.click(), 250)"


class CompareTab:
    """Lays out the tab inside the current Blocks and wires it to a bench."""

    def __init__(self, bench: Bench, unknown_words: Callable[[str], list[str]]):
        self.bench = bench
        self.composer = Composer(bench, unknown_words)
        self.run = gr.Textbox(visible="hidden", elem_id="tm-run")
        self.take = gr.State(None)
        self._show()
        self._wire()

    def restore_newest(self) -> dict[Any, Any]:
        """What a fresh page shows: the newest take with names on, whatever became of it.

        A new page begins with a plain piece, whatever form the newest take has: a file or a loop in a closed accordion
        would be forgotten there. What stands at its default already is left alone: Gradio applies an update of a closed
        accordion's parts when it is opened, on top of what has been typed there by then.
        """
        takes = self._listed()
        restored, usual = self._restored(takes[0]) if takes else {}, self.composer.usual
        changed = {
            box: value
            for box, value in restored.items()
            if box not in self.composer.form and (box not in usual or usual[box] != value)
        }
        return {**changed, self.history: cards.history(takes)}

    # layout

    def _show(self) -> None:
        self.note = html(elem_id="tm-note")
        with gr.Row(elem_classes="tm-cards", elem_id="tm-cards"):
            names = [*wording.MODELS, ""]
            self.slots = [
                html(self._card(Card(name)) if name else "", visible=bool(name), elem_classes="tm-slot")
                for name in names
            ]
        self.chart = html(elem_id="tm-chart")
        with gr.Row(visible=False, elem_classes="tm-export") as self.export_row:
            self.export = gr.Button("Export all as ZIP", min_width=170, elem_id="tm-export")
            self.zip = html(elem_id="tm-zip")
        html(cards.heading("Takes", "Everything you made, newest first"))
        self.history = html(js_on_load=OPEN_JS, elem_id="tm-history")

    # events

    def _wire(self) -> None:
        generate, stop, prompt = self.composer.generate, self.composer.stop, self.composer.prompt
        shown = [self.note, self.run, generate, stop, self.chart, self.export_row, self.zip, self.take]
        shown += [self.history, *self.slots]
        typed = [self.run, *self.composer.typed]
        begun = gr.on([generate.click, prompt.submit], self._begin, typed, shown, queue=False, **QUIET)
        made = begun.success(self._perform, self.run, shown, **COMPUTE, **QUIET)
        settled = made.then(self._settle, self.run, shown, queue=False, **QUIET)
        settled.then(self.composer.estimated, self.composer.asked, self.composer.estimate, queue=False, **QUIET)
        stop.click(self._stop, self.run, shown, queue=False, **QUIET)
        self.restored = [*self.composer.typed, *shown]
        self.history.open(self._open, self.run, self.restored, queue=False, **QUIET)
        self.export.click(self._export, self.take, [self.zip, self.note], queue=False, **QUIET).success(
            None, js=FETCH_JS
        )

    def _begin(self, run: str, *typed) -> dict[Any, Any]:
        """Check what was typed and take the order, at once and out of turn."""
        before = self.bench.find(run)
        if before is not None and not before.done.is_set() and not before.stop.is_set():
            return {self.note: cards.note("this take is still being made; stop it first to start another", "problem")}
        try:
            order = self.composer.order(*typed)
        except (ValueError, OSError) as error:
            return {self.note: cards.note(f"{error}.", "problem"), self.run: ""}
        busy = self.bench.busy
        return {
            **self._cards([Card(model, "waiting") for model in order.models]),
            self.note: cards.note(BUSY, "busy") if busy else "",
            self.run: self.bench.order(order),
            self.composer.generate: gr.update(interactive=False, value="In line …" if busy else "Generating …"),
            self.composer.stop: gr.update(visible=True, interactive=True),
            self.chart: "",
            self.export_row: gr.update(visible=False),
            self.zip: "",
            self.take: None,
        }

    def _perform(self, run: str) -> Iterator[dict[Any, Any]]:
        """Make the take in its turn. Gradio closes this iterator when the page goes away, which stops the work."""
        order = self.bench.find(run)
        if order is None or order.started.is_set() or order.done.is_set():
            yield {self.note: gr.skip()}
            return
        yield {self.note: "", self.composer.generate: gr.update(value="Generating …")}
        states = [Card(model, "waiting") for model in order.models]
        try:
            with closing(self.bench.perform(run)) as news:
                for state in news:
                    yield self._changed(states, state)
        except StoreError as error:
            yield {self.note: cards.note(f"{error}.", "problem")}

    def _changed(self, states: list[Card], state: Card) -> dict[Any, Any]:
        place = [old.model for old in states].index(state.model)
        states[place] = state
        update: dict[Any, Any] = {self.slots[place]: self._card(state)}
        if state.clip is not None:
            update |= {
                self.chart: cards.chart(states),
                self.take: state.clip.take_id,
                self.history: cards.history(self._listed()),
            }
        return update

    def _settle(self, run: str) -> dict[Any, Any]:
        """Give the buttons back, however the take ended; what was said about a problem stays."""
        order = self.bench.find(run)
        if order is None or not order.done.is_set() or not order.started.is_set():
            return {self.composer.stop: gr.skip()}
        take = self.bench.store.take(order.take_id) if order.take_id else None
        said = {self.note: ""} if order.stop.is_set() else {}
        return {**self._ready(), **said, self.export_row: gr.update(visible=bool(take and take.clips))}

    def _stop(self, run: str) -> dict[Any, Any]:
        order = self.bench.find(run)
        if order is None or not self.bench.stop(run):
            return {self.composer.stop: gr.update(visible=False)}
        if order.started.is_set():
            return {
                self.note: cards.note("Stopping at the next step …", "busy"),
                self.composer.stop: gr.update(interactive=False),
            }
        return {
            **self._cards([Card(model, "cancelled", message=UNSTARTED) for model in order.models]),
            self.note: cards.note("Taken out of the line; nothing was made."),
            **self._ready(),
        }

    def _ready(self) -> dict[Any, Any]:
        return {
            self.composer.generate: gr.update(interactive=True, value="Generate"),
            self.composer.stop: gr.update(visible=False),
        }

    def _open(self, run: str, event: gr.EventData) -> dict[Any, Any]:
        order = self.bench.find(run)
        if order is not None and not order.done.is_set():
            return {self.note: cards.note("a take is being made; open older ones when it is finished", "problem")}
        take = self.bench.store.take(event.take)
        if take is None:
            return {self.note: cards.note("this take is no longer in the history", "problem")}
        return self._restored(take)

    def _export(self, take_id: int | None) -> tuple[str, str]:
        try:
            path = self.bench.export_all(take_id or 0)
        except (ValueError, OSError, StoreError) as error:
            return "", cards.note(f"the export failed: {error}.", "problem")
        return download(path, path.name, "is-zip"), ""

    # what is shown

    def _card(self, state: Card) -> str:
        return cards.card(state, self.bench.folder)

    def _cards(self, states: list[Card]) -> dict[Any, Any]:
        rest = MAX_MODELS - len(states)
        filled = [gr.update(value=self._card(state), visible=True) for state in states]
        return dict(zip(self.slots, filled + [gr.update(visible=False)] * rest, strict=True))

    def _listed(self) -> list[Take]:
        return unveiled(self.bench.store.takes(), self.bench.store.votes())

    def _restored(self, take: Take) -> dict[Any, Any]:
        """A take from the history: its prompt and settings, and a card for each model that was asked."""
        clips, form = {clip.model: clip for clip in take.clips}, Form(**take.form)
        states = [
            Card(model, "done" if model in clips else "missing", clip=clips.get(model), form=form)
            for model in take.models
        ]
        return {
            **self.composer.restored(take),
            **self._cards(states),
            self.note: "",
            self.chart: cards.chart(states),
            self.export_row: gr.update(visible=bool(clips)),
            self.zip: "",
            self.take: take.id,
        }
