"""The Compare tab: one prompt, several models, one card each, filled one after the other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from html import escape
from typing import Any

import gradio as gr

from studio import cards, wording
from studio.store import StoreError, Take
from studio.takes import MAX_MODELS, Bench, Card, check_order
from studio.theme import html
from studio.trial import unveiled
from tinymusician_core.records import MAX_CFG, MAX_TEMPERATURE, MIN_CFG, MIN_TEMPERATURE, ModelError, SamplingSpec

COMPUTE = {"concurrency_id": "compute", "concurrency_limit": 1}
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
ADVANCED = ("cfg", "temperature", "top_k", "top_p", "greedy")
SETTINGS = ("seconds", "seed", *ADVANCED)
BUSY = "Another take is being made on this machine; yours is next and starts by itself."
PICK_JS = """element.addEventListener('click', (event) => {
  const chip = event.target.closest('[data-pick]');
  if (chip) trigger('pick', {text: chip.dataset.pick});
});"""
OPEN_JS = """element.addEventListener('click', (event) => {
  const row = event.target.closest('[data-take]');
  if (row) trigger('open', {take: Number(row.dataset.take)});
});"""
FETCH_JS = "() => setTimeout(() => document.querySelector('#tm-zip a')?.click(), 250)"


class CompareTab:
    """Lays out the tab inside the current Blocks and wires it to a bench."""

    def __init__(self, bench: Bench, unknown_words: Callable[[str], list[str]]):
        self.bench = bench
        self.unknown_words = unknown_words
        self._compose()
        self._show()
        self._wire()

    def restore_newest(self) -> dict[Any, Any]:
        """What a fresh page shows: the newest take with names on, whatever became of it.

        What stands at its default already is left alone: Gradio applies an update of a closed accordion's parts when it
        is opened, on top of what has been typed there by then.
        """
        takes = self._listed()
        restored = self._restored(takes[0]) if takes else {}
        default = SamplingSpec().as_dict()
        usual = {self.own: "", **{getattr(self, name): default[name] for name in ADVANCED}}
        changed = {box: value for box, value in restored.items() if box not in usual or usual[box] != value}
        return {**changed, self.history: cards.history(takes)}

    # layout

    def _compose(self) -> None:
        default = SamplingSpec()
        with gr.Column(elem_classes="tm-panel tm-composer"):
            self.prompt = gr.Textbox(
                label="Describe the music", lines=2, max_lines=6, elem_id="tm-prompt", autofocus=True,
                placeholder="An instrument, a style, a mood, a tempo or a key, such as “a calm piano waltz in G major”",
            )  # fmt: skip
            self.hint = html(elem_id="tm-hint")
            chips = "".join(
                f'<button type="button" data-pick="{escape(text)}">{escape(text)}</button>' for text in wording.EXAMPLES
            )
            self.chips = html(f'<div class="tm-chips" aria-label="Examples">{chips}</div>', js_on_load=PICK_JS)
            with gr.Row(elem_classes="tm-controls"):
                self.seconds = gr.Number(default.seconds, label="Seconds", step=0.5, min_width=90, elem_id="tm-seconds")
                with gr.Row(elem_classes="tm-seed"):
                    self.seed = gr.Number(7, label="Seed", precision=None, min_width=90, elem_id="tm-seed")
                    self.dice = gr.Button("New", min_width=56, elem_classes="tm-dice", elem_id="tm-dice")
                self.models = gr.CheckboxGroup(
                    [(wording.MODEL_TITLES[name], name) for name in wording.MODELS], value=list(wording.MODELS),
                    label="Models", min_width=300, elem_classes="tm-models", elem_id="tm-models",
                )  # fmt: skip
                with gr.Row(elem_classes="tm-go"):
                    self.cancel = gr.Button("Cancel", size="lg", visible=False, min_width=90, elem_id="tm-cancel")
                    self.generate = gr.Button(
                        "Generate", variant="primary", size="lg", min_width=150, elem_id="tm-generate"
                    )
            self._advanced(default)
        self.run = gr.Textbox(visible="hidden", elem_id="tm-run")
        self.take = gr.State(None)

    def _advanced(self, default: SamplingSpec) -> None:
        words = wording.SETTINGS
        with gr.Accordion("Advanced settings", open=False, elem_classes="tm-advanced"):
            with gr.Row():
                self.cfg = gr.Slider(
                    MIN_CFG,
                    10 if MAX_CFG > 10 else MAX_CFG,
                    default.cfg,
                    step=0.1,
                    label=words["cfg"][0],
                    info=words["cfg"][1],
                )
                self.temperature = gr.Slider(
                    MIN_TEMPERATURE, min(2.0, MAX_TEMPERATURE), default.temperature, step=0.05,
                    label=words["temperature"][0], info=words["temperature"][1],
                )  # fmt: skip
            with gr.Row():
                self.top_k = gr.Number(default.top_k, label=words["top_k"][0], info=words["top_k"][1], precision=None)
                self.top_p = gr.Slider(0, 1, default.top_p, step=0.01, label=words["top_p"][0], info=words["top_p"][1])
            with gr.Row():
                self.greedy = gr.Checkbox(default.greedy, label=words["greedy"][0], info=words["greedy"][1])
                self.own = gr.Textbox(
                    label="Another model", max_lines=1, elem_id="tm-own", placeholder="facebook/musicgen-small",
                    info="A folder on this machine or a Hugging Face id; it gets a card of its own",
                )  # fmt: skip

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
        self.settings = [getattr(self, name) for name in SETTINGS]
        typed = [self.run, self.prompt, self.models, self.own, *self.settings]
        shown = [self.note, self.run, self.generate, self.cancel, self.chart, self.export_row, self.zip, self.take]
        shown += [self.history, *self.slots]
        begun = gr.on([self.generate.click, self.prompt.submit], self._begin, typed, shown, queue=False, **QUIET)
        made = begun.success(self._perform, self.run, shown, **COMPUTE, **QUIET)
        made.then(self._settle, self.run, shown, queue=False, **QUIET)
        self.cancel.click(self._cancel, self.run, shown, queue=False, **QUIET)
        self.dice.click(lambda: random.SystemRandom().randrange(10_000), None, self.seed, queue=False, **QUIET)
        self.prompt.change(self._hint, self.prompt, self.hint, queue=False, trigger_mode="always_last", **QUIET)
        self.chips.pick(_picked, None, self.prompt, queue=False, **QUIET)
        self.restored = [self.prompt, self.models, self.own, *self.settings, *shown]
        self.history.open(self._open, self.run, self.restored, queue=False, **QUIET)
        self.export.click(self._export, self.take, [self.zip, self.note], queue=False, **QUIET).success(
            None, js=FETCH_JS
        )

    def _begin(self, run: str, prompt: str, models: list[str], own: str, *settings) -> dict[Any, Any]:
        """Check what was typed and take the order, at once and out of turn."""
        before = self.bench.find(run)
        if before is not None and not before.done.is_set() and not before.stop.is_set():
            return {self.note: cards.note("this take is still being made; cancel it first to start another", "problem")}
        try:
            order = check_order(prompt, models, own, dict(zip(SETTINGS, settings, strict=True)))
        except ValueError as error:
            return {self.note: cards.note(f"{error}.", "problem"), self.run: ""}
        busy = self.bench.busy
        return {
            **self._cards([Card(model, "waiting") for model in order.models]),
            self.note: cards.note(BUSY, "busy") if busy else "",
            self.run: self.bench.order(order),
            self.generate: gr.update(interactive=False, value="In line …" if busy else "Generating …"),
            self.cancel: gr.update(visible=True, interactive=True),
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
        yield {self.note: "", self.generate: gr.update(value="Generating …")}
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
            return {self.cancel: gr.skip()}
        take = self.bench.store.take(order.take_id) if order.take_id else None
        said = {self.note: ""} if order.stop.is_set() else {}
        return {**self._ready(), **said, self.export_row: gr.update(visible=bool(take and take.clips))}

    def _cancel(self, run: str) -> dict[Any, Any]:
        order = self.bench.find(run)
        if order is None or not self.bench.stop(run):
            return {self.cancel: gr.update(visible=False)}
        if order.started.is_set():
            return {
                self.note: cards.note("Stopping at the next step …", "busy"),
                self.cancel: gr.update(interactive=False),
            }
        return {
            **self._cards([Card(model, "cancelled") for model in order.models]),
            self.note: cards.note("Taken out of the line; nothing was made."),
            **self._ready(),
        }

    def _ready(self) -> dict[Any, Any]:
        return {self.generate: gr.update(interactive=True, value="Generate"), self.cancel: gr.update(visible=False)}

    def _hint(self, prompt: str) -> str:
        try:
            words = self.unknown_words(prompt or "")
        except (ValueError, ModelError, OSError):
            return ""
        text = wording.unknown_words_hint(words)
        return f'<p class="tm-unknown">{escape(text)}</p>' if text else ""

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
        return cards.download(path, path.name, "is-zip"), ""

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
        clips = {clip.model: clip for clip in take.clips}
        states = [Card(model, "done" if model in clips else "missing", clip=clips.get(model)) for model in take.models]
        return {
            self.prompt: take.prompt,
            self.models: [model for model in take.models if model in wording.MODELS],
            self.own: next((model for model in clips if model not in wording.MODELS), ""),
            **{box: take.settings[name] for box, name in zip(self.settings, SETTINGS, strict=True)},
            **self._cards(states),
            self.note: "",
            self.chart: cards.chart(states),
            self.export_row: gr.update(visible=bool(clips)),
            self.zip: "",
            self.take: take.id,
        }


def _picked(event: gr.EventData) -> str:
    return event.text
