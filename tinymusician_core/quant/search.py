"""The best plan within a budget, exactly: a multiple-choice program, solved by scipy's HiGHS.

Each group of modules has one of its options; errors, bytes and times are taken to add up.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from .sensitivity import Option

# Of two plans as good, the quicker, then the smaller: what that may cost in nats, over all of the time and the bytes.
SPEED_NATS, BYTES_NATS = 1e-6, 1e-7
EXACT = 1.0 - 2e-6  # of a limit: the solver takes a millionth more for kept
NAMES = {"max_mb": "megabytes", "max_ms": "milliseconds a step", "max_kl": "nats a token"}


@contextmanager
def unprinted() -> Iterator[None]:
    """What is printed past Python in this block is lost: HiGHS has a debugging line that no option turns off."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@dataclass(frozen=True)
class Budget:
    """What a plan may take, any mix of three limits and at least one; ValueError for none, or for no number above 0.

    Attributes:
        max_mb: millions of bytes of all files that generating reads.
        max_ms: milliseconds a step of the language model, on this machine.
        max_kl: nats a token between the float model's next-token distribution and the plan's; the codec's error is
            held to the same. With this limit the smallest plan is searched for, otherwise the closest to the float.
    """

    max_mb: float | None = None
    max_ms: float | None = None
    max_kl: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits.items():
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
                raise ValueError(f"{name} must be a number above 0, got {limit!r}")
        if not self.limits:
            raise ValueError("a budget needs at least one of max_mb, max_ms and max_kl")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that there are."""
        found = {"max_mb": self.max_mb, "max_ms": self.max_ms, "max_kl": self.max_kl}
        return {name: limit for name, limit in found.items() if limit is not None}


@dataclass(frozen=True)
class Choice:
    """An option with what it adds to each figure.

    Attributes:
        disk_bytes: of its tensors, and of what names them in the files.
        step_s: seconds of a step, where that is measured.
        other_s: seconds of the text encoder and of the codec for a second of sound: these decide between equals.
        kl, codec: as `Harm` has them, the mean over codebooks.
    """

    option: Option
    disk_bytes: int
    step_s: float
    other_s: float
    kl: float
    codec: float


@dataclass(frozen=True)
class Fixed:
    """What a plan takes beside its options: the other bytes of the files, and a step's time without its products."""

    disk_bytes: int
    step_s: float = 0.0


class ImpossibleBudget(ValueError):
    """No plan keeps the budget. `nearest`: for each limit the least that it could be, the others kept."""

    def __init__(self, message: str, nearest: dict[str, float]):
        super().__init__(message)
        self.nearest = nearest


def search(choices: Sequence[Choice], fixed: Fixed, budget: Budget, most_kl: float = math.inf) -> list[Choice]:
    """The best choice of each group, in the order of the groups.

    Args:
        choices, fixed: what there is to choose from, and what a plan takes beside it.
        budget: the limits.
        most_kl: of the language model alone, in nats a token; it changes nothing of what is best.

    Raises:
        ImpossibleBudget: there is none; it says which limit binds, and the nearest that can be kept.
    """
    program = _Program(choices, fixed)
    limits = budget.limits
    found = program.solve(program.bytes_first() if "max_kl" in limits else program.harm_first(), limits, most_kl)
    if found is None:
        raise _impossible(program, limits)
    return found


def _impossible(program: _Program, limits: dict[str, float]) -> ImpossibleBudget:
    alone = {name: program.least(name, {}) for name in limits}
    binding = {name: least for name, least in alone.items() if least > limits[name]}
    if binding:
        said = [
            f"{name} {limits[name]:g} cannot be kept, {_said(name, least)} is the least"
            for name, least in binding.items()
        ]
        return ImpossibleBudget("; ".join(said), binding)
    nearest = {}
    for name in limits:
        least = program.least(name, {other: limit for other, limit in limits.items() if other != name})
        if least is not None:
            nearest[name] = least
    said = [f"{name} {_said(name, least)}" for name, least in nearest.items()]
    kept = " and ".join(f"{name} {limit:g}" for name, limit in limits.items())
    return ImpossibleBudget(
        f"no plan keeps {kept} together; the others kept, the nearest are {', or '.join(said)}", nearest
    )


def _said(name: str, value: float) -> str:
    """A limit that can be kept, rounded up to four digits."""
    if value <= 0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / step - 1e-9) * step:.6g} {NAMES[name]}"


