"""Pieces -> audio: FluidSynth with a General MIDI soundfont, many pieces a call, every call bounded in time.

Audio is mono, 32 kHz, dry (no reverb or chorus), brought to one level, and kept as FLAC.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tinymusician_core.pretrain.arrange import DRUMS, FRAME_RATE_HZ, Facts, Note, Piece, Track, arrange
from tinymusician_core.pretrain.scores import read_scores

SAMPLE_RATE_HZ = 32000
SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // FRAME_RATE_HZ
FRAME_MS = 1000 // FRAME_RATE_HZ
SOUNDFONTS = (
    "/usr/share/sounds/sf3/MuseScore_General_Full.sf3",
    "/usr/share/sounds/sf3/MuseScore_General.sf3",
    "/usr/share/sounds/sf2/MuseScore_General.sf2",
)
LEVEL_RMS, PEAK = 0.1, 0.95
RELEASE_MS, GAP_MS, BATCH = 20, 1000, 24
ARRANGEMENTS = {"waltz": 4}


def find_soundfont() -> Path:
    """The soundfont; FileNotFoundError says which Debian packages bring it and FluidSynth."""
    if shutil.which("fluidsynth") is None:
        raise FileNotFoundError(
            "fluidsynth is not installed; on Debian: apt-get install fluidsynth musescore-general-soundfont"
        )
    for path in map(Path, SOUNDFONTS):
        if path.exists():
            return path
    raise FileNotFoundError(
        f"no soundfont at any of {', '.join(SOUNDFONTS)}; on Debian: apt-get install musescore-general-soundfont"
    )


def events_of(piece: Piece, offset_ms: int) -> list[tuple[int, int, list]]:
    """(time in ms, order, MIDI messages) of a piece that starts at `offset_ms`. One tick is one millisecond."""
    from mido import Message

    events = []
    for index, track in enumerate(piece.tracks):
        channel = 9 if track.role == DRUMS else index
        if track.role != DRUMS:
            events.append((offset_ms, 0, [Message("program_change", channel=channel, program=track.program)]))
        for note in track.notes:
            start, end = offset_ms + note.start * FRAME_MS, offset_ms + note.end * FRAME_MS - RELEASE_MS
            events.append((start, 2, [Message("note_on", channel=channel, note=note.pitch, velocity=note.velocity)]))
            events.append((end, 1, [Message("note_off", channel=channel, note=note.pitch)]))
    stop = offset_ms + piece.frames * FRAME_MS + GAP_MS // 2
    events.append((stop, 3, [Message("control_change", channel=c, control=120, value=0) for c in (0, 1, 2, 9)]))
    return events


def write_midi(pieces: list[Piece], path: Path) -> list[int]:
    """One MIDI file with the pieces one after another; returns where each starts (ms)."""
    from mido import MetaMessage, MidiFile, MidiTrack

    starts, events, at = [], [], 0
    for piece in pieces:
        starts.append(at)
        events += events_of(piece, at)
        at += piece.frames * FRAME_MS + GAP_MS
    track, now = MidiTrack(), 0
    track.append(MetaMessage("set_tempo", tempo=1_000_000, time=0))
    for when, _, messages in sorted(events, key=lambda e: (e[0], e[1])):
        for message in messages:
            track.append(message.copy(time=when - now))
            now = when
    track.append(MetaMessage("end_of_track", time=at - now))
    midi = MidiFile(type=0, ticks_per_beat=1000)
    midi.tracks.append(track)
    midi.save(path)
    return starts


def level(audio: np.ndarray) -> np.ndarray:
    """Bring mono audio [N] to LEVEL_RMS, or as near as PEAK allows."""
    rms, peak = float(np.sqrt(np.mean(audio**2))), float(np.abs(audio).max())
    if peak == 0:
        raise ValueError("a rendered piece is silent")
    return audio * min(LEVEL_RMS / rms, PEAK / peak)


def render_batch(pieces: list[Piece], folder: Path) -> None:
    """Render pieces and write `folder/<id>.flac` for each; a call that takes longer than real time / 4 is
    killed."""
    import soundfile

    seconds = sum(p.frames for p in pieces) / FRAME_RATE_HZ + len(pieces) * GAP_MS / 1000
    with tempfile.TemporaryDirectory() as scratch:
        midi, raw = Path(scratch) / "batch.mid", Path(scratch) / "batch.raw"
        starts = write_midi(pieces, midi)
        command = [
            "fluidsynth",
            "-niq",
            "-R",
            "0",
            "-C",
            "0",
            "-g",
            "0.5",
            "-r",
            str(SAMPLE_RATE_HZ),
            "-O",
            "s16",
            "-T",
            "raw",
            "-F",
            str(raw),
            str(find_soundfont()),
            str(midi),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=30 + seconds / 4)
        audio = np.fromfile(raw, dtype="<i2").reshape(-1, 2).astype(np.float32).mean(1) / 32768
    for piece, start in zip(pieces, starts, strict=True):
        first = start * SAMPLE_RATE_HZ // 1000
        clip = level(audio[first : first + piece.frames * SAMPLES_PER_FRAME])
        partial = folder / f"{piece.id}.part"
        soundfile.write(partial, clip, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
        partial.replace(folder / f"{piece.id}.flac")


def plan_pieces(work: Path, limit: int) -> list[Piece]:
    """The first `limit` pieces in an order that a seed fixes; waltzes, which the corpora are short of, in
    several arrangements."""
    jobs = [(tune, n) for tune in read_scores(work / "scores.jsonl") for n in range(ARRANGEMENTS.get(tune.style, 1))]
    random.Random(0).shuffle(jobs)
    pieces = (arrange(tune, n) for tune, n in jobs[:limit])
    return [p for p in pieces if p is not None]


def build_audio(work: Path, limit: int, processes: int = 2) -> None:
    """Write `work/pieces.jsonl` and `work/audio/<id>.flac`; what is there already is kept."""
    pieces = plan_pieces(work, limit)
    folder = work / "audio"
    folder.mkdir(exist_ok=True)
    missing = [p for p in pieces if not (folder / f"{p.id}.flac").exists()]
    batches = [missing[i : i + BATCH] for i in range(0, len(missing), BATCH)]
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        waiting = [pool.apply_async(render_batch, (batch, folder)) for batch in batches]
        for done, job in enumerate(waiting, 1):
            job.get()
            spent = time.monotonic() - began
            print(
                f"audio: {done}/{len(batches)} batches, {spent:.0f} s, "
                f"{spent / done * (len(batches) - done):.0f} s to go",
                flush=True,
            )
    partial = work / "pieces.part"
    partial.write_text("".join(json.dumps(asdict(p)) + "\n" for p in pieces), encoding="utf-8")
    partial.replace(work / "pieces.jsonl")


def read_pieces(work: Path) -> list[Piece]:
    """The rendered pieces of a work folder."""
    pieces = []
    for line in (work / "pieces.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        tracks = tuple(Track(t["role"], t["program"], tuple(Note(**n) for n in t["notes"])) for t in record["tracks"])
        pieces.append(
            Piece(**{**record, "bars": tuple(record["bars"]), "tracks": tracks, "facts": Facts(**record["facts"])})
        )
    return pieces


def read_audio(work: Path, piece: Piece) -> np.ndarray:
    """The audio of a piece, float32 [N]."""
    import soundfile

    audio, _ = soundfile.read(work / "audio" / f"{piece.id}.flac", dtype="float32")
    return audio
