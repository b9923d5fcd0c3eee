"""`python -m tinymusician_core.pretrain STAGE --work DIR`: one stage of the demo family's recipe."""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tinymusician_core.pretrain", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    for name, text in (
        ("scores", "read the tunes of the music21 corpus"),
        ("audio", "arrange and render them with FluidSynth"),
        ("codec", "train the spectral codec on the audio"),
        ("tokens", "encode the audio with the codec"),
    ):
        stage = stages.add_parser(name, help=text)
        stage.add_argument("--work", type=Path, required=True, help="the folder that holds everything the recipe makes")
        if name == "audio":
            stage.add_argument("--pieces", type=int, default=4000, help="how many pieces to render (default 4000, about a day of music)")
        if name == "codec":
            stage.add_argument("--minutes", type=float, default=60, help="training time over all resumed runs (default 60)")
        if name in ("codec", "tokens"):
            stage.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    args = parser.parse_args()
    if args.stage == "scores":
        from tinymusician_core.pretrain.scores import build_scores

        print(build_scores(args.work))
    elif args.stage == "audio":
        from tinymusician_core.pretrain.render import build_audio

        build_audio(args.work, args.pieces)
    elif args.stage == "codec":
        from tinymusician_core.pretrain.codec import train_codec

        train_codec(args.work, args.minutes, device=args.device)
    elif args.stage == "tokens":
        from tinymusician_core.pretrain.encode import build_tokens

        build_tokens(args.work, args.device)


if __name__ == "__main__":
    main()
