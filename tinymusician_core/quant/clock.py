"""How long a search takes, and where: seconds of the wall clock by part, and what of it an earlier run had measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# In the order in which they come; what each is, in words.
PARTS = {
    "tokens": "tokens to try schemes on, played by the model or read",
    "float answers": "what the float model answers to them, and its layers' inputs",
    "sensitivity": "what each scheme does to each module alone",
    "cost": "what calls take, and whole steps of them",
    "search": "the integer program",
    "measuring": "whole plans, and modules anew beside the others of their plan",
    "held out": "the plan that was found, on tokens that the search has not seen",
    "comparing": "other plans beside it, and the searches for those of other sizes",
}


@dataclass
class Spent:
    """What a part took: seconds, and how many figures were measured and how many an earlier run had kept.

    The two counts are None for a part that keeps nothing for later runs.
    """

    seconds: float = 0.0
    measured: int | None = None
    kept: int | None = None

    def as_dict(self) -> dict:
        """Ready for JSON."""
        counts = {} if self.measured is None else {"measured": self.measured, "from_earlier_runs": self.kept}
        return {"seconds": self.seconds, **counts}


class Clock:
    """Adds up the seconds of each part of a search; a part within another is the outer one's.

    Args:
        now: tells seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now, self._began = now, now()
        self._spent: dict[str, Spent] = {}
        self._open = False

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done in this block is this part of the search; ValueError for one that there is not."""
        if name not in PARTS:
            raise ValueError(f"no such part: {name!r}; allowed: {', '.join(PARTS)}")
        if self._open:
            yield
            return
        began, self._open = self._now(), True
        try:
            yield
        finally:
            self._open = False
            self._spent.setdefault(name, Spent()).seconds += self._now() - began

    def timed(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a call returns, or raises; its time is the part's."""
        with self.part(name):
            return call(*args, **kwargs)

    def note(self, name: str, measured: int, kept: int) -> None:
        """How many figures of a part were measured in this run so far, and how many are from an earlier one."""
        spent = self._spent.setdefault(name, Spent())
        spent.measured, spent.kept = measured, kept

    def as_dict(self) -> dict:
        """The seconds since the clock was made, and what each part took; None for one that was not done. For JSON."""
        parts = {name: self._spent[name].as_dict() if name in self._spent else None for name in PARTS}
        return {"total_s": self._now() - self._began, "parts": parts}
