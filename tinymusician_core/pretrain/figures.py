"""What the trained parts reach on tunes that they have not seen: the figures of the model card."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tinymusician_core.codec.spectral import SpectralCodec
from tinymusician_core.pretrain.codec import CodecData, MelScales, finished_codec
from tinymusician_core.pretrain.notes import AGES
from tinymusician_core.pretrain.publish import averaged_teacher
from tinymusician_core.tokens import TokenDataset
from tinymusician_core.training import CHECKPOINT

WINDOWS, FRAMES = 48, 200


@torch.no_grad()
def codec_figures(work: Path, split: str) -> dict:
    """Round trip of unseen pieces: log-mel L1 (natural log, mean of four windows); the share of frames whose melody,
    accompaniment and players the encoder hears right; minutes of each training that is to be found in `work`."""
    codec = SpectralCodec.from_folder(finished_codec(work))
    audio, notes = CodecData.read(work, split, 200).batch(torch.Generator().manual_seed(0), WINDOWS, FRAMES)
    trained = {stage: work / stage / CHECKPOINT for stage in ("codec", "polish", "hear")}
    codes = codec.encode(audio)
    pitches = [(c - 1).div(AGES, rounding_mode="floor") for c in (codes[:, 0], notes[:, 0])]
    return {
        "log_mel_l1": float(MelScales(codec.sample_rate_hz)(codec.decode(codes), audio)[0]),
        "melody_pitch_right": float((pitches[0] == pitches[1]).float().mean()),
        "harmony_right": float((codes[:, 1] == notes[:, 1]).float().mean()),
        "players_right": float((codes[:, 2] == notes[:, 2]).float().mean()),
        "windows": WINDOWS,
        "minutes": {
            stage: torch.load(path, map_location="cpu", weights_only=True)["elapsed_s"] / 60
            for stage, path in trained.items()
            if path.exists()
        },
    }


@torch.no_grad()
def codebook_figures(work: Path, split: str) -> list[dict]:
    """For each codebook the entropy of its codes (nats) and what drawing them at random costs in log-mel L1."""
    codec, data = SpectralCodec.from_folder(finished_codec(work)), TokenDataset(work / "tokens", split)
    rng, scales = torch.Generator().manual_seed(0), MelScales(codec.sample_rate_hz)
    codes = data.batch(rng, WINDOWS, FRAMES)[0].clamp_min(0)
    whole, figures = codec.decode(codes), []
    for k in range(codec.codebooks):
        pool, mixed = data.codes[k].long(), codes.clone()
        mixed[:, k] = pool[torch.randint(len(pool), mixed[:, k].shape, generator=rng)]
        share = torch.bincount(pool, minlength=codec.codebook_size) / len(pool)
        entropy = float(torch.special.entr(share).sum())
        figures.append(
            {"codebook": k, "entropy": entropy, "log_mel_l1_at_random": float(scales(codec.decode(mixed), whole)[0])}
        )
    return figures


@torch.no_grad()
def teacher_figures(work: Path, split: str) -> dict:
    """Mean cross-entropy of each codebook (nats) on windows of unseen tunes."""
    model, trained = averaged_teacher(work)
    data, rng = TokenDataset(work / "tokens", split), torch.Generator().manual_seed(0)
    parts = [model(*data.batch(rng, 16, FRAMES), None) for _ in range(WINDOWS // 16)]
    return {k: sum(float(p[k]) for p in parts) / len(parts) for k in parts[0] if k != "loss"} | trained


def print_figures(work: Path, split: str = "test") -> None:
    """Print all of them as one JSON object."""
    figures = {"split": split, "codec": codec_figures(work, split), "codebooks": codebook_figures(work, split)}
    if (work / "teacher" / CHECKPOINT).exists():
        figures["teacher"] = teacher_figures(work, split)
    print(json.dumps(figures, indent=1))
