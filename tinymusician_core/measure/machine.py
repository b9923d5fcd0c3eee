"""What machine this is, and the versions of what computes on it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = ("torch", "transformers", "audiocraft")
LOOK_S = 0.5


def describe(threads: int | None = None, environment: Mapping[str, str] | None = None) -> dict:
    """Processor, cores, threads, torch's vector instructions, GPU, system, versions, and the date, ready for JSON.

    A package that is not installed has None as its version; gpu is None where torch finds none; omp_wait_policy is None
    where OpenMP decides.

    Args:
        threads: CPU threads of what is measured; None where torch decides.
        environment: of the processes that are measured; None where this process is.
    """
    import torch

    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "omp_wait_policy": (os.environ if environment is None else environment).get("OMP_WAIT_POLICY"),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """What the processor calls itself, where the system tells; otherwise its kind, such as arm64."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def busy_share(seconds: float = LOOK_S) -> float:
    """The share of the processor, 0 to 1, that is in use for so many seconds, while this program waits."""
    return psutil.cpu_percent(interval=seconds) / 100.0


def notes(machine: dict) -> list[str]:
    """The machine in two lines of a report."""
    versions = ", ".join(f"{name} {machine[name]}" for name in PACKAGES if machine[name])
    policy = machine["omp_wait_policy"]
    waiting = "OMP_WAIT_POLICY not set" if policy is None else f"OMP_WAIT_POLICY={policy}"
    gpu = f"; {machine['gpu']}" if machine["gpu"] else ""
    return [
        f"{machine['cpu']} ({machine['instructions']}), {machine['threads']} threads on {machine['cores']} cores"
        f"{gpu}; {machine['system']}, {machine['date']}",
        f"Python {machine['python']}, {versions}; {waiting}",
    ]
