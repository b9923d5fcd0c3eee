"""The ablation: every loss with every temperature schedule and every choice of layers, at one budget, over seeds.

A plan is a JSON file:

    {"teacher": "teacher", "data": "tokens", "steps": 400, "seeds": [0, 1, 2],
     "losses": ["stage-mixed", "forward-kl", "alpha-beta:0.2,0.7"], "temperatures": [null, "1"],
     "layers": [3, [0, 1, 7]], "baseline": "stage-mixed", "options": {"batch": 8, "seconds": 16}}

`temperatures` null is the usual schedule; `data` may be given relative to the file; `options` are `DistillSpec`'s.
Each run is a student in OUT/runs, or in a folder of its own, and, once finished, a record beside it; a stopped ablation
goes on where it was.

What is reported of each cell is the mean over its seeds with Student's t interval of 95%, and the difference from the
baseline loss with the same temperature and layers, paired by seed: losses are compared at one temperature. The baseline
loss itself is compared with its own first temperature (in a plan of layers alone: with the first layers). Seeds draw
other windows; the student's start is the teacher's own weights, so that the spread is that of training. Beside it stand
the same KL and difference by held-out clip, paired by clip, with an interval that is that of the music and is there for
a single seed too. All students are judged on the same `WINDOWS` windows, each of another clip as far as there are so
many, once they are finished.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..files import whole_file
from ..measure.report import write_files
from ..records import Cancelled
from ..training import CHECKPOINT, TrainProgress
from .ablation_report import write_report
from .spec import DistillSpec
from .train import Run, distill

RUNS = "runs"
LEVEL = 0.95
WINDOWS = 192  # held-out windows that each student is judged on, where the plan's options say nothing


@dataclass(frozen=True)
class Cell:
    """What is compared: a loss, a temperature schedule (None for the usual one), and layers."""

    loss: str
    temperature: str | None
    layers: int | tuple[int, ...]

    @property
    def label(self) -> str:
        return f"{self.loss}{self._heat}, {self._layers}"

    def label_in(self, plan: Plan) -> str:
        """What tells it apart from the other cells of a plan; the whole label where there are none."""
        heat = self._heat if len(plan.temperatures) > 1 else ""
        told = [(self.loss if len(plan.losses) > 1 else "") + heat, self._layers if len(plan.layers) > 1 else ""]
        return ", ".join(part.strip() for part in told if part) or self.label

    @property
    def _heat(self) -> str:
        return "" if self.temperature is None else f" T={self.temperature}"

    @property
    def _layers(self) -> str:
        return f"{self.layers} layers" if isinstance(self.layers, int) else "layers " + ",".join(map(str, self.layers))

    @property
    def folder(self) -> str:
        return "".join(c if c.isalnum() or c in "-." else "_" for c in self.label)


@dataclass(frozen=True)
class Plan:
    """An ablation. Raises ValueError for what `DistillSpec` would refuse, an empty list, or an unknown baseline."""

    teacher: str
    data: str
    losses: tuple[str, ...]
    layers: tuple[int | tuple[int, ...], ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    temperatures: tuple[str | None, ...] = (None,)
    steps: int | None = None
    minutes: float | None = None
    baseline: str = "stage-mixed"
    options: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("losses", "layers", "seeds", "temperatures"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence) or not value:
                raise ValueError(f"the ablation's {name} are {value!r}; a list with at least one entry is needed")
            entries = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in value)
            if len(set(entries)) < len(entries):
                raise ValueError(f"the ablation's {name} are {list(value)}; each entry may be there once")
            object.__setattr__(self, name, entries)
        if self.steps is None and self.minutes is None:
            raise ValueError("the ablation has no budget; steps or minutes are needed")
        if self.baseline not in self.losses:
            raise ValueError(
                f"the baseline is {self.baseline!r}; one of the losses is allowed: {', '.join(self.losses)}"
            )
        taken = {"loss", "temperature", "layers", "seed"} & set(self.options)
        if taken:
            raise ValueError(f"the ablation's options hold {', '.join(sorted(taken))}, which have lists of their own")
        for each in self.cells:
            self.run.settings(self.spec(each, self.seeds[0]))

    @property
    def run(self) -> Run:
        return Run(self.minutes, self.steps)

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(itertools.starmap(Cell, itertools.product(self.losses, self.temperatures, self.layers)))

    def base_of(self, of: Cell) -> Cell:
        """What a cell is compared with: the baseline loss at its temperature, with its layers; a cell of the baseline
        loss with the first temperature, or where there is but one loss and one temperature with the first layers."""
        if of.loss != self.baseline:
            return Cell(self.baseline, of.temperature, of.layers)
        alone = len(self.losses) == len(self.temperatures) == 1
        return Cell(self.baseline, self.temperatures[0], self.layers[0] if alone else of.layers)

    def spec(self, of: Cell, seed: int) -> DistillSpec:
        try:
            options = {"validation_windows": WINDOWS, **self.options}
            return DistillSpec(of.layers, loss=of.loss, temperature=of.temperature, seed=seed, **options)
        except TypeError as error:
            raise ValueError(f"the ablation's options are {sorted(self.options)}: {error}") from error


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds or clips and its interval; None for both ends where there is but one."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def spread(self) -> tuple[float, float] | None:
        return None if self.low is None else (self.low, self.high)


@dataclass(frozen=True)
class Row:
    """A cell's figures, each over its seeds, and its difference in KL from the baseline's; None for itself.

    `by_clip` is its KL over held-out clips, each the mean over seeds, and `against_by_clip` the difference there.
    """

    cell: Cell
    figures: dict[str, Interval]
    by_clip: Interval
    against: Interval | None = None
    against_by_clip: Interval | None = None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The interval of the KL: over seeds, or where there is one seed alone over clips."""
        return self.figures["kl"].spread or self.by_clip.spread


