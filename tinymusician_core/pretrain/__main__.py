"""`python -m tinymusician_core.pretrain STAGE --work DIR`: one stage of the demo family's recipe.

A stage is a function below: its first line is its help, its keyword parameters are its options.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path


def shard(text: str) -> tuple[int, int]:
    """`i/n`, as an option of the command line."""
    from tinymusician_core.pretrain.pieces import parse_shard

    try:
        return parse_shard(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def split(text: str) -> str:
    """The name of a split, as an option of the command line."""
    from tinymusician_core.tokens import SPLITS

    if text not in SPLITS:
        raise argparse.ArgumentTypeError(f"unknown split {text!r}; allowed are {', '.join(SPLITS)}")
    return text


OPTIONS = {
    "work": {"type": Path, "required": True, "help": "the folder that holds everything the recipe makes"},
    "student": {"type": Path, "required": True, "help": "the folder that tinymusician distill made"},
    "quantized": {"type": Path, "required": True, "help": "the folder that tinymusician quantize made"},
    "assets": {"type": Path, "default": Path("assets"), "help": "default assets"},
    "device": {"default": "cpu", "help": "cpu or cuda (default cpu)"},
    "minutes": {"type": float, "help": "training time over all resumed runs (default %(default)g)"},
    "hours": {"type": float, "help": "hours of music in all (default %(default)g)"},
    "shard": {"type": shard, "metavar": "I/N", "help": "do the I-th of N parts (default: all)"},
    "splits": {
        "type": split,
        "nargs": "+",
        "metavar": "SPLIT",
        "help": "train, validation or test, or two of them: a listener is measured on test alone (default: all)",
    },
    "processes": {"type": int, "help": "pieces that are made at once (default %(default)d)"},
    "learning_rate": {"type": float, "help": "after the warm-up (default %(default)g)"},
    "start_from": {
        "type": Path,
        "help": "an earlier teacher, in training or published, whose vocabulary may be smaller, or the model of an "
        "earlier codec or listener",
    },
    "pieces": {"type": int, "help": "of the training split, from the first (default %(default)d)"},
    "judged_from": {
        "type": float,
        "help": "the share of the minutes after which the discriminators take part; 1 for never (default %(default)g)",
    },
    "unheard": {
        "action": "store_true",
        "help": "pieces that have not been rendered are welcome: they become tokens of their notes alone",
    },
    "patience": {"type": int, "help": "end after so many validations on end without progress (default: go on)"},
    "batch": {"type": int, "help": "windows a step (default %(default)d)"},
    "codebook_weights": {
        "type": float,
        "nargs": "+",
        "metavar": "WEIGHT",
        "help": "how much each counts (default: by what a listener loses with it)",
    },
    "probes": {
        "choices": ("teach", "look"),
        "help": "whether the teacher learns from the probes that ask it what is true of a piece (default: teach, but "
        "look where they are new to a teacher that started from an earlier one)",
    },
}


def scores(work: Path) -> None:
    """Read the tunes of the music21 corpus."""
    from tinymusician_core.pretrain.scores import build_scores

    print(build_scores(work))


def audio(
    work: Path,
    hours: float = 66,
    shard: tuple[int, int] = (1, 1),
    processes: int = 2,
    splits: list[str] | None = None,
) -> None:
    """Arrange them and render them with FluidSynth."""
    from tinymusician_core.pretrain.render import build_audio

    build_audio(work, hours, shard, processes, splits)


def codec(work: Path, minutes: float = 60, start_from: Path | None = None, device: str = "cpu") -> None:
    """Train the spectral codec on the audio."""
    from tinymusician_core.pretrain.codec import train_codec

    train_codec(work, minutes, device=device, start_from=start_from)


def polish(
    work: Path,
    minutes: float = 300,
    learning_rate: float = 1e-3,
    pieces: int = 1000,
    judged_from: float = 0.2,
    device: str = "cpu",
) -> None:
    """Train the codec's decoder on against discriminators; codes keep their meaning."""
    from tinymusician_core.pretrain.polish import polish_codec

    polish_codec(work, minutes, learning_rate, pieces, judged_from, device=device)


