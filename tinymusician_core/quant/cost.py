"""What a scheme costs on this machine, now: bytes, and microseconds a call for each shape. O outputs, I inputs.

A step reads all its weights once, so that a matrix measured by itself would lie in a cache as it never does in a step.
Here a shape is measured on as many copies, one after the other, as come to the bytes that a whole step reads under the
scheme, or to twice the largest cache. The best of many passes counts: what else the machine does only slows one down.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import nn

from .. import __version__
from ..engine.linear import StepLinear
from ..engine.loop import frames
from ..engine.products import bind, compiles
from ..engine.threads import step_threads
from ..measure.bandwidth import cache_bytes
from ..measure.machine import cpu_name
from ..onednn import Linear
from ..pipeline import Pipeline
from ..records import SamplingSpec
from ..text import EXAMPLE
from .cachefile import Measured
from .plan import packable
from .schemes import pack, stored_bytes

STEP_ROWS, TEXT_ROWS, CODEC_ROWS = 2, 12, 100  # guidance; a short prompt; about a second of the demo family's codec
LEAST_S, LEAST_PASSES = 0.12, 12
MOST_COPIES = 96
CACHE_BYTES = 2**25  # where the system does not tell
CLIPS, ENOUGH_S = 16, 6.0
WARM_UP_S = 0.5  # of music, before every clip
FRESH_S = 3600.0


@dataclass(frozen=True)
class Work:
    """A call: "step", "text" or "codec", the kind of module, its sizes, its rows, and the threads that it has."""

    stage: str
    kind: str
    outputs: int
    inputs: int
    bias: bool
    rows: int
    threads: int


@dataclass(frozen=True)
class Cost:
    """Of one call: its best time, the bytes of the tensors that go to disk, and whether it leaves a step's compiled
    code for a kernel of torch's."""

    call_s: float
    tensor_bytes: int
    leaves: bool


def works(pipeline: Pipeline) -> dict[str, Work]:
    """The call of every linear layer and embedding that generating makes, by module.

    The layers' attention to the text has the row of the prompt alone: guidance leaves the other out.
    """
    with step_threads(pipeline.decoder.config):
        step_threads_now = torch.get_num_threads()
    found = {}
    for name, module in packable(pipeline.modules).items():
        part = name.partition(".")[0]
        stage = "step" if part == "decoder" and not name.endswith((".cross_kv", ".prefix")) else part.split("_")[0]
        stage = "text" if stage == "decoder" else stage
        rows = {"step": STEP_ROWS, "text": TEXT_ROWS, "codec": CODEC_ROWS}[stage]
        if name.endswith((".cross_q", ".cross_out")):
            rows = 1
        threads = step_threads_now if stage == "step" else torch.get_num_threads()
        if isinstance(module, nn.Linear):
            sizes = (module.out_features, module.in_features, module.bias is not None)
            found[name] = Work(stage, "linear", *sizes, rows, threads)
        elif isinstance(module, nn.Embedding):
            found[name] = Work(stage, "embedding", module.num_embeddings, module.embedding_dim, False, rows, threads)
    return found


class CostTable:
    """Costs by call and scheme of the model whose shapes they are, measured when they are first asked for and kept in
    the cache folder; those of more than `FRESH_S` ago are measured anew: the machine may have been busier then."""

    def __init__(self, pipeline: Pipeline):
        self._works = works(pipeline)
        self._step_weights = sum(w.outputs * w.inputs for w in self._works.values() if _reads_all(w))
        self._cache = Measured(f"calls-{machine_hash()}")
        self._stale_s = time.time() - FRESH_S

    @property
    def counts(self) -> tuple[int, int]:
        """How many costs were measured, and how many of those that were asked for an earlier run had measured."""
        return self._cache.counts

    def stage(self, name: str) -> str | None:
        """The stage in which a module is called: "step", "text" or "codec"; None for what is neither."""
        return self._works[name].stage if name in self._works else None

    def call_s(self, name: str, scheme: str) -> float:
        """Seconds of one call of a module under a scheme; 0 for what runs in float32 whatever it is stored in."""
        work = self._works.get(name)
        return 0.0 if work is None else self.cost(work, scheme).call_s

    def leaves(self, name: str, scheme: str) -> bool:
        """Whether a module's call under a scheme leaves a step's compiled code."""
        return name in self._works and self.cost(self._works[name], scheme).leaves

    def cost(self, work: Work, scheme: str) -> Cost:
        """The cost of a call under a scheme; ValueError where the scheme cannot take it."""
        weights = self._step_weights if _reads_all(work) else work.outputs * work.inputs
        key = f"{scheme} {work} among {weights}"
        record = self._cache.get(key)
        if record is None or record.get("at_s", 0.0) < self._stale_s:
            cost = measure(work, scheme, weights)
            record = {"call_s": cost.call_s, "bytes": cost.tensor_bytes, "leaves": cost.leaves, "at_s": time.time()}
            self._cache.put(key, record)
        return Cost(record["call_s"], record["bytes"], record["leaves"])

    def table(self, schemes: list[str]) -> list[dict]:
        """A record for every distinct call and scheme: what it is, its bytes and its microseconds."""
        rows = []
        for work in dict.fromkeys(self._works.values()):
            for scheme in schemes:
                try:
                    cost = self.cost(work, scheme)
                except ValueError:
                    continue
                shape = [work.outputs, work.inputs]
                rows.append(
                    {"stage": work.stage, "kind": work.kind, "shape": shape, "rows": work.rows, "scheme": scheme}
                    | {"bytes": cost.tensor_bytes, "call_us": 1e6 * cost.call_s}
                )
        return rows


