"""Measure variants so that two measurements agree: several fresh processes each, by turns, and what was done is kept.

A shared machine has fast minutes and slow ones, and a process keeps the luck of its start. So every variant's runs are
dealt over several processes, and the variants take turns: one process of each in a round, every other round in reverse.
What is shown is the median of all runs, with the lowest and the highest beside it. With a folder each process is
on disk as soon as it has ended; the same call goes on from there, and when all is done gives the same figures again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..figures import Figures
from ..journal import Journal
from ..records import Cancelled, ModelError, Progress, SamplingSpec, check_prompt
from ..text import EXAMPLE
from ..worker import ShouldStop, child_environment
from . import machine
from .bandwidth import cache_bytes, read_bandwidth
from .bench import check_models, check_runs, measure
from .timing import Process, extent, figures_of, middle

JOURNAL = "runs.jsonl"
LOOK_S = 0.5
PASSING = ("date",)  # what may differ between two calls of one measurement
OnTurn = Callable[["Turn", Progress], None]


@dataclass(frozen=True)
class Setting:
    """What is measured, and how.

    Attributes:
        models: what `tinymusician_core.load` takes, each once.
        runs: of each variant, in all of its processes together.
        rounds: fresh processes of each variant; no more than runs.
        threads: CPU threads; None leaves the choice to torch.
        device: "cpu" or "cuda".

    Raises:
        ValueError, ModelError: a model that cannot be had, or a number out of range.
    """

    models: tuple[str, ...]
    spec: SamplingSpec
    runs: int = 15
    rounds: int = 5
    threads: int | None = None
    device: str = "cpu"
    prompt: str = EXAMPLE

    def __post_init__(self):
        check_models(self.models)
        check_runs(self.runs)
        check_prompt(self.prompt)
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1:
            raise ValueError(f"rounds must be a whole number of 1 or more, got {self.rounds!r}")
        object.__setattr__(self, "rounds", min(self.rounds, self.runs))

    def as_dict(self) -> dict:
        """Every setting by name, those of the draw among them, ready for JSON."""
        names = ("runs", "rounds", "threads", "device", "prompt")
        others = {name: getattr(self, name) for name in names}
        return {"models": list(self.models), **others, **self.spec.as_dict()}


@dataclass(frozen=True)
class Turn:
    """One process to be: of a model, in a round, so many runs; `number` of `total` says which of all it is."""

    model: str
    round: int
    runs: int
    number: int
    total: int


def turns(setting: Setting) -> Iterator[Turn]:
    """All processes in their order: the models by turns, every other round in reverse."""
    number, total = 0, setting.rounds * len(setting.models)
    for each in range(setting.rounds):
        share = setting.runs // setting.rounds + (each < setting.runs % setting.rounds)
        for model in setting.models[:: -1 if each % 2 else 1]:
            number += 1
            yield Turn(model, each, share, number, total)


@dataclass(frozen=True)
class Variant:
    """What was measured of one variant.

    Attributes:
        step_bytes: the weights that every step reads.
        gb_per_s: these bytes over the time of a step; None where all of them fit into a cache, or none is known.
    """

    model: str
    figures: Figures
    step_bytes: int
    gb_per_s: float | None

    def as_dict(self) -> dict:
        """An entry of `variants` in the JSON contract."""
        beside = {"step_bytes": self.step_bytes, "gb_per_s": self.gb_per_s}
        return {"model": self.model, "figures": self.figures.as_dict(), **self.figures.more(), **beside}


@dataclass(frozen=True)
class Benched:
    """All variants, and the machine.

    Attributes:
        bandwidth: the bytes a second at which it read memory before each process.
        others: the share of its processor that other programs took before each process, 0 to 1.
        command: the command line that asked for it; None where there was none.
    """

    setting: Setting
    machine: dict
    bandwidth: tuple[float, ...]
    others: tuple[float, ...]
    variants: tuple[Variant, ...]
    command: str | None = None

    def as_dict(self) -> dict:
        """The JSON object of `bench`."""
        setting = self.setting
        return {
            "command": self.command,
            "prompt": setting.prompt,
            "seed": setting.spec.seed,
            "seconds": setting.spec.seconds,
            "rounds": setting.rounds,
            "machine": self.machine,
            "bandwidth_gb_per_s": max(self.bandwidth) / 1e9,
            "bandwidth_spread_gb_per_s": [end / 1e9 for end in extent(self.bandwidth)],
            "others": {"median": middle(self.others), "spread": extent(self.others)},
            "variants": [variant.as_dict() for variant in self.variants],
        }


def _machine(setting: Setting) -> dict:
    """The machine as the processes that are measured find it."""
    return machine.describe(setting.threads, child_environment(setting.threads))


@dataclass
class Kept:
    """What is done of a measurement, in memory and, where there is a folder, on disk."""

    journal: Journal | None
    records: list[dict] = field(default_factory=list)

    @classmethod
    def open(cls, setting: Setting, folder: Path | None) -> Kept:
        """What is done already in a folder; a new start where nothing is.

        Raises:
            ValueError: the folder holds a measurement of other settings, or on another machine.
        """
        head = {"setting": setting.as_dict(), "machine": _machine(setting)}
        if folder is None:
            return cls(None, [head])
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(folder / JOURNAL)
        if not len(journal):
            journal.append(head)
        found = journal.records[0]
        for name in ("setting", "machine"):
            for key, value in head[name].items():
                if key not in PASSING and found.get(name, {}).get(key) != value:
                    raise ValueError(
                        f"{journal.path} was measured with {key} {found.get(name, {}).get(key)!r}, not {value!r}; "
                        f"take another folder, or remove that file"
                    )
        return cls(journal, list(journal.records))

    def add(self, record: dict) -> None:
        """Keep one more record."""
        self.records.append(record)
        if self.journal is not None:
            self.journal.append(record)

    def processes(self, model: str) -> list[Process]:
        """Those of a model that are done."""
        return [Process.from_dict(record["process"]) for record in self.records if record.get("model") == model]

    def has(self, turn: Turn) -> bool:
        return any((record.get("model"), record.get("round")) == (turn.model, turn.round) for record in self.records)


def bench(
    setting: Setting,
    folder: Path | None = None,
    on_turn: OnTurn | None = None,
    should_stop: ShouldStop | None = None,
    command: str | None = None,
) -> Benched:
    """Measure variants by turns, each in several fresh processes.

    Args:
        setting: what, and how often.
        folder: where finished processes are kept, so that a second call goes on; it is made where there is none.
        on_turn: told whose turn it is, and the progress of it.
        should_stop: asked all the time; what the process under way has measured is lost.
        command: the command line that asks for this, for the report.

    Raises:
        ValueError: the folder holds a measurement of other settings; and as `measure` does.
        ModelError: a model has changed since its first process.
        Cancelled: `should_stop` said so.
    """
    kept = Kept.open(setting, folder)
    for turn in turns(setting):
        if not kept.has(turn):
            before = {"others": machine.busy_share(), "bandwidth": read_bandwidth(seconds=LOOK_S)}
            process = _take(turn, setting, on_turn, should_stop).as_dict()
            kept.add({"model": turn.model, "round": turn.round, **before, "process": process})
            _check_same(turn.model, kept.processes(turn.model))
    variants = tuple(_variant(model, kept.processes(model)) for model in setting.models)
    head, *records = kept.records
    looks = (tuple(record[name] for record in records) for name in ("bandwidth", "others"))
    return Benched(setting, head["machine"], *looks, variants, command)


def _take(turn: Turn, setting: Setting, on_turn: OnTurn | None, should_stop: ShouldStop | None) -> Process:
    report = None if on_turn is None else partial(on_turn, turn)
    try:
        measured = measure(
            turn.model,
            setting.prompt,
            setting.spec,
            turn.runs,
            on_progress=report,
            should_stop=should_stop,
            threads=setting.threads,
            device=setting.device,
        )
    except Cancelled as stopped:
        raise Cancelled(f"stopped after {turn.number - 1} of {turn.total} processes") from stopped
    return measured.process


def _check_same(model: str, processes: Sequence[Process]) -> None:
    if len({process.loaded.hash for process in processes}) > 1:
        raise ModelError(f"{model} has changed since its first process was measured; start anew in another folder")


def _variant(model: str, processes: Sequence[Process]) -> Variant:
    figures, read, cache = figures_of(processes), processes[-1].loaded.step_bytes, cache_bytes()
    from_memory = cache is not None and read > cache
    return Variant(model, figures, read, read / figures.ms_per_step / 1e6 if from_memory else None)
