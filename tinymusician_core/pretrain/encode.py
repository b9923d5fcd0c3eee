"""Rendered pieces -> codec tokens with captions, a split a file."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import torch

from tinymusician_core.codec.spectral import SpectralCodec
from tinymusician_core.pretrain.captions import captions
from tinymusician_core.pretrain.render import read_audio, read_pieces
from tinymusician_core.tokens import SPLITS, write_tokens


def build_tokens(work: Path, device: str = "cpu") -> None:
    """Encode every piece of `work` with its trained codec and write `work/tokens`."""
    codec = SpectralCodec.from_folder(work / "codec" / "model")
    codec.encoder.to(device)
    codec.to(device)
    pieces = read_pieces(work)
    began, done = time.monotonic(), 0
    for split in SPLITS:
        chosen = [p for p in pieces if p.split == split]
        clips, records = [], []
        for piece in chosen:
            audio = torch.from_numpy(read_audio(work, piece))[None, None].to(device)
            clips.append(codec.encode(audio)[0].cpu())
            records.append(
                {
                    "id": piece.id,
                    "captions": captions(piece.facts, piece.id),
                    "bars": list(piece.bars),
                    "facts": asdict(piece.facts),
                }
            )
            done += 1
            if done % 100 == 0:
                spent = time.monotonic() - began
                print(
                    f"tokens: {done}/{len(pieces)} pieces, {spent / done * (len(pieces) - done):.0f} s to go",
                    flush=True,
                )
        write_tokens(work / "tokens", split, clips, records)