def _reads_all(work: Work) -> bool:
    return work.stage == "step" and work.kind == "linear"


def measure(work: Work, scheme: str, weights: int) -> Cost:
    """Measure a call among others that together read so many weights.

    Raises:
        ValueError: the scheme cannot take such a module.
    """
    module = _module(work)
    size = stored_bytes(module, scheme)
    wanted = min(weights * size / (work.outputs * work.inputs), 2 * (cache_bytes() or CACHE_BYTES))
    copies = max(1, min(MOST_COPIES, round(wanted / size)))
    before = torch.get_num_threads()
    torch.set_num_threads(work.threads)
    try:
        with torch.inference_mode():
            packed = [pack(_again(module), scheme) for _ in range(copies)]
            leaves = _reads_all(work) and not compiles(packed[0])
            return Cost(_best_pass([_call(work, each) for each in packed]) / copies, size, leaves)
    finally:
        torch.set_num_threads(before)


def _module(work: Work) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    if work.kind == "embedding":
        module: nn.Module = nn.Embedding(work.outputs, work.inputs)
    elif work.stage == "step":
        module = StepLinear(work.inputs, work.outputs)
    else:
        module = Linear(work.inputs, work.outputs, bias=work.bias)
    with torch.no_grad():
        module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * 0.02)
    return module.requires_grad_(False)


def _again(module: nn.Module) -> nn.Module:
    """Another module around weights of its own: schemes that keep a module as it is would share them."""
    other = type(module).__new__(type(module))
    nn.Module.__init__(other)
    other.__dict__.update({k: v for k, v in module.__dict__.items() if not k.startswith("_")})
    for name, tensor in module._parameters.items():
        other.register_parameter(name, None if tensor is None else nn.Parameter(tensor.clone(), requires_grad=False))
    return other


def _call(work: Work, module: nn.Module) -> Callable[[], object]:
    if work.kind == "embedding":
        tokens = torch.arange(work.rows) % work.outputs
        return lambda: module(tokens)
    x = torch.randn(work.rows, work.inputs)
    return bind(module, x, 1) if work.stage == "step" else lambda: module(x)


def _best_pass(calls: list[Callable[[], object]]) -> float:
    """Seconds of the quickest pass over all calls."""
    for call in calls:
        call()
    best, begin, passes = float("inf"), time.perf_counter(), 0
    while passes < LEAST_PASSES or time.perf_counter() - begin < LEAST_S:
        start = time.perf_counter()
        for call in calls:
            call()
        best = min(best, time.perf_counter() - start)
        passes += 1
    return best


def steps_in_turn(
    pipeline: Pipeline,
    versions: Mapping[str, Callable[[], AbstractContextManager]],
    clip_s: float,
    on_clip: Callable[[str, int, int], None] | None = None,
) -> list[float]:
    """Seconds a step of each version of a model, over clips of so many seconds: of every step the quickest of all
    clips.

    The versions take turns, clip by clip, so that what else the machine does meets all of them: their ratios are worth
    more than their times. Each plays `CLIPS` clips; two at least, and none more once any has played for `ENOUGH_S`.

    Args:
        pipeline: the model.
        versions: by name, what makes the model that version for as long as a block lasts.
        clip_s: seconds of a clip.
        on_clip: told before every clip: the version, and how many clips of how many at most are done.
    """
    count, few = (max(1, round(seconds * pipeline.frame_rate_hz)) for seconds in (clip_s, WARM_UP_S))
    states, mask = pipeline.text_encoder.encode([EXAMPLE])
    spec = pipeline.engine_spec(pipeline.settled(SamplingSpec()))
    best = {name: [float("inf")] * count for name in versions}
    spent = dict.fromkeys(versions, 0.0)
    for clip in range(CLIPS):
        if clip > 1 and max(spent.values()) > ENOUGH_S:
            break
        for turn, (name, version) in enumerate(versions.items()):
            if on_clip is not None:
                on_clip(name, clip * len(versions) + turn, CLIPS * len(versions))
            with version(), step_threads(pipeline.decoder.config):
                for _ in frames(pipeline.decoder, states, mask, spec, few, window=pipeline.window_frames):
                    pass
                begin = start = time.perf_counter()
                made = frames(pipeline.decoder, states, mask, spec, count, window=pipeline.window_frames)
                for i, _ in enumerate(made):
                    now = time.perf_counter()
                    best[name][i] = min(best[name][i], now - start)
                    start = now
                spent[name] += start - begin
    steps = count + max(pipeline.decoder.config.delays)
    return [sum(quickest) / steps for quickest in best.values()]


def machine_hash() -> str:
    """Tells machines, and the versions of what runs on them, from one another: 12 hexadecimal digits."""
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "numba", "numpy")]
    parts = [__version__, cpu_name(), str(os.cpu_count()), platform.system(), *versions]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
