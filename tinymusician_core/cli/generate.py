"""`tinymusician generate`: play a prompt with one variant and write a WAV, a loop, or the continuation of a sound."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..audio import check_readable, clip_tags, write_wav
from ..looping import LoopLength, loop_length, make_loop
from ..measure.bench import Measured, StoppedMeasuring, measure
from ..records import SamplingSpec, Waveform, check_prompt
from . import show
from .sampling import MODEL_HELP, add_sampling, plain, read_count, read_spec
from .stopping import stop_on_ctrl_c


def add_commands(commands) -> None:
    """Add `generate` to the sub-commands."""
    parser = commands.add_parser("generate", help="play a prompt and write a WAV file")
    parser.add_argument("prompt", help="what to play, such as 'a calm piano waltz'")
    parser.add_argument("--model", default="student", help=f"{MODEL_HELP} (default student)")
    parser.add_argument("-o", "--output", help="the WAV to write (default: named after the prompt, in this folder)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--continue", dest="given", metavar="FILE", help="a sound file; --seconds of new music follow it")
    kind.add_argument("--loop", action="store_true", help="make a WAV that repeats without a seam")
    parser.add_argument("--bpm", help="with --loop: the tempo; the loop gets a whole number of bars of 4 beats")
    add_sampling(parser)
    parser.set_defaults(run=run_generate)


@dataclass(frozen=True)
class Order:
    """What a command line asks for: `loop` or `given`, the sound to go on from, or neither."""

    model: str
    prompt: str
    spec: SamplingSpec
    path: Path
    threads: int | None
    loop: LoopLength | None
    given: str | None


def read_order(options: argparse.Namespace) -> Order:
    """The order of a command line; ValueError names the first argument that is not allowed."""
    prompt, spec = check_prompt(options.prompt), read_spec(options)
    threads, loop = read_count("threads", options.threads), None
    if options.loop:
        loop = loop_length(spec.seconds, options.bpm)
        spec = replace(spec, seconds=loop.seconds + loop.tail_s)
    elif options.bpm is not None:
        raise ValueError("bpm is for loops only; --loop makes one")
    if options.given is not None:
        check_readable(options.given)
    path = wav_path(options.output, prompt, options.model, spec.seed)
    return Order(options.model, prompt, spec, path, threads, loop, options.given)


def wav_path(text: str | None, prompt: str, model: str, seed: int) -> Path:
    """Where a clip goes: what was asked for, or a name made of the prompt in this folder.

    Raises:
        ValueError: no .wav, a folder, or in a folder that is not there or cannot be written to.
    """
    if text is None:
        words = "-".join(re.findall(r"\w+", prompt.lower())[:6])[:60] or "clip"
        text = f"{words}-{plain(model)}-{seed}.wav"
    path = Path(text).expanduser()
    if path.suffix.lower() != ".wav" or path.is_dir():
        raise ValueError(f"output must be a file that ends in .wav, got {text!r}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"output must lie in a folder that is there and can be written to, got {text!r}")
    return path


def run_generate(options: argparse.Namespace) -> int:
    """Play a prompt once, in a process of its own, and write the clip; after Ctrl-C what was made until then."""
    order = read_order(options)
    with show.bar() as bar, stop_on_ctrl_c() as should_stop:
        measured, stopped = play(order, bar, should_stop)
        if stopped:
            order = replace(order, loop=None)
        sound = write(order, measured)
    if options.json:
        show.emit_json(_record(order, measured, sound, options.loop, stopped))
    elif stopped:
        print(f"stopped after {measured.made_s:.1f} s{', too soon for a loop' * options.loop}; wrote {order.path}")
    else:
        show.print_figures([(order.model, measured.figures)])
        print(f"wrote {order.path} ({sound.seconds:.1f} s{_loop_words(order.loop)})")
    return 130 if stopped else 0


def play(order: Order, bar: show.Bar, should_stop: Callable[[], bool]) -> tuple[Measured, bool]:
    """What was made, and whether it was stopped early; Cancelled where nothing was made by then."""
    try:
        measured = measure(
            order.model,
            order.prompt,
            order.spec,
            runs=1,
            warm_up=False,
            on_progress=lambda step: bar.step(order.model, step),
            should_stop=should_stop,
            threads=order.threads,
            continue_from=order.given,
        )
    except StoppedMeasuring as stopped:
        return stopped.measured, True
    return measured, False


def write(order: Order, measured: Measured) -> Waveform:
    """Write the WAV, and return the sound that is in it."""
    clip, more = measured.clip, {}
    sound = clip.waveform
    if order.loop is not None:
        sound = make_loop(sound, order.loop.seconds)
        more["loop"] = asdict(order.loop)
    if order.given is not None:
        more["continues"] = Path(order.given).name
    write_wav(order.path, sound, clip_tags(clip, **more))
    return sound


def _record(order: Order, measured: Measured, sound: Waveform, wants_loop: bool, stopped: bool) -> dict:
    """The JSON object; "loop" is there where one was asked for, null when stopped too soon, "stopped" where it was."""
    record = {
        "model": order.model,
        "prompt": order.prompt,
        "seed": order.spec.seed,
        "seconds": sound.seconds,
        "sample_rate_hz": sound.sample_rate_hz,
        "path": str(order.path),
        "figures": measured.figures.as_dict(),
    }
    if wants_loop:
        record["loop"] = None if order.loop is None else asdict(order.loop)
    return record | {"stopped": True} if stopped else record


def _loop_words(loop: LoopLength | None) -> str:
    if loop is None:
        return ""
    if loop.beats is None:
        return ", a loop"
    count, unit = (loop.beats, "beat") if loop.bars is None else (loop.bars, "bar")
    return f", a loop of {count} {unit}{'s' * (count != 1)}"
