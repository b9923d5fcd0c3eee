"""What is typed into the Compare tab: prompt, length, models and advanced settings, with their hints."""

from __future__ import annotations

import random
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from studio import cards, wording
from studio.orders import Form, Order, check_order, runs_of
from studio.sources import ENDINGS, KINDS, check_source
from studio.store import StoreError, Take
from studio.takes import Bench
from studio.theme import html
from tinymusician_core.looping import MAX_BPM, MIN_BPM, check_bpm
from tinymusician_core.records import (
    MAX_SECONDS,
    MAX_TEMPERATURE,
    MIN_SECONDS,
    MIN_TEMPERATURE,
    ModelError,
    SamplingSpec,
    check_seconds,
)

QUIET = {"show_progress": "hidden", "api_visibility": "private"}
ADVANCED = ("cfg", "temperature", "top_k", "top_p", "greedy")
MODELS_OWN = ("cfg", "top_p")  # left empty they are what each model is made for
SETTINGS = ("seconds", "seed", *ADVANCED)
PICK_JS = """element.addEventListener('click', (event) => {
  const chip = event.target.closest('[data-pick]');
  if (chip) trigger('pick', {picked: chip.dataset.pick});
});"""

DISCLOSE_JS = """const button = element.querySelector('button');
button.addEventListener('click', () => {
  button.setAttribute('aria-expanded', button.getAttribute('aria-expanded') === 'false');
});"""