def hear(work: Path, minutes: float = 15, device: str = "cpu") -> None:
    """Train the ear for notes of the codec on, once it is polished; codes keep their meaning."""
    from tinymusician_core.pretrain.hear import train_ear

    train_ear(work, minutes, device=device)


def notes(work: Path) -> None:
    """Write the notes alone as tokens, which a teacher can begin with before there is any audio."""
    from tinymusician_core.pretrain.encode import write_notes

    write_notes(work)


def tokens(work: Path, shard: tuple[int, int] = (1, 1), unheard: bool = False, device: str = "cpu") -> None:
    """Encode the audio with the codec."""
    from tinymusician_core.pretrain.encode import build_tokens

    build_tokens(work, shard, unheard, device)


def teacher(
    work: Path,
    minutes: float = 600,
    batch: int = 12,
    learning_rate: float = 1.5e-3,
    start_from: Path | None = None,
    patience: int | None = None,
    codebook_weights: list[float] | None = None,
    probes: str | None = None,
    device: str = "cpu",
) -> None:
    """Train the text encoder and the language model on the tokens."""
    from tinymusician_core.pretrain.teacher import train_teacher

    train_teacher(work, minutes, batch, learning_rate, device, start_from, patience, codebook_weights, probes)


def listener(work: Path, minutes: float = 60, learning_rate: float = 2e-3, start_from: Path | None = None) -> None:
    """Train the listener that evaluation judges with on the audio."""
    from tinymusician_core.pretrain.listener import train_listener

    train_listener(work, minutes, learning_rate=learning_rate, start_from=start_from)


def figures(work: Path) -> None:
    """Print what codec and teacher reach on unseen tunes."""
    from tinymusician_core.pretrain.figures import print_figures

    print_figures(work)


def publish(work: Path, assets: Path) -> None:
    """Write codec, text encoder and teacher into assets."""
    from tinymusician_core.pretrain.publish import publish_teacher

    publish_teacher(work, assets)


def publish_codec(work: Path, assets: Path) -> None:
    """Put a codec whose training went on into assets, beside the teacher and the student that are there."""
    from tinymusician_core.pretrain.publish import publish_codec

    publish_codec(work, assets)


def publish_student(student: Path, assets: Path) -> None:
    """Write a distilled student into assets."""
    from tinymusician_core.pretrain.publish import publish_student

    publish_student(student, assets)


def publish_quantized(quantized: Path, assets: Path) -> None:
    """Put a quantized student into assets."""
    from tinymusician_core.pretrain.publish import publish_quantized

    publish_quantized(quantized, assets)


def publish_listener(work: Path, assets: Path) -> None:
    """Measure the listener on unseen tunes and write it into assets."""
    from tinymusician_core.pretrain.listener import publish_listener

    publish_listener(work, assets)


def held_out(work: Path, assets: Path) -> None:
    """Judge music of the test tunes and write what variants are measured against into assets."""
    from tinymusician_core.pretrain.held_out import build_held_out

    print(build_held_out(work, assets))


def manifest(assets: Path) -> None:
    """Write assets/MANIFEST.json."""
    from tinymusician_core.pretrain.publish import write_manifest

    print(write_manifest(assets))


STAGES = (
    scores,
    audio,
    notes,
    codec,
    polish,
    hear,
    tokens,
    teacher,
    listener,
    figures,
    publish,
    publish_codec,
    publish_student,
    publish_quantized,
    publish_listener,
    held_out,
    manifest,
)


def build_parser() -> argparse.ArgumentParser:
    """One sub-command a stage, in the order of the recipe."""
    parser = argparse.ArgumentParser(prog="python -m tinymusician_core.pretrain", description=__doc__.split("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    for run in STAGES:
        stage = stages.add_parser(
            run.__name__.replace("_", "-"), help=run.__doc__[0].lower() + run.__doc__[1:].rstrip(".")
        )
        for name, parameter in inspect.signature(run).parameters.items():
            given = {} if parameter.default is parameter.empty else {"default": parameter.default}
            stage.add_argument(f"--{name.replace('_', '-')}", **OPTIONS[name] | given)
        stage.set_defaults(run=run)
    return parser


def main() -> None:
    options = vars(build_parser().parse_args())
    run = options.pop("run")
    del options["stage"]
    run(**options)


if __name__ == "__main__":
    main()
