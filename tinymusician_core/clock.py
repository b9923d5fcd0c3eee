"""How long each stage of a generation takes, though they take turns, and who is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .records import Progress, Timing

Report = Callable[[Progress], None]


class Clock:
    """Adds up the time spent in "text", "lm" and "codec"; the time between stages is the listener's and not counted."""

    def __init__(self, on_progress: Report | None = None):
        self._report = on_progress
        self._spent = {"text": 0.0, "lm": 0.0, "codec": 0.0}
        self._begun: dict[str, float] = {}
        self._first_sound_s: float | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside as a part of a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent[name] += time.perf_counter() - start

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report progress; the stage's own clock runs from the first report of it."""
        if self._report is not None:
            now = time.perf_counter()
            self._report(Progress(stage, done, total, now - self._begun.setdefault(stage, now)))

    def sound(self) -> None:
        """Sound is there; the first call counts."""
        if self._first_sound_s is None:
            self._first_sound_s = self.total_s

    @property
    def total_s(self) -> float:
        return sum(self._spent.values())

    def timing(self, steps: int) -> Timing:
        """The figures so far; without any sound yet the first one counts as no earlier than now."""
        total = self.total_s
        first = total if self._first_sound_s is None else self._first_sound_s
        return Timing(self._spent["text"], self._spent["lm"], self._spent["codec"], first, total, steps)
