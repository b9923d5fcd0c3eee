"""Sound on its way in and out: read, resample, loudness, level matching, fades, tags, writing and export.

Everything takes and gives `Waveform`: float32 [C,N] in -1..1 at a rate in Hz.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from . import __version__
from .files import first_line, whole_file
from .records import Clip, Waveform

EXPORTS = {".mp3": "mp3", ".flac": "flac", ".ogg": "ogg"}
TAGS = ("title", "software", "comment")
_LOUDNESS_WINDOW_S = 0.4


class AudioError(RuntimeError):
    """Sound could not be exported; the message is one sentence."""


def clip_tags(clip: Clip, **more) -> dict[str, str]:
    """The tags of a clip's file: what made it and how, nothing that changes from run to run. `more` joins in."""
    comment = {
        "model": clip.model,
        "model_hash": clip.model_hash,
        "seed": clip.sampling.seed,
        "settings": clip.sampling.as_dict(),
        **more,
    }
    return {"title": clip.prompt, "software": f"TinyMusician {__version__}", "comment": json.dumps(comment)}


@contextmanager
def _opened(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """A sound file to read from; ValueError where there is none, or none with sound in it."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such file: {path}; a WAV, FLAC, OGG or MP3 file is allowed")
    try:
        with soundfile.SoundFile(path) as file:
            if not file.frames:
                raise ValueError(f"{path} holds no sound")
            yield file
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} is no WAV, FLAC, OGG or MP3 that can be read: {first_line(error)}") from error


def check_readable(path: str | Path) -> None:
    """ValueError, as `read` raises it, for a file whose beginning shows that no sound can be read from it."""
    with _opened(path):
        return


def read(path: str | Path) -> Waveform:
    """Read a WAV, FLAC, OGG or MP3 of any rate and number of channels.

    Raises:
        ValueError: no such file, no sound in it, or a format that cannot be read.
    """
    with _opened(path) as file:
        audio = file.read(dtype="float32", always_2d=True)
        return Waveform(audio.T.clip(-1.0, 1.0), file.samplerate)


def crossfade(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """From the sound `old` float32 [C,n] to `new` [C,n] at an even level; the first sample is all old, the next new.

    The gains are a quarter of a cosine and of a sine (equal power), divided by what the likeness of the two adds, as in
    Fink, Holters and Zölzer, "Signal-matched power-complementary cross-fading" (DAFx-16): unlike sounds keep their
    level, and so do sounds that are the same. Peaks can be higher than those of both, up to sqrt(2) times.
    """
    angle = np.arange(old.shape[1]) / old.shape[1] * (np.pi / 2)
    fall, rise = np.cos(angle), np.sin(angle)
    power = math.sqrt((old.astype(np.float64) ** 2).sum() * (new.astype(np.float64) ** 2).sum())
    likeness = max(0.0, float((old.astype(np.float64) * new).sum()) / power) if power > 0 else 0.0
    return ((fall * old + rise * new) / np.sqrt(1.0 + 2.0 * likeness * rise * fall)).astype(np.float32)


def read_tags(path: str | Path) -> dict[str, str]:
    """The title, software and comment of a sound file, as far as it has them: the way back from `clip_tags`.

    Of a clip's file the title is the prompt, and the comment a JSON object with model, seed and settings.

    Raises:
        ValueError: as for `read`.
    """
    with _opened(path) as file:
        found = file.copy_metadata()
    return {name: found[name] for name in TAGS if name in found}


def resample(sound: Waveform, sample_rate_hz: int) -> Waveform:
    """The same sound at another rate, by polyphase filtering (scipy.signal.resample_poly)."""
    from scipy.signal import resample_poly

    target = Waveform(sound.audio, sample_rate_hz).sample_rate_hz
    if target == sound.sample_rate_hz:
        return sound
    shared = math.gcd(target, sound.sample_rate_hz)
    audio = resample_poly(sound.audio, target // shared, sound.sample_rate_hz // shared, axis=1)
    return Waveform(audio.clip(-1.0, 1.0), target)


def loudness(sound: Waveform) -> float:
    """Integrated loudness in LUFS after ITU-R BS.1770-4 (torchaudio); minus infinity for silence.

    Sound shorter than the standard's window of 0.4 s is measured as if silence followed.

    Raises:
        ValueError: more than five channels.
    """
    import torch
    import torchaudio.functional

    if sound.audio.shape[0] > 5:
        raise ValueError(f"loudness is defined for 1 to 5 channels, got {sound.audio.shape[0]}")
    peak = float(np.abs(sound.audio).max())
    if peak == 0.0:
        return -math.inf
    # torchaudio's filters cut off at full scale, and the standard's treble boost of 4 dB would take loud sound there.
    gain = min(1.0, 0.5 / peak)
    window = math.ceil(_LOUDNESS_WINDOW_S * sound.sample_rate_hz) + 1
    missing = max(0, window - sound.audio.shape[1])
    audio = torch.from_numpy(np.pad(sound.audio * gain, ((0, 0), (0, missing))))
    measured = float(torchaudio.functional.loudness(audio, sound.sample_rate_hz))
    return measured - 20 * math.log10(gain) if math.isfinite(measured) else -math.inf


def match_levels(sounds: Sequence[Waveform]) -> list[Waveform]:
    """Turn every sound down to the loudness of the quietest, so that nothing clips; silence stays as it is."""
    levels = [loudness(sound) for sound in sounds]
    audible = [level for level in levels if math.isfinite(level)]
    if not audible:
        return list(sounds)
    quietest = min(audible)
    return [
        Waveform(sound.audio * np.float32(10 ** ((quietest - level) / 20)), sound.sample_rate_hz)
        if math.isfinite(level)
        else sound
        for sound, level in zip(sounds, levels, strict=True)
    ]


def fade(sound: Waveform, in_s: float = 0.0, out_s: float = 0.0) -> Waveform:
    """Raise the sound from silence over `in_s` seconds, and let it sink over `out_s`, along a raised cosine.

    Raises:
        ValueError: a negative time, or fades that are longer together than the sound.
    """
    if not (in_s >= 0 and out_s >= 0 and in_s + out_s <= sound.seconds):
        raise ValueError(f"fades must be 0 or more and fit into {sound.seconds:g} seconds, got {in_s!r} and {out_s!r}")
    audio = sound.audio.copy()
    rise, fall = round(in_s * sound.sample_rate_hz), round(out_s * sound.sample_rate_hz)

    def ramp(samples: int) -> np.ndarray:
        return (0.5 - 0.5 * np.cos(np.pi * (np.arange(samples) + 0.5) / samples)).astype(np.float32)

    if rise:
        audio[:, :rise] *= ramp(rise)
    if fall:
        audio[:, -fall:] *= ramp(fall)[::-1]
    return Waveform(audio, sound.sample_rate_hz)


def write_wav(path: str | Path, sound: Waveform, tags: Mapping[str, str] | None = None) -> Path:
    """Write a 16-bit PCM WAV with INFO tags, whole or not at all; the same input gives the same bytes.

    Args:
        path: must end in .wav; an older file of that name is replaced.
        sound: what to write, at its own rate.
        tags: any of title, software and comment.

    Raises:
        ValueError: another ending, or another tag.
        OSError: the folder is missing, cannot be written to, or the disk is full.
    """
    path = Path(path)
    if path.suffix.lower() != ".wav":
        raise ValueError(f"a WAV file must end in .wav, got {path.name!r}")
    unknown = set(tags or {}) - set(TAGS)
    if unknown:
        raise ValueError(f"tags can be {', '.join(TAGS)}, got {', '.join(sorted(unknown))}")
    buffer = io.BytesIO()
    channels, rate = sound.audio.shape[0], sound.sample_rate_hz
    with soundfile.SoundFile(buffer, "w", rate, channels, subtype="PCM_16", format="WAV") as file:
        for name, text in (tags or {}).items():
            setattr(file, name, text)
        file.write(sound.audio.T)
    with whole_file(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return path


def export(path: str | Path, sound: Waveform, tags: Mapping[str, str] | None = None) -> Path:
    """Write a WAV, or an MP3, FLAC or OGG by way of pydub and ffmpeg; whole or not at all.

    Raises:
        ValueError: another ending.
        AudioError: ffmpeg is not installed, or refused.
        OSError: the folder is missing, cannot be written to, or the disk is full.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind == ".wav":
        return write_wav(path, sound, tags)
    if kind not in EXPORTS:
        raise ValueError(f"a sound file must end in .wav, {', '.join(EXPORTS)}, got {path.name!r}")
    if shutil.which("ffmpeg") is None:
        raise AudioError(f"writing {kind[1:].upper()} needs ffmpeg, which is not installed; WAV works without it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydub's use of the old audioop module
        from pydub import AudioSegment
        from pydub.exceptions import CouldntEncodeError
    samples = np.rint(sound.audio.T * 32767).astype("<i2")
    segment = AudioSegment(
        samples.tobytes(), sample_width=2, frame_rate=sound.sample_rate_hz, channels=sound.audio.shape[0]
    )
    with whole_file(path) as temporary:
        try:
            segment.export(str(temporary), format=EXPORTS[kind], tags=dict(tags or {})).close()
        except CouldntEncodeError as error:
            raise AudioError(f"ffmpeg could not write {path}: {first_line(error)}") from error
    return path