class Composer:
    """Lays itself out inside the current Blocks; `typed` are its boxes, in the order in which `order` takes them."""

    def __init__(self, bench: Bench, unknown_words: Callable[[str], list[str]]):
        self.bench = bench
        self.unknown_words = unknown_words
        with gr.Column(elem_classes="tm-panel tm-composer"):
            self._prompt()
            self._length()
            self._controls()
            # not gr.Accordion: it makes its boxes once it is opened, and what is typed at once may be lost
            html(
                '<button type="button" aria-controls="tm-advanced" aria-expanded="false">Advanced settings</button>',
                elem_id="tm-disclose", js_on_load=DISCLOSE_JS,
            )  # fmt: skip
            with gr.Column(elem_id="tm-advanced"):
                self._advanced()
        self.settings = [getattr(self, name) for name in SETTINGS]
        self.form = [self.source, self.loop, self.bpm]
        self.typed = [self.prompt, self.models, self.own, *self.settings, *self.form]
        self.asked = [self.seconds, self.models, self.own]
        self._wire()

    def order(self, prompt: str, models: list[str], own: str, *values) -> Order:
        """The order that the boxes' values make; a sound to go on from is kept in the output folder.

        Raises ValueError for what is not allowed, OSError when the disk is full.
        """
        settings = dict(zip(SETTINGS, values[: len(SETTINGS)], strict=True))
        settings |= {name: settings[name].strip() or None for name in MODELS_OWN}
        source, loop, bpm = values[len(SETTINGS) :]
        file, seconds = self.bench.keep_source(source) if source else ("", 0.0)
        tempo = check_bpm(bpm) if loop and bpm else None
        return check_order(prompt, models, own, settings, Form(file, seconds, loop, tempo))

    def restored(self, take: Take) -> dict[Any, Any]:
        """The boxes as they were for a take."""
        form = Form(**take.form)
        kept = self.bench.folder / form.source
        return {
            self.prompt: take.prompt,
            self.models: [model for model in take.models if model in wording.MODELS],
            self.own: next((clip.model for clip in take.clips if clip.model not in wording.MODELS), ""),
            **{box: take.settings[name] for box, name in zip(self.settings, SETTINGS, strict=True)},
            **{getattr(self, name): _shown(take.settings[name]) for name in MODELS_OWN},
            self.source: str(kept) if kept.is_file() else None,
            self.loop: form.loop,
            self.bpm: _shown(form.bpm),
        }

    @property
    def usual(self) -> dict[Any, Any]:
        """What the boxes of the closed accordion hold on a fresh page."""
        default = SamplingSpec().as_dict()
        boxes = {getattr(self, name): default[name] for name in ADVANCED}
        return {self.own: "", **boxes, **{getattr(self, name): _shown(default[name]) for name in MODELS_OWN}}

    # layout

    def _prompt(self) -> None:
        self.prompt = gr.Textbox(
            label="Describe the music", lines=2, max_lines=6, elem_id="tm-prompt", autofocus=True,
            placeholder="An instrument, a style, a mood, a tempo or a key, such as “a calm piano waltz in G major”",
        )  # fmt: skip
        self.hint = html(elem_id="tm-hint")
        self.chips = _chips([(text, text) for text in wording.EXAMPLES], "Examples")

    def _length(self) -> None:
        with gr.Row(elem_classes="tm-length"):
            self.seconds = gr.Number(
                SamplingSpec().seconds, label=f"Seconds ({MIN_SECONDS:g} to {MAX_SECONDS:g})", min_width=90,
                elem_id="tm-seconds",
            )  # fmt: skip
            self.lengths = _chips([(str(seconds), text) for seconds, text in wording.LENGTHS], "Lengths")
            self.estimate = html(elem_id="tm-estimate")

    def _controls(self) -> None:
        with gr.Row(elem_classes="tm-controls"):
            with gr.Row(elem_classes="tm-seed"):
                self.seed = gr.Number(7, label="Seed", precision=None, min_width=90, elem_id="tm-seed")
                self.dice = gr.Button("New", min_width=56, elem_classes="tm-dice", elem_id="tm-dice")
            self.models = gr.CheckboxGroup(
                [(wording.MODEL_TITLES[name], name) for name in wording.MODELS], value=list(wording.MODELS),
                label="Models", min_width=300, elem_classes="tm-models", elem_id="tm-models",
            )  # fmt: skip
            with gr.Row(elem_classes="tm-go"):
                self.stop = gr.Button("Stop", size="lg", visible=False, min_width=90, elem_id="tm-stop")
                self.generate = gr.Button(
                    "Generate", variant="primary", size="lg", min_width=150, elem_id="tm-generate"
                )

    def _advanced(self) -> None:
        words, default = wording.SETTINGS, SamplingSpec()
        with gr.Row():
            self.cfg = _models_own("cfg")
            self.temperature = gr.Slider(
                MIN_TEMPERATURE, min(2.0, MAX_TEMPERATURE), default.temperature, step=0.05,
                label=words["temperature"][0], info=words["temperature"][1],
            )  # fmt: skip
        with gr.Row():
            self.top_k = gr.Number(default.top_k, label=words["top_k"][0], info=words["top_k"][1], precision=None)
            self.top_p = _models_own("top_p")
        with gr.Row():
            with gr.Column(min_width=280):
                self.greedy = gr.Checkbox(default.greedy, label=words["greedy"][0], info=words["greedy"][1])
                self.loop = gr.Checkbox(
                    False, label="Loop", elem_id="tm-loop", info="Ends where it begins, to be played over and over"
                )
                self.bpm = gr.Textbox(
                    label="BPM of the loop", max_lines=1, elem_id="tm-bpm", visible=False, placeholder="any",
                    info=f"{MIN_BPM:g} to {MAX_BPM:g} gives whole bars of four beats; empty keeps the seconds",
                )  # fmt: skip
            with gr.Column(min_width=280):
                self.own = gr.Textbox(
                    label="Another model", max_lines=1, elem_id="tm-own", placeholder="facebook/musicgen-small",
                    info="A folder on this machine or a Hugging Face id; it gets a card of its own",
                )  # fmt: skip
                self._source()

    def _source(self) -> None:
        with gr.Column(elem_classes="tm-continue"):
            html(f"<span>Continue from a file</span><p>{KINDS}, at any rate; the music goes on where it ends</p>")
            self.source = gr.File(
                label="Continue from a file", show_label=False, file_types=list(ENDINGS), height=96, elem_id="tm-source"
            )
            self.source_note = html(elem_id="tm-source-note")

    # events

    def _wire(self) -> None:
        now = {"queue": False, **QUIET}
        newest = {"trigger_mode": "always_last", **now}
        self.dice.click(lambda: random.SystemRandom().randrange(10_000), None, self.seed, **now)
        self.prompt.change(self._hint, self.prompt, self.hint, **newest)
        self.chips.pick(_picked, None, self.prompt, **now)
        self.lengths.pick(_picked, None, self.seconds, **now)
        self.loop.change(lambda wanted: gr.update(visible=wanted), self.loop, self.bpm, **now)
        self.source.change(self._check, self.source, self.source_note, **now)
        changes = [box.change for box in self.asked]
        gr.on(changes, self.estimated, self.asked, self.estimate, **newest)

    def _hint(self, prompt: str) -> str:
        try:
            words = self.unknown_words(prompt or "")
        except (ValueError, ModelError, OSError):
            return ""
        text = wording.unknown_words_hint(words)
        return f'<p class="tm-unknown">{escape(text)}</p>' if text else ""

    def _check(self, path: str | None) -> str:
        """Say at once what is wrong with a file, or how long it is."""
        if not path:
            return ""
        try:
            seconds = check_source(path)
        except ValueError as error:
            return cards.note(f"{error}.", "problem")
        return f'<p class="tm-aside">{wording.exact(seconds)} long; the new music joins its end.</p>'

    def estimated(self, seconds: float | None, models: list[str], own: str) -> str:
        """How long that will take, where it is long."""
        try:
            seconds = check_seconds(seconds)
            measured = self.bench.store.last_figures()
        except (ValueError, StoreError):
            return ""
        chosen = [name for name in (*models, (own or "").strip()) if name]
        text = wording.estimate(seconds, {name: runs_of(name, seconds) for name in chosen}, measured)
        return f'<p class="tm-aside">{escape(text)}</p>' if text else ""


def _chips(values: list[tuple[str, str]], label: str) -> gr.HTML:
    """Buttons that each put a value into a box: (value, text)."""
    chips = "".join(
        f'<button type="button" data-pick="{escape(value)}">{escape(text)}</button>' for value, text in values
    )
    return html(f'<div class="tm-chips" role="group" aria-label="{label}">{chips}</div>', js_on_load=PICK_JS)


def _models_own(name: str) -> gr.Textbox:
    """The box of a setting that each model has a value of its own for."""
    label, info = wording.SETTINGS[name]
    return gr.Textbox(
        _shown(getattr(SamplingSpec(), name)), label=label, info=info, max_lines=1,
        elem_id=f"tm-{name.replace('_', '-')}", placeholder="the model's own",
    )  # fmt: skip


def _shown(number: float | None) -> str:
    """A number as its text box shows it; empty where there is none."""
    return "" if number is None else f"{number:g}"


def _picked(event: gr.EventData) -> str:
    return event.picked
