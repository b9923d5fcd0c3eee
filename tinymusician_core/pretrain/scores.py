"""Public-domain dance tunes of the music21 corpus -> one JSON record a tune.

Corpora: Ryan's Mammoth Collection (1883), O'Neill's Music of Ireland (1903, the 1850 tunes) and Aird's Airs
(1782 on).
The Essen folk songs are left out: their encoding is cleared for non-commercial use only.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

CORPORA = {
    "ryansMammoth": "Ryan's Mammoth Collection (1883)",
    "oneills1850": "O'Neill's Music of Ireland (1903)",
    "airdsAirs": "Aird's Airs (1782-1801)",
}
STYLES = {
    "slip jig": "slip jig",
    "slipjig": "slip jig",
    "jig": "jig",
    "reel": "reel",
    "hornpipe": "hornpipe",
    "clog": "hornpipe",
    "strathspey": "strathspey",
    "fling": "strathspey",
    "waltz": "waltz",
    "march": "march",
    "quickstep": "march",
    "polka": "polka",
    "walk": "reel",
}
COMMON = ("2/4", "4/4", "2/2")
DANCED_IN = {"jig": ("6/8", "12/8"), "slip jig": ("9/8",), "waltz": ("3/4", "3/8")}
METERS = {"2/4": 2.0, "4/4": 4.0, "2/2": 4.0, "3/4": 3.0, "6/8": 3.0, "9/8": 4.5, "3/8": 1.5, "12/8": 6.0}
MIN_NOTES, MIN_BARS = 24, 6


@dataclass(frozen=True)
class Tune:
    """A single-line tune. Times are in quarter notes; `notes` holds (onset, duration, MIDI pitch); `bars` the
    starts of its whole bars."""

    id: str
    corpus: str
    title: str
    style: str
    meter: str
    bar: float
    tonic: int
    mode: str
    notes: tuple[tuple[float, float, int], ...]
    bars: tuple[float, ...]

    @property
    def split(self) -> str:
        """train, validation or test by a hash of the title, so that two settings of one tune stay together."""
        key = re.sub(r"[^a-z]", "", self.title.lower())
        draw = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % 100
        return "test" if draw < 4 else "validation" if draw < 8 else "train"


def style_of(title: str, rhythm: str, meter: str) -> str:
    """The dance that a tune is, from its rhythm field, else its title, else its metre."""
    for text in (rhythm.lower(), title.lower()):
        for word, style in STYLES.items():
            if word in text and meter in DANCED_IN.get(style, COMMON):
                return style
    return {"6/8": "jig", "12/8": "jig", "9/8": "slip jig", "3/4": "waltz", "3/8": "waltz"}.get(meter, "air")


def parse_tune(score, corpus: str, number: int, source: str, rhythm: str = "") -> Tune | None:
    """A music21 score -> Tune, or None where it is not a plain single-line tune in one metre."""
    from music21 import meter as m21meter
    from music21 import note as m21note

    flat = score.flatten()
    meters = {m.ratioString for m in flat.getElementsByClass(m21meter.TimeSignature)}
    if len(meters) != 1 or not score.parts:
        return None
    (meter,) = meters
    if meter not in METERS:
        return None
    notes = []
    for element in flat.notes:
        if not isinstance(element, m21note.Note) or element.quarterLength <= 0:
            continue
        onset, length = float(element.offset), float(element.quarterLength)
        if (
            notes
            and element.tie is not None
            and element.tie.type in ("stop", "continue")
            and notes[-1][2] == element.pitch.midi
        ):
            notes[-1] = (notes[-1][0], onset + length - notes[-1][0], notes[-1][2])
        else:
            notes.append((round(onset, 4), round(length, 4), int(element.pitch.midi)))
    bar = METERS[meter]
    starts = [float(m.offset) for m in score.parts[0].getElementsByClass("Measure")]
    bars = [a for a, b in zip(starts, [*starts[1:], float(flat.highestTime)], strict=True) if abs(b - a - bar) < 1e-3]
    if len(notes) < MIN_NOTES or len(bars) < MIN_BARS:
        return None
    title = (score.metadata.title if score.metadata else None) or source
    key = flat.analyze("key")
    digest = hashlib.sha256(json.dumps([corpus, title, number, notes]).encode()).hexdigest()[:12]
    return Tune(
        digest,
        corpus,
        title,
        style_of(f"{title} {source}", rhythm, meter),
        meter,
        bar,
        int(key.tonic.pitchClass),
        key.mode,
        tuple(notes),
        tuple(bars),
    )


def parse_file(path: Path) -> list[Tune]:
    """Every usable tune of one ABC file."""
    from music21 import converter
    from music21.exceptions21 import Music21Exception

    corpus = path.parent.name
    tunes = []
    for number, text in enumerate(split_abc(path.read_text(encoding="utf-8", errors="replace"))):
        rhythm = re.search(r"^R:(.*)$", text, re.M)
        try:
            score = converter.parseData(text, format="abc")
            tune = parse_tune(score, corpus, number, path.stem, rhythm.group(1) if rhythm else "")
        except (
            Music21Exception,
            ValueError,
            AttributeError,
            IndexError,
            KeyError,
            TypeError,
            ZeroDivisionError,
        ) as error:
            print(f"skipped {path.name} #{number}: {type(error).__name__}: {error}")
            continue
        if tune is not None:
            tunes.append(tune)
    return tunes


def split_abc(text: str) -> Iterator[str]:
    """The tunes of an ABC book, one text each."""
    for part in re.split(r"(?m)^(?=X:)", text):
        if part.startswith("X:"):
            yield part


def corpus_files() -> list[Path]:
    from music21 import corpus

    return sorted(Path(p) for p in corpus.getCorePaths() if Path(p).parent.name in CORPORA and Path(p).suffix == ".abc")


def build_scores(work: Path, processes: int = 2) -> Path:
    """Write `work/scores.jsonl`; tunes with the same notes are kept once."""
    target = work / "scores.jsonl"
    if target.exists():
        return target
    work.mkdir(parents=True, exist_ok=True)
    seen: dict[str, Tune] = {}
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for tunes in pool.imap(parse_file, corpus_files(), chunksize=8):
            for tune in tunes:
                seen.setdefault(json.dumps(tune.notes), tune)
    partial = target.with_suffix(".part")
    partial.write_text("".join(json.dumps(asdict(t)) + "\n" for t in seen.values()), encoding="utf-8")
    partial.replace(target)
    return target


def read_scores(path: Path) -> list[Tune]:
    """The tunes of a scores file, in its order."""
    tunes = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        record["notes"] = tuple(tuple(n) for n in record["notes"])
        record["bars"] = tuple(record["bars"])
        tunes.append(Tune(**record))
    return tunes
