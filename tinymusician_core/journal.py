"""A file of JSON lines that grows by one record at a time and survives a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


class Journal:
    """The records of a file, in order; `append` adds one, and it is on disk before the call returns.

    What a kill left of a last line is dropped when the file is opened again.

    Attributes:
        records: what is in it, first to last.

    Raises:
        ValueError: a line before the last cannot be read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.records: list[dict] = []
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        whole, _, torn = self.path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self.records.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{self.path} is damaged: line {number} is no JSON; remove the file") from error
        if torn:
            with open(self.path, "rb+") as file:
                file.truncate(len(whole) + 1 if self.records else 0)

    def append(self, record: Mapping) -> None:
        """Add a record; OSError where the disk is full."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with open(self.path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.records.append(json.loads(line))

    def __len__(self) -> int:
        return len(self.records)
