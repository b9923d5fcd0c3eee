"""The Listen tab: blind pairs, a vote, what was behind it, and what the votes add up to.

Until a vote is stored the page holds nothing that tells the models apart: the two files carry no tags and opaque names,
and the pair's id comes from a secret seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gradio as gr

from studio import ballots, cards, wording
from studio.blind import BlindFiles
from studio.compare import COMPUTE, QUIET
from studio.orders import Order
from studio.players import file_url
from studio.store import StoreError
from studio.takes import Bench, Card
from studio.theme import html
from studio.trial import Pair, Vote, next_pair, pairs_of, preferences
from tinymusician_core.records import SamplingSpec

FRESH_SECONDS = 8.0
VOTE_JS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-vote]');
  if (!button || button.disabled) return;
  const trial = button.closest('.tm-trial');
  const heard = window.tmListened(trial);
  trial.querySelectorAll('[data-vote]').forEach((other) => (other.disabled = true));
  trial.querySelectorAll('audio').forEach((audio) => audio.pause());
  trial.removeAttribute('data-needed');
  trigger('vote', {pair: trial.dataset.pair, choice: button.dataset.vote, a: heard.a, b: heard.b});
});"""


class ListenTab:
    """Lays out the tab inside the current Blocks and wires it to a bench."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self.blind = BlindFiles(bench.folder)
        self.seed = bench.store.seed()
        html(ballots.INTRO)
        self.note = html(elem_id="tm-listen-note")
        self.stage = html(ballots.PREPARING, js_on_load=VOTE_JS, elem_id="tm-stage")
        self.next = gr.Button("Next pair", variant="primary", visible=False, elem_id="tm-next")
        with gr.Row(elem_classes="tm-fresh"):
            self.fresh = gr.Button("Make fresh pairs", elem_id="tm-fresh", min_width=170)
            self.stop = gr.Button("Cancel", visible=False, elem_id="tm-fresh-cancel", min_width=90)
            self.making = html(ballots.FRESH_HINT, elem_id="tm-making")
        html(cards.heading("Results", "Share of votes that chose a side, with its 95% interval"))
        self.results = html(elem_id="tm-results")
        self.run = gr.Textbox(visible="hidden")
        self.state = gr.State("empty")
        self.shown = [self.stage, self.next, self.results, self.state, self.note]
        self._wire()

    def refresh(self) -> dict[Any, Any]:
        """The pair whose turn it is, or the offer to make some, and the results so far."""
        pairs, votes = self._pairs(), self.bench.store.votes()
        self.blind.forget(vote.pair for vote in votes)
        shown = {self.stage: ballots.nothing(judged=len(votes)), self.state: "empty", self.results: self._results()}
        while (pair := next_pair(pairs, votes)) is not None:
            try:
                a, b = self.blind.prepare(pair)
            except (OSError, ValueError) as error:
                pairs = [other for other in pairs if other.id != pair.id]
                shown[self.note] = cards.note(f"a pair was left out: {error}.", "problem")
                continue
            left = len({other.id for other in pairs} - {vote.pair for vote in votes})
            shown |= {self.stage: ballots.trial(pair, file_url(a), file_url(b), left), self.state: "pair"}
            break
        return {**shown, self.next: gr.update(visible=False)}

    def revisit(self, state: str) -> dict[Any, Any]:
        """Coming back to the tab: new pairs fill an empty stage; a pair or a reveal that is being looked at stays."""
        return self.refresh() if state == "empty" else {self.results: self._results()}

    def _wire(self) -> None:
        self.stage.vote(self._vote, None, self.shown, queue=False, **QUIET)
        self.next.click(lambda: {self.note: "", **self.refresh()}, None, self.shown, queue=False, **QUIET)
        making = [self.run, self.making, self.fresh, self.stop, self.note]
        begun = self.fresh.click(self._begin, None, making, queue=False, **QUIET)
        made = begun.success(self._perform, self.run, making, **COMPUTE, **QUIET)
        done = made.then(self._settle, self.run, making, queue=False, **QUIET)
        done.then(self.revisit, self.state, self.shown, queue=False, **QUIET)
        self.stop.click(self._cancel, self.run, making, queue=False, **QUIET)

    def _vote(self, event: gr.EventData) -> dict[Any, Any]:
        """Store the vote first; only then say what was what."""
        pair = next((pair for pair in self._pairs() if pair.id == event.pair), None)
        if pair is None:
            return {
                self.note: cards.note("this pair is no longer there; take the next one", "problem"),
                **self._after(),
            }
        try:
            vote = Vote(pair, event.choice, float(event.a), float(event.b))
            self.bench.store.add_vote(vote.row())
        except (ValueError, TypeError, StoreError) as error:
            return {self.note: cards.note(f"the vote was not stored: {error}.", "problem"), **self._after()}
        return {self.stage: self._reveal(pair, vote), self.note: "", **self._after()}

    def _after(self) -> dict[Any, Any]:
        return {self.next: gr.update(visible=True), self.state: "revealed", self.results: self._results()}

    def _reveal(self, pair: Pair, vote: Vote) -> str:
        urls = [file_url(path) for path in self.blind.paths(pair)]
        return ballots.reveal(pair, vote, *urls)

    def _begin(self) -> dict[Any, Any]:
        rng = random.SystemRandom()
        spec = SamplingSpec(seconds=FRESH_SECONDS, seed=rng.randrange(10_000))
        order = Order(rng.choice(wording.EXAMPLES), spec, wording.MODELS, blind=True)
        busy = self.bench.busy
        return {
            self.run: self.bench.order(order),
            self.making: ballots.making(None, 0, len(order.models), waiting=busy),
            self.fresh: gr.update(interactive=False),
            self.stop: gr.update(visible=True, interactive=True),
            self.note: "",
        }

    def _perform(self, run: str) -> Iterator[dict[Any, Any]]:
        order = self.bench.find(run)
        if order is None or order.started.is_set() or order.done.is_set():
            yield {self.making: gr.skip()}
            return
        ended: dict[str, Card] = {}
        try:
            with closing(self.bench.perform(run)) as news:
                for state in news:
                    if state.state != "working":
                        ended[state.model] = state
                    yield {self.making: ballots.making(state, len(ended), len(order.models))}
        except StoreError as error:
            yield {self.note: cards.note(f"{error}.", "problem")}
        failed = [state.message for state in ended.values() if state.state == "failed"]
        if failed:
            yield {self.note: cards.note(" ".join(failed), "problem")}

    def _settle(self, run: str = "") -> dict[Any, Any]:
        order = self.bench.find(run)
        if order is not None and not order.done.is_set():
            return {self.making: gr.skip()}
        return {
            self.making: ballots.FRESH_HINT,
            self.fresh: gr.update(interactive=True),
            self.stop: gr.update(visible=False),
        }

    def _cancel(self, run: str) -> dict[Any, Any]:
        order = self.bench.find(run)
        self.bench.stop(run)
        if order is None or not order.started.is_set():
            return self._settle()
        return {self.making: ballots.status("Stopping at the next step …"), self.stop: gr.update(interactive=False)}

    def _pairs(self) -> list[Pair]:
        """Every pair whose two files are still there."""
        takes = self.bench.store.takes()
        there = {clip.id for take in takes for clip in take.clips if self.bench.path(clip).is_file()}
        return [pair for pair in pairs_of(takes, self.seed) if {pair.a.id, pair.b.id} <= there]

    def _results(self) -> str:
        return ballots.results(preferences(self.bench.store.votes(), wording.MODELS))
