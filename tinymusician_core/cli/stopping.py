"""Ctrl-C as a wish: long work is asked to stop and ends well, with what was made; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Give a function that is true once Ctrl-C was pressed in the block; pressed again it raises KeyboardInterrupt."""
    pressed = False

    def press(*_) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
