"""Rendered pieces -> codec tokens with captions, a split a file: notes as they are written, sound as it is encoded."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from tinymusician_core.codec.spectral import SpectralCodec
from tinymusician_core.files import whole_file
from tinymusician_core.pretrain.arrange import Piece
from tinymusician_core.pretrain.captions import captions
from tinymusician_core.pretrain.codec import CONFIG
from tinymusician_core.pretrain.notes import NOTES, Vocabulary, vocabulary
from tinymusician_core.pretrain.pieces import audio_path, failure_path, of_shard, read_audio, read_plan
from tinymusician_core.tokens import SPLITS, write_tokens

EVERY = 100


def meaning_of(codec: SpectralCodec, known: Vocabulary) -> str:
    """8 hexadecimal digits that change when what the codes stand for changes: a hash of encoder, codebooks and
    vocabulary."""
    digest = hashlib.sha256()
    tables = {k: v for k, v in codec.decoder.state_dict().items() if "codebook" in k}
    for name, tensor in sorted({**codec.encoder.state_dict(), **tables}.items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    digest.update(repr(known).encode())
    return digest.hexdigest()[:8]


@torch.no_grad()
def encode_piece(codec: SpectralCodec, known: Vocabulary, work: Path, piece: Piece, device: str) -> np.ndarray:
    """Codes int16 [K,T] of a piece up to the end of its last bar: what dies away after it is left out."""
    audio = torch.from_numpy(read_audio(work, piece))[None, None].to(device)
    codes = codec.encode(audio)[0].cpu().numpy()
    codes[:NOTES] = known.codes(piece)
    return codes[:, : piece.music_frames].astype(np.int16)


def record_of(piece: Piece) -> dict:
    return {
        "id": piece.id,
        "captions": captions(piece.facts, piece.id),
        "bars": list(piece.bars),
        "facts": asdict(piece.facts),
        "round": True,
    }


def merge(work: Path, pieces: Sequence[Piece], codes_of: Callable[[Piece], np.ndarray]) -> None:
    """Write `work/tokens` from the codes of every piece.

    Raises:
        ValueError: a split without pieces.
    """
    for split in SPLITS:
        chosen = [p for p in pieces if p.split == split]
        if not chosen:
            raise ValueError(f"there are no pieces for {split} among {len(pieces)}; plan more hours")
        clips = [torch.from_numpy(codes_of(p)) for p in chosen]
        write_tokens(work / "tokens", split, clips, [record_of(p) for p in chosen])
        print(f"tokens: {len(chosen)} pieces for {split}", flush=True)


def write_notes(work: Path) -> None:
    """Write `work/tokens` of every planned piece, rendered or not, with the codes of the notes alone and -1 for those
    of the sound: enough for a teacher to begin with."""
    plan = read_plan(work)
    known = vocabulary(work, plan, CONFIG.codebook_size)
    merge(work, plan, lambda piece: notes_alone(known, piece))


def notes_alone(known: Vocabulary, piece: Piece) -> np.ndarray:
    """Codes int16 [K,T] of a piece that nobody has heard: -1 for those of the sound."""
    codes = np.full((CONFIG.codebooks, piece.music_frames), -1, np.int16)
    codes[:NOTES] = known.codes(piece)[:, : piece.music_frames]
    return codes


def build_tokens(work: Path, shard: tuple[int, int] = (1, 1), unheard: bool = False, device: str = "cpu") -> None:
    """Encode the pieces of this shard with the trained codec into `work/codes`; the shard that leaves none missing
    writes `work/tokens`, in which pieces that have not been rendered have the codes of their notes alone where
    `unheard` ones are welcome.

    Raises:
        ValueError: pieces of the shard that have not been rendered, and are not welcome.
    """
    codec = SpectralCodec.from_folder(work / "codec" / "model")
    codec.encoder.to(device)
    codec.to(device)
    plan = read_plan(work)
    known = vocabulary(work, plan, codec.codebook_size)
    folder = work / "codes" / meaning_of(codec, known)
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [p for p in plan if not failure_path(work, p).exists()]
    mine = of_shard(pieces, shard)
    rendered = [p for p in mine if audio_path(work, p).exists()]
    if len(rendered) < len(mine) and not unheard:
        silent = len(mine) - len(rendered)
        raise ValueError(f"{silent} of {len(mine)} pieces have not been rendered; run the audio stage first")
    missing = [p for p in rendered if not (folder / f"{p.id}.npy").exists()]
    name, began = f"tokens {shard[0]}/{shard[1]}", time.monotonic()
    for done, piece in enumerate(missing, 1):
        with whole_file(folder / f"{piece.id}.npy") as partial:
            np.save(partial, encode_piece(codec, known, work, piece, device))
        if done % EVERY == 0:
            left_s = (time.monotonic() - began) / done * (len(missing) - done)
            print(f"{name}: {done}/{len(missing)} pieces, {left_s:.0f} s to go", flush=True)
    waiting = [p for p in pieces if audio_path(work, p).exists() or not unheard]
    left = sum(not (folder / f"{p.id}.npy").exists() for p in waiting)
    if left:
        print(f"{name}: done; {left} pieces are left to other shards, the last of which writes the tokens", flush=True)
    else:
        heard = {p.id for p in waiting}

        def codes_of(piece: Piece) -> np.ndarray:
            return np.load(folder / f"{piece.id}.npy") if piece.id in heard else notes_alone(known, piece)

        merge(work, pieces, codes_of)