def read_plan(path: str | os.PathLike) -> Plan:
    """The plan in a JSON file; ValueError where it is none."""
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        plan = Plan(**record)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a JSON plan of an ablation") from error
    except TypeError as error:
        raise ValueError(f"{path} is no plan of an ablation: {str(error).replace('Plan.__init__() ', '')}") from error
    if (path.parent / plan.data).is_dir():
        return Plan(**{**record, "data": str(path.parent / plan.data)})
    return plan


def interval(values: Sequence[float]) -> Interval:
    """The mean of some values, with Student's t interval."""
    from scipy.stats import t

    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return Interval(mean, None, None, n)
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1) / n)
    return Interval(mean, mean - half, mean + half, n)


def run_ablation(
    plan: Plan,
    out_dir: str | os.PathLike,
    on_progress: Callable[[str, int, int, TrainProgress | None], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    *,
    runs_dir: str | os.PathLike | None = None,
    device: str = "cpu",
    command: str | None = None,
) -> list[Row]:
    """Make every run that is not finished yet, and write the report.

    Args:
        plan: what to compare.
        out_dir: the folder for the report.
        on_progress: told the run, how many are finished, of how many, and where it stands.
        should_stop: asked before every step.
        runs_dir: the folder for students and records; None for OUT/runs.
        device: "cpu" or "cuda".
        command: the command line that asks for this, for the report.

    Returns:
        The cells, from the least KL to the most.

    Raises:
        ValueError: a folder holds another ablation, or what `distill` refuses.
        Cancelled: `should_stop` said so; the same call goes on.
    """
    out = Path(out_dir)
    runs = out / RUNS if runs_dir is None else Path(runs_dir)
    for folder in (out, *([] if runs_dir is None else [runs])):
        _claim(folder, plan)
    orders = list(itertools.product(plan.cells, plan.seeds))
    records = []
    for done, (each, seed) in enumerate(orders):
        name = f"{each.label}, seed {seed}"

        def tell(at: TrainProgress | None, name: str = name, done: int = done) -> None:
            if on_progress is not None:
                on_progress(name, done, len(orders), at)

        tell(None)
        records.append(_run(plan, each, seed, runs, device, tell, should_stop))
    found = rows_of(plan, records)
    write_report(plan, found, records, out, command)
    return found


def _claim(out: Path, plan: Plan) -> None:
    record, settings = out / "plan.json", json.loads(json.dumps(asdict(plan)))
    if record.is_file():
        if json.loads(record.read_text(encoding="utf-8")) != settings:
            raise ValueError(f"{out} holds another ablation; give its plan unchanged, or another folder")
        return
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no ablation; give a new folder")
    write_files(out, {"plan.json": settings})


def _run(
    plan: Plan, of: Cell, seed: int, folder: Path, device: str, tell: Callable, should_stop: Callable | None
) -> dict:
    """One run's record; made if it is not there."""
    student, spec = folder / f"{of.folder}-seed{seed}", plan.spec(of, seed)
    record, windows = student.with_name(f"{student.name}.json"), spec.validation_batches * spec.batch
    if record.is_file():
        return _known(record, windows)
    options = {k: v for k, v in asdict(spec).items() if k != "layers"}
    try:
        made = distill(
            plan.teacher,
            plan.data,
            of.layers,
            student,
            minutes=plan.minutes,
            steps=plan.steps,
            resume=True,
            device=device,
            on_progress=tell,
            should_stop=should_stop,
            **options,
        )
    except Cancelled as stop:
        raise Cancelled(f"stopped in {student.name}; the same command goes on from there") from stop
    found = {"loss": of.loss, "temperature": of.temperature, "layers": list(made.layers), "seed": seed}
    found |= {"steps": made.steps, "minutes": made.minutes, "windows": windows, **made.validation}
    found["clip_kl"] = list(made.clip_kl)
    with whole_file(record) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (student.with_name(f"{student.name}.training") / CHECKPOINT).unlink()
    return found


def _known(record: Path, windows: int) -> dict:
    """A finished run's record; ValueError where its student was judged on other windows than the others are."""
    found = json.loads(record.read_text(encoding="utf-8"))
    if found.get("windows") != windows:
        raise ValueError(
            f"{record} is of a student that was judged on {found.get('windows')} held-out windows, not {windows}; "
            "give another folder for the runs"
        )
    return found


def _figures(record: dict) -> dict[str, float]:
    ours, theirs = record["validation_cross_entropy"], record["validation_teacher_cross_entropy"]
    return {"kl": record["validation_kl"], "cross_entropy": ours, "likelihood": math.exp(theirs - ours)}


def rows_of(plan: Plan, records: Sequence[dict]) -> list[Row]:
    """The cells with their figures, from the least KL to the most; records in the order of cells and seeds."""
    seeds = len(plan.seeds)
    by_cell = {each: records[i * seeds : (i + 1) * seeds] for i, each in enumerate(plan.cells)}
    rows = []
    for each, found in by_cell.items():
        values = [_figures(record) for record in found]
        figures = {name: interval([value[name] for value in values]) for name in values[0]}
        row = Row(each, figures, interval(_by_clip(found)))
        base = plan.base_of(each)
        rows.append(row if base == each else _against(row, values, found, by_cell[base]))
    return sorted(rows, key=lambda row: row.figures["kl"].value)


def _by_clip(records: Sequence[dict]) -> list[float]:
    """The KL of every held-out clip, the mean over seeds."""
    return [math.fsum(values) / len(values) for values in zip(*(r["clip_kl"] for r in records), strict=True)]


def _against(row: Row, values: Sequence[dict], found: Sequence[dict], base: Sequence[dict]) -> Row:
    """A row with its differences from the baseline's records, seed by seed and clip by clip."""
    seeds = [mine["kl"] - _figures(other)["kl"] for mine, other in zip(values, base, strict=True)]
    clips = [mine - other for mine, other in zip(_by_clip(found), _by_clip(base), strict=True)]
    return replace(row, against=interval(seeds), against_by_clip=interval(clips))
