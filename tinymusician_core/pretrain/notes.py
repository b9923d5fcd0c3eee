"""The score as codes: what the entries of the codec's first three codebooks stand for.

We render the audio, so every note is known. The first codebook holds the melody: 0 where it rests, else the pitch that
sounds and for how many frames it has. The second holds what accompanies it, drums included: 0 for nothing, else one of
the commonest states that the plan's training pieces pass through (all others are given as the one most like them). The
third holds who plays, the same from the first frame to the last: one of the commonest companies. A language model thus
learns music as it is written, and the last codebook holds what is left of how it sounds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinymusician_core.files import whole_file
from tinymusician_core.pretrain.accompany import BASS, CHORDS, DRUMS, LEAD, SECOND
from tinymusician_core.pretrain.arrange import Piece

LOW_PITCH, PITCHES = 36, 60
AGES = 8  # a note that has sounded for longer counts as one of AGES - 1 frames
HEARD_AGES = 3  # how many of them sound tells apart: the attack and what follows it at once
NOTES = 3  # codebooks whose codes are written, not heard
PLAYERS = 2  # the one that says who plays
ROLES, PART = (LEAD, SECOND, CHORDS, BASS, DRUMS), 128
UNUSED = 10.0  # how far from all others the entries lie that stand for nobody
DRUM = 256  # of a state's numbers: 2 * pitch, one more where the note begins; from DRUM on a drum that is hit
NOTES_APART, BEGINS_APART, DRUMS_APART = 4, 2, 1  # how unlike two states are

State = tuple[int, ...]


def melody_codes(piece: Piece) -> np.ndarray:
    """int64 [frames]: the codes of a piece's melody.

    Raises:
        ValueError: a note outside LOW_PITCH and the PITCHES - 1 above it.
    """
    codes = np.zeros(piece.frames, np.int64)
    for note in next(t for t in piece.tracks if t.role == LEAD).notes:
        row = note.pitch - LOW_PITCH
        if not 0 <= row < PITCHES:
            raise ValueError(f"{piece.id} has a melody note at MIDI pitch {note.pitch}; the codec knows 36 to 95")
        ages = np.arange(note.end - note.start).clip(max=AGES - 1)
        codes[note.start : note.end] = 1 + AGES * row + ages
    return codes


def melody_groups(size: int) -> Tensor:
    """int64 [size]: the entries of the first codebook that sound alike have one number: those of the later ages of a
    note. Entries that stand for nothing share the number after all others."""
    code = torch.arange(size)
    row, age = (code - 1) // AGES, (code - 1) % AGES
    groups = 1 + (HEARD_AGES + 1) * row + age.clamp(max=HEARD_AGES)
    groups[0] = 0
    return groups.clamp(max=1 + (HEARD_AGES + 1) * PITCHES)


def states_of(piece: Piece) -> list[State]:
    """What accompanies the melody, frame by frame."""
    frames: list[set[int]] = [set() for _ in range(piece.frames)]
    for track in piece.tracks:
        for note in track.notes:
            if track.role == DRUMS:
                frames[note.start].add(DRUM + note.pitch)
            elif track.role != LEAD:
                for at in range(note.start, min(note.end, piece.frames)):
                    frames[at].add(2 * note.pitch + (at == note.start))
    return [tuple(sorted(frame)) for frame in frames]


def _parts(state: State) -> tuple[set[int], set[int], set[int]]:
    notes = {n // 2 for n in state if n < DRUM}
    return notes, {n // 2 for n in state if n < DRUM and n % 2}, {n for n in state if n >= DRUM}


def unlikeness(a: State, b: State) -> int:
    """0 for the same state; notes that only one has weigh most, then those that begin in one alone, then drums."""
    weights = (NOTES_APART, BEGINS_APART, DRUMS_APART)
    return sum(w * len(x ^ y) for w, x, y in zip(weights, _parts(a), _parts(b), strict=True))


@dataclass(frozen=True)
class HarmonyStates:
    """The states of the second codebook, the commonest first; that of no accompaniment has the code 0."""

    states: tuple[State, ...]

    @classmethod
    def of(cls, pieces: Iterable[Piece], size: int) -> HarmonyStates:
        """The `size` - 1 commonest states of the training pieces, and none."""
        counts: Counter[State] = Counter()
        for piece in pieces:
            if piece.split == "train":
                counts.update(states_of(piece))
        del counts[()]
        common = sorted(counts, key=lambda state: (-counts[state], state))[: size - 1]
        return cls(((), *common))

    @cached_property
    def _codes(self) -> dict[State, int]:
        return {state: code for code, state in enumerate(self.states)}

    def codes(self, piece: Piece) -> np.ndarray:
        """int64 [frames]: the codes of what accompanies a piece's melody."""
        return np.array([self._code(state) for state in states_of(piece)], np.int64)

    def _code(self, state: State) -> int:
        if state not in self._codes:
            self._codes[state] = min(range(len(self.states)), key=lambda c: unlikeness(self.states[c], state))
        return self._codes[state]


