"""Look over the machine and the installation: what is there, what is missing, and what to do about it.

Every package is imported in a process of its own, so that a broken one (a torchaudio beside the wrong torch, say) is
one line of the report.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from .files import sha256_of

PACKAGES = ("torch", "torchaudio", "numba", "transformers", "gradio", "bitsandbytes")
IMPORT_LIMIT_S = 120
LITTLE_DISK_BYTES = 2 * 10**9
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm")
_TORCH = """
import json, torch
gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
kernels = torch.backends.cpu.get_cpu_capability()
names = [torch.cuda.get_device_name(gpu) for gpu in gpus]
print(json.dumps({"threads": torch.get_num_threads(), "kernels": kernels, "gpus": names}))
"""


@dataclass(frozen=True)
class Check:
    """One line of the report: `status` is "ok", "warn" (something does less) or "fail" (something does not work)."""

    name: str
    status: str
    found: str
    hint: str = ""

    def as_dict(self) -> dict:
        """Every field by name, ready for JSON."""
        return asdict(self)


def check_python() -> Check:
    """The interpreter's version."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        return Check("python", "fail", platform.python_version(), "3.10 to 3.13 are supported")
    return Check("python", "ok", platform.python_version())


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")


def _run_python(code: str) -> tuple[bool, str]:
    """Run Python code in a process of its own: whether it went well, and the last line of its output or complaint."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=IMPORT_LIMIT_S)
    except subprocess.TimeoutExpired:
        return False, f"no answer within {IMPORT_LIMIT_S} s"
    return done.returncode == 0, _last_line(done.stdout if done.returncode == 0 else done.stderr)


def check_package(name: str) -> Check:
    """Whether a package can be imported, and its version."""
    good, line = _run_python(f"import {name}; print({name}.__version__)")
    return Check(name, "ok", line) if good else Check(name, "fail", line, "install it again, as python launch.py does")


def check_processor() -> Iterator[Check]:
    """Cores, threads, the vector instructions that matter for speed, and GPUs."""
    good, line = _run_python(_TORCH)
    known = json.loads(line) if good else {"threads": "?", "kernels": "unknown", "gpus": []}
    features = ", ".join(_cpu_features()) or platform.machine()
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
    found = f"{cores} cores, {known['threads']} threads for torch, {known['kernels']} kernels ({features})"
    yield Check("cpu", "ok" if good else "warn", found)
    yield Check("cuda", "ok", ", ".join(known["gpus"]) or "none, everything runs on the CPU")


def _cpu_features() -> list[str]:
    """The instruction sets of /proc/cpuinfo that matter here; none where there is no such file."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line.split(":")[1].split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    return [feature for feature in _FEATURES if feature in flags]


def check_memory() -> Check:
    """Main memory that is free."""
    memory = psutil.virtual_memory()
    return Check("memory", "ok", f"{memory.available / 1e9:.1f} GB of {memory.total / 1e9:.1f} GB free")


def check_disk(folder: Path) -> Check:
    """Free space where clips are kept, or in the nearest folder above that is there already."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:.1f} GB free for {folder}"
    return Check("disk", "ok", found) if free >= LITTLE_DISK_BYTES else Check("disk", "warn", found, "that is little")


def check_ffmpeg() -> Check:
    """ffmpeg, for MP3 and other compressed files."""
    path = shutil.which("ffmpeg")
    if path is None:
        return Check("ffmpeg", "warn", "not found", "WAV works without it; MP3 needs it")
    return Check("ffmpeg", "ok", path)


def check_assets(folder: Path) -> Check:
    """Whether every file that the manifest lists is there and unchanged, and each model of the family with it."""
    manifest = folder / "MANIFEST.json"
    hint = "get them again: git checkout -- assets"
    try:
        listed = {entry["path"]: entry["sha256"] for entry in json.loads(manifest.read_text(encoding="utf-8"))["files"]}
    except FileNotFoundError:
        return Check("assets", "fail", f"no manifest at {manifest}", hint)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Check("assets", "fail", f"{manifest} cannot be read ({type(error).__name__})", hint)
    missing = [name for name in listed if not (folder / name).is_file()]
    changed = [name for name in listed if name not in missing and sha256_of(folder / name) != listed[name]]
    if missing or changed:
        lists = {"missing": missing, "changed": changed}
        found = "; ".join(f"{word}: {', '.join(names)}" for word, names in lists.items() if names)
        return Check("assets", "fail", found, hint)
    return Check("assets", "ok", f"{len(listed)} files in {folder} are as the manifest says")


def assets_folder() -> Path:
    """The demo family's folder, as `variants.assets_folder` finds it, without importing torch, which may be broken."""
    return Path(os.environ.get("TINYMUSICIAN_ASSETS") or Path(__file__).resolve().parents[1] / "assets")


def output_folder() -> Path:
    """Where clips are kept: ~/TinyMusician, or what the environment variable TINYMUSICIAN_HOME says."""
    return Path(os.environ.get("TINYMUSICIAN_HOME") or Path.home() / "TinyMusician").expanduser()


def examine(on_progress: Callable[[str, int, int], None] | None = None) -> list[Check]:
    """Every check, in the order of the report; `on_progress` is told the next, how many are done, and of how many."""
    steps: list[tuple[str, Callable[[], list[Check]]]] = [("python", lambda: [check_python()])]
    steps += [(name, lambda name=name: [check_package(name)]) for name in PACKAGES]
    steps += [
        ("processor", lambda: list(check_processor())),
        ("memory", lambda: [check_memory()]),
        ("disk", lambda: [check_disk(output_folder())]),
        ("ffmpeg", lambda: [check_ffmpeg()]),
        ("assets", lambda: [check_assets(assets_folder())]),
    ]
    checks = []
    for number, (name, step) in enumerate(steps):
        if on_progress is not None:
            on_progress(name, number, len(steps))
        checks += step()
    return checks
