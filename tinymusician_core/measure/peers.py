"""Other programs that run MusicGen beside ours: the same random weights, prompt and seed, in one run on one machine.

Each row is measured in a fresh process (peer_process.py), one at a time, after a warm-up that does not count, and all
of them in the same environment. The memory's bandwidth is measured before the first row and after the last.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

from ..records import Figures, SamplingSpec
from ..worker import child_environment
from .bench import check_runs
from .timing import runs_from, summarise

REFERENCE = "transformers fp32"
GREEDY_FRAMES = 8
OnStage = Callable[[str, str, int, int | None], None]  # a row, what it is doing, how far, of how much


class PeerFailed(RuntimeError):
    """The process of a row ended before it had measured anything; the message is one sentence."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a MusicGen: its decoder, its T5 (base, but for the tiny one) and its EnCodec for 32 kHz.

    `decoder`, `text` and `codec` are settings of transformers' MusicgenDecoderConfig, T5Config and EncodecConfig.
    """

    layers: int
    student_layers: int
    decoder: dict[str, int]
    text: dict[str, int]
    codec: dict[str, int]


def _shape(layers: int, student: int, width: int, heads: int, ffn: int, entries: int, text: tuple, codec: tuple):
    text_names = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    decoder = {"hidden_size": width, "num_attention_heads": heads, "ffn_dim": ffn, "vocab_size": entries}
    return Shape(
        layers,
        student,
        decoder,
        dict(zip(text_names, text, strict=True)),
        dict(zip(("hidden_size", "num_filters"), codec, strict=True)),
    )


_T5_BASE = (768, 64, 3072, 12, 12)
SHAPES = {
    "small": _shape(24, 8, 1024, 16, 4096, 2048, _T5_BASE, (128, 64)),
    "medium": _shape(48, 16, 1536, 24, 6144, 2048, _T5_BASE, (128, 64)),
    "tiny": _shape(2, 1, 64, 2, 256, 256, (32, 16, 64, 1, 2), (8, 2)),
}


@dataclass(frozen=True)
class Row:
    """One way to run the model: by `engine`, with the decoder and the text encoder in `scheme`; a student or not."""

    name: str
    engine: str
    scheme: str
    student: bool = False


ROWS = (
    Row(REFERENCE, "transformers", "fp32"),
    Row("transformers bf16", "transformers", "bf16"),
    Row("AudioCraft fp32", "audiocraft", "fp32"),
    Row("ours fp32", "ours", "fp32"),
    Row("ours bf16", "ours", "bf16"),
    Row("ours fp16", "ours", "fp16"),
    Row("ours int8", "ours", "fast"),
    Row("ours int4", "ours", "int4"),
    Row("ours int8 student", "ours", "fast", student=True),
)


@dataclass(frozen=True)
class Setting:
    """What all rows have in common.

    Attributes:
        shape: a name in SHAPES.
        layers, student_layers: of the decoder; None for those of the shape.
        seconds: of music in each run.
        runs: how many count; figures are medians.
        seed: of the weights and of the draws.
        threads: CPU threads; None leaves the choice to torch.
        rows: the names of those to measure, in this order.

    Raises:
        ValueError: a shape or row that there is not, or a number out of range.
    """

    shape: str = "small"
    layers: int | None = None
    student_layers: int | None = None
    seconds: float = 10.0
    runs: int = 1
    seed: int = 7
    threads: int | None = None
    rows: tuple[str, ...] = field(default_factory=lambda: tuple(row.name for row in ROWS))

    def __post_init__(self):
        if self.shape not in SHAPES:
            raise ValueError(f"no such shape: {self.shape!r}; allowed: {', '.join(SHAPES)}")
        for name in ("layers", "student_layers"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(SHAPES[self.shape], name))
            if not 1 <= getattr(self, name) <= 100:
                raise ValueError(f"{name} must be a whole number from 1 to 100, got {getattr(self, name)}")
        object.__setattr__(self, "seconds", SamplingSpec(seconds=self.seconds).seconds)
        if self.seconds > 25:
            raise ValueError(f"seconds must be 25 or less, for all peers to play it in one go, got {self.seconds:g}")
        check_runs(self.runs)
        known = [row.name for row in ROWS]
        unknown = [name for name in self.rows if name not in known]
        if unknown or not self.rows or len(set(self.rows)) != len(self.rows):
            raise ValueError(f"rows must be some of {', '.join(known)}, each once, got {', '.join(self.rows)!r}")


@dataclass(frozen=True)
class Peer:
    """What was measured of a row; `skipped` says why nothing was.

    Attributes:
        codec_ms_per_s: milliseconds of decoding for each second of sound.
        step_bytes: what a step has to read: the weights of qkv, out, cross_q, cross_out, fc1, fc2 and heads.
        gb_per_s: these bytes over the time of a step.
        bandwidth_share: that over the bandwidth measured in the same run; None where all of it fits into a cache.
        x_reference: how many times as fast a step is as transformers' in float32, in the same run.
        same_tokens: whether the first greedy tokens are those of transformers in float32; None where not compared.
    """

    row: Row
    layers: int
    figures: Figures = field(default_factory=Figures)
    codec_ms_per_s: float | None = None
    step_bytes: int | None = None
    gb_per_s: float | None = None
    bandwidth_share: float | None = None
    x_reference: float | None = None
    same_tokens: bool | None = None
    skipped: str | None = None

    def as_dict(self) -> dict:
        """An entry of `variants` in the JSON contract."""
        more = asdict(self)
        row, figures = more.pop("row"), self.figures.as_dict()
        more["spread"] = more.pop("figures")["spread"]
        more[f"x_{REFERENCE.replace(' ', '_')}"] = more.pop("x_reference")
        return {"model": row["name"], "engine": row["engine"], "scheme": row["scheme"], "figures": figures, **more}


@dataclass(frozen=True)
class Peers:
    """All rows of a run, the bandwidth in bytes a second, and the machine and the programs that they ran on.

    `command` is the command line that asked for it; None where there was none.
    """

    setting: Setting
    peers: tuple[Peer, ...]
    bandwidth: float
    machine: dict
    command: str | None = None

    def as_dict(self) -> dict:
        """The JSON object of `bench --peers`."""
        setting = asdict(self.setting)
        setting["rows"] = list(setting["rows"])
        return {
            "command": self.command,
            "setting": setting,
            "machine": self.machine,
            "bandwidth_gb_per_s": self.bandwidth / 1e9,
            "variants": [peer.as_dict() for peer in self.peers],
        }


def measure_peers(setting: Setting, on_stage: OnStage | None = None, command: str | None = None) -> Peers:
    """Measure every row of a setting; AudioCraft's is skipped, with the reason, where it is not installed.

    `command` is the command line that asks for this, for the report.

    Raises:
        PeerFailed: the process of a row ended by itself.
    """
    tell = on_stage or (lambda *_: None)
    chosen = [row for name in setting.rows for row in ROWS if row.name == name]
    before = _ask("bandwidth", {}, setting.threads, tell)
    found = {row.name: _measure(row, setting, tell) for row in chosen}
    after = _ask("bandwidth", {}, setting.threads, tell)
    bandwidth = max(before["bandwidth"], after["bandwidth"])
    reference = found.get(REFERENCE)
    peers = [_peer(row, setting, found[row.name], reference, bandwidth, before["cache_bytes"]) for row in chosen]
    return Peers(setting, tuple(peers), bandwidth, before["machine"], command)


def _measure(row: Row, setting: Setting, tell: OnStage) -> dict:
    if row.engine == "audiocraft" and importlib.util.find_spec("audiocraft") is None:
        return {"skipped": "AudioCraft is not installed; python launch.py --with audiocraft installs it"}
    order = {"row": asdict(row), "layers": _layers(row, setting), "frames": GREEDY_FRAMES}
    order |= {name: getattr(setting, name) for name in ("shape", "seconds", "runs", "seed")}
    return _ask(row.name, order, setting.threads, tell)


def _layers(row: Row, setting: Setting) -> int:
    return setting.student_layers if row.student else setting.layers


def _peer(row: Row, setting: Setting, found: dict, reference: dict | None, bandwidth: float, cache: int | None) -> Peer:
    layers = _layers(row, setting)
    if "skipped" in found:
        return Peer(row, layers, skipped=found["skipped"])
    runs = runs_from(found["runs"])
    figures = Figures(**summarise(runs), threads=found["threads"], device="cpu", processes=1)
    per_s = found["step_bytes"] / (figures.ms_per_step / 1000)
    from_memory = cache is None or found["step_bytes"] > cache
    compared = row.scheme == "fp32" and not row.student and reference is not None and row.name != REFERENCE
    return Peer(
        row,
        layers,
        figures,
        codec_ms_per_s=figures.stages_ms["codec"] / runs[-1].made_s,
        step_bytes=found["step_bytes"],
        gb_per_s=per_s / 1e9,
        bandwidth_share=per_s / bandwidth if from_memory else None,
        x_reference=None if reference is None else _step_ms(reference) / figures.ms_per_step,
        same_tokens=found["tokens"] == reference["tokens"] if compared else None,
    )


def _step_ms(found: dict) -> float:
    return summarise(runs_from(found["runs"]))["ms_per_step"]


def _ask(name: str, order: dict, threads: int | None, tell: OnStage) -> dict:
    """Have a fresh process carry out an order; what it found."""
    command = [sys.executable, "-m", "tinymusician_core.measure.peer_process", json.dumps(order)]
    tell(name, "starting", 0, None)
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=child_environment(threads),
            text=True,
        ) as process,
    ):
        try:
            for answer in _answers(process.stdout):
                if "found" in answer:
                    return answer["found"]
                tell(name, answer["stage"], answer["done"], answer["total"])
            code = process.wait()
        finally:
            process.kill()
        stderr.seek(0)
        lines = [line.strip() for line in stderr if line.strip()]
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    raise PeerFailed(f"the process of {name} {how} ({lines[-1] if lines else 'no reason given'})")


def _answers(lines: Sequence[str]) -> Iterator[dict]:
    for line in lines:
        yield json.loads(line)
