"""The log of a training run: JSON lines that end where its checkpoint does, and TensorBoard's events beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from .files import whole_file

LOG, EVENTS = "log.jsonl", "tensorboard"


class RunLog:
    """Appends records to FOLDER/log.jsonl, and with `tensorboard` to FOLDER/tensorboard, which needs that package."""

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        self._folder, self._tensorboard, self._writer = folder, tensorboard, None

    def write(self, step: int, elapsed_s: float, record: Mapping[str, float | int]) -> None:
        """Append a record with the step and the seconds of training; what `record` says of them goes before."""
        with (self._folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "elapsed_s": round(elapsed_s, 1), **record}) + "\n")
        if not self._tensorboard:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder / EVENTS), purge_step=step)
        for name, value in record.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def forget_after(self, step: int) -> None:
        """Drop the records of later steps, which a run that goes on from here will make anew, and a torn last line."""
        path = self._folder / LOG
        if not path.exists():
            return
        whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        with whole_file(path) as partial:
            partial.write_text("".join(kept), encoding="utf-8")

    def close(self) -> None:
        """Close TensorBoard's file, where one is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