def players_of(piece: Piece) -> State:
    """Who plays: of each track the General MIDI program, PART times the place of its role among ROLES more."""
    parts = {PART * ROLES.index(t.role) + (0 if t.role == DRUMS else t.program) for t in piece.tracks}
    return tuple(sorted(parts))


@dataclass(frozen=True)
class Companies:
    """The companies of the third codebook, the commonest first."""

    companies: tuple[State, ...]

    @classmethod
    def of(cls, pieces: Iterable[Piece], size: int) -> Companies:
        """The `size` commonest companies of the training pieces."""
        counts = Counter(players_of(piece) for piece in pieces if piece.split == "train")
        return cls(tuple(sorted(counts, key=lambda company: (-counts[company], company))[:size]))

    def code(self, piece: Piece) -> int:
        """The code of who plays a piece; of another company the one most like it, with the same lead where there is
        one."""
        own = set(players_of(piece))

        def unlike(company: State) -> tuple[bool, int]:
            return min(own) not in company, len(own.symmetric_difference(company))

        return min(range(len(self.companies)), key=lambda c: unlike(self.companies[c]))

    def vectors(self, size: int, dim: int, spread: float) -> Tensor:
        """Entries float32 [size,dim] in which companies with a part in common have a vector in common: the sum of one
        random vector a part."""
        rng, found = torch.Generator().manual_seed(0), torch.zeros(size, dim)
        parts = sorted({part for company in self.companies for part in company})
        of_part = dict(zip(parts, spread * torch.randn(len(parts), dim, generator=rng), strict=True))
        for code, company in enumerate(self.companies):
            found[code] = sum(of_part[part] for part in company)
        found[len(self.companies) :] = UNUSED * spread
        return found


@dataclass(frozen=True)
class Vocabulary:
    """What the codes of harmony and of players stand for."""

    harmony: HarmonyStates
    players: Companies

    @classmethod
    def of(cls, pieces: Sequence[Piece], size: int) -> Vocabulary:
        return cls(HarmonyStates.of(pieces, size), Companies.of(pieces, size))

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        record = json.loads(path.read_text(encoding="utf-8"))
        return cls(HarmonyStates(_states(record["harmony"])), Companies(_states(record["players"])))

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"harmony": self.harmony.states, "players": self.players.companies}
        with whole_file(path) as partial:
            partial.write_text(json.dumps(record) + "\n", encoding="utf-8")

    def codes(self, piece: Piece) -> np.ndarray:
        """int64 [3,frames]: the codes of a piece in the first three codebooks."""
        players = np.full(piece.frames, self.players.code(piece), np.int64)
        return np.stack([melody_codes(piece), self.harmony.codes(piece), players])


def _states(record: list) -> tuple[State, ...]:
    return tuple(map(tuple, record))


def vocabulary(work: Path, pieces: Sequence[Piece], size: int) -> Vocabulary:
    """The vocabulary that `work` was begun with; else that of the planned pieces, which `work` then keeps."""
    path = work / "notes.json"
    if not path.exists():
        Vocabulary.of(pieces, size).write(path)
    return Vocabulary.read(path)
