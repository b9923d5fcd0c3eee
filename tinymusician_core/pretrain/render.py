"""Pieces -> audio: FluidSynth with a General MIDI soundfont, many pieces a call, every call bounded in time.

Audio is mono, 32 kHz, dry (no reverb or chorus), brought to one level, and kept as FLAC.
"""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from tinymusician_core.files import first_line, whole_file
from tinymusician_core.pretrain.accompany import DRUMS, LEAD
from tinymusician_core.pretrain.arrange import FRAME_RATE_HZ, Piece
from tinymusician_core.pretrain.pieces import audio_path, failure_path, make_plan, of_shard

SAMPLE_RATE_HZ = 32000
SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // FRAME_RATE_HZ
FRAME_MS = 1000 // FRAME_RATE_HZ
SOUNDFONTS = (
    "/usr/share/sounds/sf3/MuseScore_General_Full.sf3",
    "/usr/share/sounds/sf3/MuseScore_General.sf3",
    "/usr/share/sounds/sf2/MuseScore_General.sf2",
)
SYNTHESIS = ("-niq", "-o", "synth.dynamic-sample-loading=1", "-R", "0", "-C", "0", "-g", "0.5")
LEAD_VOLUME, VOLUME = 127, 92  # MIDI channel volumes: the melody about 6 dB before the others
LEVEL_RMS, PEAK = 0.1, 0.95
RELEASE_MS, GAP_MS, BATCH = 20, 1000, 16


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
        volume = LEAD_VOLUME if track.role == LEAD else VOLUME
        events.append((offset_ms, 0, [Message("control_change", channel=channel, control=7, value=volume)]))
        for note in track.notes:
            start, end = offset_ms + note.start * FRAME_MS, offset_ms + note.end * FRAME_MS - RELEASE_MS
            events.append((start, 2, [Message("note_on", channel=channel, note=note.pitch, velocity=note.velocity)]))
            events.append((end, 1, [Message("note_off", channel=channel, note=note.pitch)]))
    stop = offset_ms + piece.frames * FRAME_MS + GAP_MS // 2
    events.append((stop, 3, [Message("control_change", channel=c, control=120, value=0) for c in range(16)]))
    return events


def write_midi(pieces: Sequence[Piece], path: Path) -> list[int]:
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


def synthesize(midi: Path, raw: Path, timeout_s: float) -> np.ndarray:
    """A MIDI file -> mono audio [N], by way of the file `raw`; a call that takes longer than `timeout_s` is killed."""
    output = ("-r", str(SAMPLE_RATE_HZ), "-O", "s16", "-T", "raw", "-F", str(raw))
    command = ["fluidsynth", *SYNTHESIS, *output, str(find_soundfont()), str(midi)]
    subprocess.run(command, check=True, capture_output=True, timeout=timeout_s)
    return np.fromfile(raw, dtype="<i2").reshape(-1, 2).astype(np.float32).mean(1) / 32768


def render_together(pieces: Sequence[Piece], work: Path) -> None:
    """Render pieces in one call, bounded to a minute and real time (a busy machine is slow), and write their FLAC
    files, each whole or not at all."""
    import soundfile

    seconds = sum(p.frames for p in pieces) / FRAME_RATE_HZ + len(pieces) * GAP_MS / 1000
    with tempfile.TemporaryDirectory() as scratch:
        midi = Path(scratch) / "batch.mid"
        starts = write_midi(pieces, midi)
        audio = synthesize(midi, Path(scratch) / "batch.raw", 60 + seconds)
    for piece, start in zip(pieces, starts, strict=True):
        first = start * SAMPLE_RATE_HZ // 1000
        clip = audio[first : first + piece.frames * SAMPLES_PER_FRAME]
        if len(clip) < piece.frames * SAMPLES_PER_FRAME:
            raise ValueError(f"FluidSynth stopped {piece.frames * SAMPLES_PER_FRAME - len(clip)} samples early")
        with whole_file(audio_path(work, piece)) as partial:
            soundfile.write(partial, level(clip), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")


def render_batch(pieces: Sequence[Piece], work: Path) -> int:
    """Render pieces, together if they let themselves; returns how many failed. Those are noted and left out."""
    try:
        render_together(pieces, work)
        return 0
    except (subprocess.SubprocessError, ValueError) as error:
        if len(pieces) == 1:
            failure_path(work, pieces[0]).write_text(first_line(error) + "\n", encoding="utf-8")
            return 1
    return sum(render_batch([piece], work) for piece in pieces)


def build_audio(
    work: Path,
    hours: float,
    shard: tuple[int, int] = (1, 1),
    processes: int = 2,
    splits: Collection[str] | None = None,
) -> None:
    """Write `work/pieces.jsonl`, and `work/audio/<id>.flac` for the pieces of this shard and of these splits, or of
    all, that are not there yet."""
    pieces = of_shard([p for p in make_plan(work, hours) if splits is None or p.split in splits], shard)
    (work / "audio").mkdir(exist_ok=True)
    missing = [p for p in pieces if not audio_path(work, p).exists() and not failure_path(work, p).exists()]
    batches = [missing[i : i + BATCH] for i in range(0, len(missing), BATCH)]
    name = f"audio {shard[0]}/{shard[1]}"
    print(f"{name}: {len(missing)} of {len(pieces)} pieces to render", flush=True)
    began, failed = time.monotonic(), 0
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        waiting = [pool.apply_async(render_batch, (batch, work)) for batch in batches]
        for done, job in enumerate(waiting, 1):
            failed += job.get()
            spent = time.monotonic() - began
            left_s = spent / done * (len(batches) - done)
            print(f"{name}: {done}/{len(batches)} batches, {spent:.0f} s, {left_s:.0f} s to go", flush=True)
    if failed:
        print(f"{name}: {failed} pieces could not be rendered; {work / 'audio'}/*.failed say why", flush=True)
