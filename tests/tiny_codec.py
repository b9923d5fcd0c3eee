"""A codec of very few numbers, untrained, and a work folder that it could be trained in."""

import json
from dataclasses import asdict

import numpy as np
import soundfile
import torch

from tinymusician_core.codec.spectral import SpectralCodec, SpectralConfig, SpectralEncoder
from tinymusician_core.pretrain.arrange import LEAD, Facts, Note, Piece, Track

FRAME = 1280


def small_codec():
    """A codec, and its encoder."""
    torch.manual_seed(0)
    sizes = {"encoder_dim": 16, "decoder_dim": 16, "encoder_blocks": 1, "decoder_blocks": 1}
    config = SpectralConfig(
        codebook_size=512, score_dim=4, harmony_dim=4, players_dim=4, latent_dim=6, note_ages=8, note_blocks=1, **sizes
    )
    return SpectralCodec(config), SpectralEncoder(config)


def sound(frames, seed=0, batch=2):
    return 0.1 * torch.randn(batch, 1, frames * FRAME, generator=torch.Generator().manual_seed(seed))


def work_folder(folder):
    """Fill a folder with such a codec and two pieces of tones."""
    codec, encoder = small_codec()
    codec.save(folder / "codec" / "model", encoder)
    (folder / "audio").mkdir()
    facts = Facts("flute", "air", "3/4", "slow", 60, 0, "major", "solo", "", "middle")
    lines = []
    for number, split in enumerate(("train", "validation")):
        track = Track(LEAD, 73, (Note(0, 20, 72, 70),))
        piece = Piece(f"p{number}", f"t{number}", split, 160, (0, 80), (track,), facts)
        wave = 0.2 * np.sin(np.arange(160 * FRAME) * (0.05 + 0.01 * number))
        soundfile.write(folder / "audio" / f"{piece.id}.flac", wave, 32000)
        lines.append(json.dumps(asdict(piece)))
    (folder / "pieces.jsonl").write_text("\n".join(lines) + "\n")
    return folder
