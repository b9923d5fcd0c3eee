"""What was measured once, kept for the next time: JSON records a line in the user's cache folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder() -> Path:
    """Where measurements are kept: TINYMUSICIAN_CACHE, or tinymusician in the user's own cache folder."""
    chosen = os.environ.get("TINYMUSICIAN_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinymusician"


class Measured:
    """Records by key, each in the file as soon as it is known, so that a run that was stopped goes on from there.

    A line that was cut short when a run was killed is measured again.

    Args:
        name: the file's name, without its suffix.
        folder: where it is; the cache folder where None.
    """

    def __init__(self, name: str, folder: Path | None = None):
        self.path = (cache_folder() if folder is None else folder) / f"{name}.jsonl"
        self._records: dict[str, dict] = {}
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                record = _record(line)
                if record is not None:
                    self._records[record.pop("key")] = record
        self._new: set[str] = set()
        self._asked: set[str] = set()

    def get(self, key: str) -> dict | None:
        """The record of a key; None where there is none yet."""
        self._asked.add(key)
        return self._records.get(key)

    @property
    def counts(self) -> tuple[int, int]:
        """How many records were put so far, and how many others were asked for and are an earlier run's."""
        return len(self._new), len((self._asked & self._records.keys()) - self._new)

    def put(self, key: str, record: Mapping) -> None:
        """Keep a record, in memory and on disk."""
        self._records[key] = dict(record)
        self._new.add(key)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"\n", b"")
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(("" if whole else "\n") + json.dumps({"key": key, **record}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _record(line: str) -> dict | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("key"), str) else None
