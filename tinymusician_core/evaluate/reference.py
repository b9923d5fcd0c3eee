"""What the variants' clips are compared with: the held-out music of the assets, or a folder of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import audio
from ..journal import Journal
from ..records import Cancelled, Waveform
from .held_out import HeldOut
from .jury import Judged, Jury
from .limits import REFERENCE
from .steadiness import MIN_S, Steadiness

SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
REAL_EVERY = 3
REAL, ROUND_TRIP = "real audio", "codec round trip"


@dataclass(frozen=True, eq=False)
class Reference:
    """A set of judged real music.

    Attributes:
        name: what it is.
        embeddings: float32 [n, D], which all distances are taken to.
        real: other real music, judged as the variants' clips are: what no variant is expected to beat.
        round_trip: the same windows as `real` through a codec; empty where none was tried.
        fidelity: what the codec cost each of them, by measure.
        facts: what each of `real` truly is; empty where nobody knows.
        steady: `REFERENCE` -> the steadiness of the windows that set the limits, other names -> of more real music;
            empty where nothing was long enough.
        steady_s: how long those windows are; None as above.
    """

    name: str
    embeddings: np.ndarray
    real: tuple[Judged, ...] = ()
    round_trip: tuple[Judged, ...] = ()
    fidelity: Mapping[str, tuple[float, ...]] | None = None
    facts: tuple[Mapping, ...] = ()
    steady: Mapping[str, tuple[Steadiness, ...]] = field(default_factory=dict)
    steady_s: float | None = None


def shipped_reference(held_out: HeldOut, jury: Jury, seconds: float) -> Reference:
    """The held-out music as a reference.

    Raises:
        ModelError: another listener judged it.
        ValueError: another embedder than it was judged with, or clips that are shorter than its windows.
    """
    held_out.check_listener(jury.listener.name)
    if jury.embedder.name != jury.listener.name:
        raise ValueError(
            f"the held-out music was embedded by the listener alone; with {jury.embedder.name} give a folder of sound "
            "files as the reference"
        )
    if seconds < held_out.seconds:
        raise ValueError(
            f"seconds must be {held_out.seconds:g} or more, as the held-out windows are that long, or a reference of "
            f"your own be given, got {seconds:g}"
        )
    return Reference(
        f"held-out music ({len(held_out.embeddings)} windows of {held_out.seconds:g} s)",
        held_out.embeddings,
        held_out.real,
        held_out.round_trip,
        held_out.fidelity,
        held_out.facts,
        held_out.steady,
        held_out.steady_s,
    )


def own_reference(
    folder: Path,
    jury: Jury,
    seconds: float,
    cache: Path,
    on_progress: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> Reference:
    """The whole windows of `seconds` in the sound files of a folder; those of every third file are the real music.

    What was judged is kept in `cache`, and a second call goes on from there.

    Raises:
        ValueError: no sound files, or too few whole windows for a distance.
        Cancelled: `should_stop` said so.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUNDS and path.is_file())
    if not files:
        raise ValueError(f"reference {folder} holds no sound files; {', '.join(SOUNDS)} are allowed")
    journal = Journal(cache)
    known = {(record["file"], record["window"]): record for record in journal.records}
    chosen: tuple[list[Judged], list[Judged]] = ([], [])
    for number, file in enumerate(files):
        name = file.relative_to(folder).as_posix()
        for window, sound in enumerate(windows_of(file, seconds)):
            if should_stop():
                raise Cancelled(f"stopped after {number} of {len(files)} files of the reference")
            record = known.get((name, window))
            if record is None:
                record = jury.judge(sound).as_record()
                journal.append({"file": name, "window": window, **record})
            chosen[number % REAL_EVERY == REAL_EVERY - 1].append(Judged.from_record(record))
        on_progress(number + 1, len(files))
    if len(chosen[0]) < 20:
        raise ValueError(
            f"reference {folder} must hold 30 or more windows of {seconds:g} s, got {sum(map(len, chosen))}"
        )
    name = f"{folder.name} ({len(chosen[0])} windows of {seconds:g} s)"
    steady: dict[str, tuple[Steadiness, ...]] = {}
    if seconds >= MIN_S:
        steady = {
            kind: tuple(each.steadiness for each in judged)
            for kind, judged in zip((REFERENCE, REAL), chosen, strict=True)
        }
    embeddings = np.stack([each.embedding for each in chosen[0]])
    return Reference(name, embeddings, tuple(chosen[1]), steady=steady, steady_s=seconds if steady else None)


def windows_of(file: Path, seconds: float) -> Iterator[Waveform]:
    """The whole windows of a sound file, one after the other."""
    sound = audio.read(file)
    length = math.ceil(seconds * sound.sample_rate_hz)
    for start in range(0, sound.audio.shape[1] - length + 1, length):
        yield Waveform(sound.audio[:, start : start + length], sound.sample_rate_hz)
