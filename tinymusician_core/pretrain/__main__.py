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
        ("teacher", "train the text encoder and the language model on the tokens"),
        ("figures", "print what codec and teacher reach on unseen tunes"),
        ("publish", "write codec, text encoder and teacher into assets"),
        ("manifest", "write assets/MANIFEST.json"),
    ):
        stage = stages.add_parser(name, help=text)
        if name != "manifest":
            stage.add_argument(
                "--work", type=Path, required=True, help="the folder that holds everything the recipe makes"
            )
        if name in ("publish", "manifest"):
            stage.add_argument("--assets", type=Path, default=Path("assets"), help="default assets")
        if name == "audio":
            stage.add_argument(
                "--pieces",
                type=int,
                default=4000,
                help="how many pieces to render (default 4000, about a day of music)",
            )
        if name == "codec":
            stage.add_argument(
                "--minutes", type=float, default=60, help="training time over all resumed runs (default 60)"
            )
        if name == "teacher":
            stage.add_argument(
                "--minutes", type=float, default=600, help="training time over all resumed runs (default 600)"
            )
            stage.add_argument(
                "--window", type=float, default=10, help="seconds of music a training window (default 10)"
            )
            stage.add_argument("--batch", type=int, default=12, help="windows a step (default 12)")
        if name in ("codec", "tokens", "teacher"):
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
    elif args.stage == "teacher":
        from tinymusician_core.pretrain.teacher import train_teacher

        train_teacher(args.work, args.minutes, args.window, args.batch, device=args.device)
    elif args.stage == "figures":
        from tinymusician_core.pretrain.figures import print_figures

        print_figures(args.work)
    elif args.stage == "publish":
        from tinymusician_core.pretrain.publish import publish_teacher

        publish_teacher(args.work, args.assets)
    elif args.stage == "manifest":
        from tinymusician_core.pretrain.publish import write_manifest

        print(write_manifest(args.assets))


if __name__ == "__main__":
    main()
