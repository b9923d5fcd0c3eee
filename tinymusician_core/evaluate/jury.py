"""One clip before its judges: our listener, the embedder of the distributions, and librosa's second opinion."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from ..records import Waveform
from .embedders import Embedder
from .listener import Heard, Listener
from .second_opinion import Opinion, second_opinion
from .steadiness import MIN_S, Steadiness, steadiness

DIGITS = 5


@dataclass(frozen=True, eq=False)
class Judged:
    """What the judges say of a clip.

    Attributes:
        prompt: what was asked for; None for sound that nobody asked for.
        heard: the listener's probabilities, rounded to 5 digits; its embedding is the one below, or empty where
            another embedder was used.
        opinion: librosa's tempo and key.
        embedding: float32 [D] of the embedder.
        text_score: the embedder's likeness of prompt and sound, -1 to 1; None where it does not compare them.
        steadiness: whether it stays one piece of music; None for a clip of less than 20 s.
    """

    prompt: str | None
    heard: Heard
    opinion: Opinion
    embedding: np.ndarray
    text_score: float | None = None
    steadiness: Steadiness | None = None

    def as_record(self) -> dict:
        """Ready for JSON; the embedding as little-endian float32 in base64, to the last bit."""
        record = {
            "prompt": self.prompt,
            "heard": {head: _rounded(values) for head, values in self.heard.probabilities.items()},
            "opinion": asdict(self.opinion),
            "text_score": self.text_score,
            "embedding": base64.b64encode(self.embedding.astype("<f4").tobytes()).decode(),
        }
        return record if self.steadiness is None else record | {"steadiness": self.steadiness.as_record()}

    @classmethod
    def from_record(cls, record: Mapping) -> Judged:
        """What `as_record` gave; KeyError, TypeError or ValueError for anything else."""
        embedding = np.frombuffer(base64.b64decode(record["embedding"], validate=True), "<f4").astype(np.float32)
        probabilities = {head: np.array(values, np.float32) for head, values in record["heard"].items()}
        heard, opinion = Heard(embedding, probabilities), Opinion(**record["opinion"])
        held = Steadiness.from_record(record["steadiness"]) if "steadiness" in record else None
        return cls(record["prompt"], heard, opinion, embedding, record["text_score"], held)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), DIGITS) for value in values]


@dataclass(frozen=True)
class Jury:
    """The judges of an evaluation.

    Attributes:
        listener, embedder: of whole clips.
        window_s: a longer clip is embedded by its last `window_s` alone, so that it can be compared with windows of
            that length, and what has become of it at its end counts; None embeds all of it.
    """

    listener: Listener
    embedder: Embedder
    window_s: float | None = None

    def judge(self, sound: Waveform, prompt: str | None = None) -> Judged:
        """Hear a clip of 1 s or more, of any rate and number of channels."""
        audio, rate = sound.audio, sound.sample_rate_hz
        heard, opinion = self.listener.hear(audio, rate), second_opinion(audio, rate)
        compare = getattr(self.embedder, "text_score", None)
        score = None if compare is None or prompt is None else float(compare(prompt, audio, rate))
        held = steadiness(audio, rate) if sound.seconds >= MIN_S else None
        return Judged(prompt, heard, opinion, self._embedding(sound, heard), score, held)

    def _embedding(self, sound: Waveform, heard: Heard) -> np.ndarray:
        """float32 [D] of the clip, or of its end; the listener has heard the whole of it already."""
        whole = self.window_s is None or sound.seconds <= self.window_s
        if whole and self.embedder.name == self.listener.name:
            return heard.embedding
        audio = sound.audio if whole else sound.audio[:, -round(self.window_s * sound.sample_rate_hz) :]
        return np.asarray(self.embedder.embed(audio, sound.sample_rate_hz), np.float32)