class _Program:
    """The program over a list of choices: x is 1 for those that are taken."""

    def __init__(self, choices: Sequence[Choice], fixed: Fixed):
        self._choices = list(choices)
        names = list(dict.fromkeys(choice.option.group.name for choice in choices))
        self._one_each = np.zeros((len(names), len(choices)))
        for i, choice in enumerate(choices):
            self._one_each[names.index(choice.option.group.name), i] = 1.0
        self._bytes = np.array([choice.disk_bytes for choice in choices], float)
        self._step_us = 1e6 * np.array([choice.step_s for choice in choices])
        self._kl = 1e6 * np.array([choice.kl for choice in choices])
        self._codec = 1e6 * np.array([choice.codec for choice in choices])
        self._time = self._step_us + 1e6 * np.array([choice.other_s for choice in choices])
        self._fixed = fixed

    def harm_first(self) -> np.ndarray:
        """The objective of the plan closest to the float model."""
        return self._kl + self._codec + 1e6 * (SPEED_NATS * _share(self._time) + BYTES_NATS * _share(self._bytes))

    def bytes_first(self) -> np.ndarray:
        """The objective of the smallest plan."""
        return self._bytes + _share(self._time)

    def _rows(self, limits: dict[str, float]) -> list[tuple[np.ndarray, float]]:
        """Row and highest value of each limit, in bytes, microseconds and millionths of a nat."""
        rows = []
        if "max_mb" in limits:
            rows.append((self._bytes, 1e6 * limits["max_mb"] - self._fixed.disk_bytes))
        if "max_ms" in limits:
            rows.append((self._step_us, 1e3 * limits["max_ms"] - 1e6 * self._fixed.step_s))
        if "max_kl" in limits:
            rows += [(self._kl, 1e6 * limits["max_kl"]), (self._codec, 1e6 * limits["max_kl"])]
        return rows

    def _run(self, objective: np.ndarray, rows: list[tuple[np.ndarray, float]]) -> np.ndarray | None:
        """The choices that are taken, bool; None where the rows cannot be kept."""
        if any(highest <= 0 for _, highest in rows):
            return None
        constraints = [LinearConstraint(self._one_each, 1.0, 1.0)]
        constraints += [LinearConstraint(row[np.newaxis] / highest, -np.inf, EXACT) for row, highest in rows]
        with unprinted():
            made = milp(
                objective / max(objective.max(), 1e-12),
                integrality=np.ones(len(objective)),
                bounds=Bounds(0, 1),
                constraints=constraints,
                options={"mip_rel_gap": 0.0},
            )
        return None if made.x is None else made.x > 0.5

    def solve(self, objective: np.ndarray, limits: dict[str, float], most_kl: float = math.inf) -> list[Choice] | None:
        """The choices with the least of an objective within limits; None where there are none."""
        rows = self._rows(limits)
        if most_kl < math.inf:
            rows.append((self._kl, 1e6 * most_kl))
        taken = self._run(objective, rows)
        return None if taken is None else [c for c, yes in zip(self._choices, taken, strict=True) if yes]

    def least(self, name: str, limits: dict[str, float]) -> float | None:
        """The least that a limit could be, the others kept, in its own unit; None where those cannot be kept."""
        if name == "max_kl":
            return self._least_kl(limits)
        objective = self._bytes if name == "max_mb" else self._step_us
        taken = self._run(objective, self._rows(limits))
        if taken is None:
            return None
        if name == "max_mb":
            return (float(objective[taken].sum()) + self._fixed.disk_bytes) / 1e6
        return float(objective[taken].sum()) / 1e3 + 1e3 * self._fixed.step_s

    def _least_kl(self, limits: dict[str, float]) -> float | None:
        """The model's error and the codec's count alike, and the larger one most: the least of it, by halving."""
        rows = self._rows(limits)
        best = self._run(self._kl + self._codec, rows)
        if best is None:
            return None
        low, high = 0.0, max(float(self._kl[best].sum()), float(self._codec[best].sum()))
        while high - low > 1e-3 * high and high > 1e-3:
            middle = (low + high) / 2
            taken = self._run(self._bytes, [*rows, (self._kl, middle), (self._codec, middle)])
            if taken is None:
                low = middle
            else:
                high = max(float(self._kl[taken].sum()), float(self._codec[taken].sum()))
        return high / 1e6


def _share(row: np.ndarray) -> np.ndarray:
    """A row as shares of the most that it can come to."""
    return row / max(row.sum(), 1e-12)
