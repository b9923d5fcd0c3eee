"""`tinymusician generate` and `tinymusician compare`: play a prompt with one variant, or with several in turn."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from ..measure.bench import Measured, compare, measure
from ..records import SamplingSpec, check_prompt
from . import show

VARIANTS = "teacher,student,quantized"
MODEL_HELP = "teacher, student, quantized, a model folder, or a hub id such as facebook/musicgen-small"


def add_commands(commands) -> None:
    """Add `generate` and `compare` to the sub-commands."""
    one = commands.add_parser("generate", help="play a prompt and write a WAV file")
    one.add_argument("prompt", help="what to play, such as 'a calm piano waltz'")
    one.add_argument("--model", default="student", help=f"{MODEL_HELP} (default student)")
    one.add_argument("-o", "--output", help="the WAV file to write (default: named after the prompt, in this folder)")
    _add_sampling(one)
    one.set_defaults(run=run_generate)

    several = commands.add_parser("compare", help="play a prompt with several variants, figures side by side")
    several.add_argument("prompt", help="what to play")
    several.add_argument("--models", default=VARIANTS, help=f"with commas between (default {VARIANTS})")
    several.add_argument("--runs", default="3", help="how often to measure each; the figures are medians (default 3)")
    several.add_argument("-o", "--output", help="a folder for one WAV file a variant (default: none is written)")
    _add_sampling(several)
    several.set_defaults(run=run_compare)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    """The settings of `SamplingSpec`, as texts: the record itself says what is allowed."""
    parser.add_argument("--seconds", default="8", help="length of the clip, 0.5 to 30 (default 8)")
    parser.add_argument("--seed", default="7", help="the same seed, model and machine give the same file (default 7)")
    parser.add_argument("--cfg", default="3", help="how closely to follow the prompt; 1 turns guidance off (default 3)")
    parser.add_argument("--temperature", default="1", help="below 1 plays safer, above 1 bolder (default 1)")
    parser.add_argument("--top-k", default="250", help="draw from so many likeliest tokens; 0 allows all (default 250)")
    parser.add_argument("--top-p", default="0", help="draw from this share of probability; 0 allows all (default 0)")
    parser.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    parser.add_argument("--threads", default=None, help="CPU threads (default: torch decides)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def read_spec(options: argparse.Namespace) -> SamplingSpec:
    """The sampling settings of a command line; ValueError names the first that is not allowed."""
    names = ("seconds", "seed", "cfg", "temperature", "top_k", "top_p", "greedy")
    return SamplingSpec(**{name: getattr(options, name) for name in names})


def read_count(name: str, text: str | None) -> int | None:
    """A whole number of 1 or more, or None where nothing was given."""
    if text is not None and not (text.isdecimal() and int(text) >= 1):
        raise ValueError(f"{name} must be a whole number of 1 or more, got {text!r}")
    return None if text is None else int(text)


def wav_path(text: str | None, prompt: str, model: str, seed: int) -> Path:
    """Where a clip goes: what was asked for, or a name made of the prompt in this folder.

    Raises:
        ValueError: no .wav, a folder, or in a folder that is not there or cannot be written to.
    """
    if text is None:
        words = "-".join(re.findall(r"\w+", prompt.lower())[:6])[:60] or "clip"
        text = f"{words}-{_plain(model)}-{seed}.wav"
    path = Path(text).expanduser()
    if path.suffix.lower() != ".wav" or path.is_dir():
        raise ValueError(f"output must be a file that ends in .wav, got {text!r}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"output must lie in a folder that is there and can be written to, got {text!r}")
    return path


def _plain(name: str) -> str:
    """A model's name, or its folder's, as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", Path(name).name).strip("-.") or "model"


def run_generate(options: argparse.Namespace) -> int:
    """Play a prompt once, in a process of its own, and write the clip."""
    prompt, spec = check_prompt(options.prompt), read_spec(options)
    threads = read_count("threads", options.threads)
    path = wav_path(options.output, prompt, options.model, spec.seed)
    with show.bar() as bar:
        measured = measure(
            options.model,
            prompt,
            spec,
            runs=1,
            warm_up=False,
            on_progress=lambda step: bar.step(options.model, step),
            threads=threads,
        )
    measured.clip.save(path)
    if options.json:
        show.emit_json(
            {
                "model": options.model,
                "prompt": prompt,
                "seed": spec.seed,
                "seconds": measured.clip.seconds,
                "sample_rate_hz": measured.clip.sample_rate_hz,
                "path": str(path),
                "figures": measured.figures.as_dict(),
            }
        )
        return 0
    show.print_figures([(options.model, measured.figures)])
    print(f"wrote {path} ({measured.clip.seconds:.1f} s)")
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """Play a prompt with several variants, one after the other, each in a process of its own."""
    prompt, spec = check_prompt(options.prompt), read_spec(options)
    runs, threads = read_count("runs", options.runs), read_count("threads", options.threads)
    models = [name.strip() for name in options.models.split(",")]
    paths = _clip_paths(options.output, models)
    with show.bar() as bar:
        measured = compare(prompt, models, spec, runs=runs, on_progress=bar.step, threads=threads)
    for result, path in zip(measured, paths, strict=True):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            result.clip.save(path)
    if options.json:
        variants = [_record(*row) for row in zip(models, measured, paths, strict=True)]
        show.emit_json({"prompt": prompt, "seed": spec.seed, "seconds": spec.seconds, "variants": variants})
        return 0
    show.print_figures([(model, result.figures) for model, result in zip(models, measured, strict=True)])
    for path in filter(None, paths):
        print(f"wrote {path}")
    return 0


def _clip_paths(folder: str | None, models: list[str]) -> list[Path | None]:
    """One file a model in `folder`, or None each without a folder; ValueError for a folder that is a file."""
    if folder is None:
        return [None] * len(models)
    if Path(folder).expanduser().is_file():
        raise ValueError(f"output must be a folder, got the file {folder!r}")
    return [Path(folder).expanduser() / f"{number}-{_plain(name)}.wav" for number, name in enumerate(models, start=1)]


def _record(model: str, measured: Measured, path: Path | None) -> dict:
    """One entry of `variants`."""
    return {
        "model": model,
        "figures": measured.figures.as_dict(),
        "spread_s": list(measured.spread_s),
        "load_s": measured.load_s,
        "warm_up_s": measured.warm_up_s,
        "path": None if path is None else str(path),
    }
