"""The studio's memory: takes, clips and votes in one SQLite file, written so that a kill loses nothing that was shown.

A *take* is one prompt with one set of settings; its clips are what each model made of it. A clip's row is written only
after its file is whole on disk, and a vote's row before anything about the clips is revealed. Gradio-free.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE_NAME = "studio.sqlite3"
SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE takes (
    id INTEGER PRIMARY KEY, created_at REAL NOT NULL, prompt TEXT NOT NULL, settings TEXT NOT NULL,
    models TEXT NOT NULL, blind INTEGER NOT NULL, form TEXT NOT NULL DEFAULT '{}');
CREATE TABLE clips (
    id INTEGER PRIMARY KEY, take_id INTEGER NOT NULL REFERENCES takes(id), created_at REAL NOT NULL,
    model TEXT NOT NULL, model_hash TEXT NOT NULL, file TEXT NOT NULL, audio_s REAL NOT NULL, figures TEXT NOT NULL,
    stopped INTEGER NOT NULL DEFAULT 0);
CREATE TABLE votes (
    pair TEXT PRIMARY KEY, created_at REAL NOT NULL, choice TEXT NOT NULL,
    heard_a_s REAL NOT NULL, heard_b_s REAL NOT NULL,
    model_a TEXT NOT NULL, hash_a TEXT NOT NULL, model_b TEXT NOT NULL, hash_b TEXT NOT NULL,
    clip_a INTEGER NOT NULL REFERENCES clips(id), clip_b INTEGER NOT NULL REFERENCES clips(id));
CREATE INDEX clips_by_take ON clips(take_id);
"""
FROM_1_TO_2 = """
ALTER TABLE takes ADD COLUMN form TEXT NOT NULL DEFAULT '{}';
ALTER TABLE clips ADD COLUMN stopped INTEGER NOT NULL DEFAULT 0;
"""


class StoreError(RuntimeError):
    """The history file cannot be read or written."""


@dataclass(frozen=True)
class ClipRow:
    """One clip. `file` is relative to the output folder; `figures` is the core's figures record as a dict.

    `stopped` says that it is shorter than was asked for, because somebody stopped it.
    """

    id: int
    take_id: int
    created_at: float
    model: str
    model_hash: str
    file: str
    audio_s: float
    figures: dict[str, Any]
    stopped: bool = False


@dataclass(frozen=True)
class Take:
    """One prompt, its settings (the fields of `SamplingSpec`), the models that were asked, and the clips that came.

    `form` holds the fields of `orders.Form` that are not usual: {} for a piece made from its prompt alone. `blind`
    takes were made for listening tests: nobody has heard them with their names on.
    """

    id: int
    created_at: float
    prompt: str
    settings: dict[str, Any]
    models: tuple[str, ...]
    clips: tuple[ClipRow, ...]
    blind: bool = False
    form: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VoteRow:
    """One vote as stored: `choice` is "a", "b" or "same"; models and hashes stand as they were heard, A first."""

    pair: str
    choice: str
    heard_a_s: float
    heard_b_s: float
    model_a: str
    hash_a: str
    model_b: str
    hash_b: str
    clip_a: int
    clip_b: int
    created_at: float = 0.0


class Store:
    """Takes, clips and votes of one output folder; usable from several threads: each call has its own connection."""

    def __init__(self, folder: Path):
        self.path = Path(folder) / FILE_NAME
        with self._open() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"{self.path} was written by a newer studio (format {version}; this one reads {SCHEMA_VERSION})"
                )
            if version == 0:
                self._create(db)
            elif version < SCHEMA_VERSION:
                self._change(db, FROM_1_TO_2)

    @property
    def files(self) -> list[Path]:
        """Every file SQLite keeps for this store; none of them is to be served."""
        return [self.path.with_name(self.path.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]

    def seed(self) -> str:
        """The listening test's secret seed: made once for each output folder, never shown."""
        with self._open() as db:
            return db.execute("SELECT value FROM meta WHERE key = 'seed'").fetchone()[0]

    def add_take(
        self,
        prompt: str,
        settings: dict[str, Any],
        models: tuple[str, ...],
        blind: bool = False,
        form: dict[str, Any] | None = None,
    ) -> int:
        row = (time.time(), prompt, _text(settings), json.dumps(list(models)), blind, _text(form or {}))
        with self._open() as db:
            cursor = db.execute(
                "INSERT INTO takes (created_at, prompt, settings, models, blind, form) VALUES (?, ?, ?, ?, ?, ?)", row
            )
            return int(cursor.lastrowid or 0)

    def add_clip(
        self,
        take_id: int,
        model: str,
        model_hash: str,
        file: str,
        audio_s: float,
        figures: dict[str, Any],
        stopped: bool = False,
    ) -> ClipRow:
        """Record a clip whose WAV is already whole on disk."""
        row = (take_id, time.time(), model, model_hash, file, audio_s, json.dumps(figures), stopped)
        with self._open() as db:
            cursor = db.execute(
                "INSERT INTO clips (take_id, created_at, model, model_hash, file, audio_s, figures, stopped)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        return ClipRow(int(cursor.lastrowid or 0), *row[:6], figures, stopped)

    def take(self, take_id: int) -> Take | None:
        with self._open() as db:
            found = db.execute("SELECT * FROM takes WHERE id = ?", (take_id,)).fetchone()
            clips = db.execute("SELECT * FROM clips WHERE take_id = ? ORDER BY id", (take_id,)).fetchall()
        return _take(found, clips) if found else None

    def takes(self) -> list[Take]:
        """Every take that has at least one clip, newest first."""
        with self._open() as db:
            clips: dict[int, list[sqlite3.Row]] = {}
            for row in db.execute("SELECT * FROM clips ORDER BY id").fetchall():
                clips.setdefault(row["take_id"], []).append(row)
            takes = db.execute("SELECT * FROM takes ORDER BY id DESC").fetchall()
        return [_take(row, clips[row["id"]]) for row in takes if row["id"] in clips]

    def last_figures(self) -> dict[str, dict[str, Any]]:
        """What was measured when each model last made a whole piece from a prompt alone."""
        query = (
            "SELECT clips.model, clips.figures FROM clips JOIN takes ON takes.id = clips.take_id"
            " WHERE NOT clips.stopped AND takes.form = '{}' ORDER BY clips.id"
        )
        with self._open() as db:
            return {row["model"]: json.loads(row["figures"]) for row in db.execute(query).fetchall()}

    def add_vote(self, vote: VoteRow) -> None:
        """Store a vote. Raises ValueError when this pair has been judged before."""
        names = (
            "pair",
            "choice",
            "heard_a_s",
            "heard_b_s",
            "model_a",
            "hash_a",
            "model_b",
            "hash_b",
            "clip_a",
            "clip_b",
        )
        row = {**{name: getattr(vote, name) for name in names}, "created_at": time.time()}
        marks = ", ".join(f":{name}" for name in row)
        with self._open() as db:
            query = f"INSERT INTO votes ({', '.join(row)}) VALUES ({marks}) ON CONFLICT (pair) DO NOTHING"
            stored = db.execute(query, row).rowcount
        if not stored:
            raise ValueError("this pair has been judged already; the next one is waiting")

    def votes(self) -> list[VoteRow]:
        with self._open() as db:
            return [VoteRow(**dict(row)) for row in db.execute("SELECT * FROM votes ORDER BY created_at").fetchall()]

    def _create(self, db: sqlite3.Connection) -> None:
        self._change(db, SCHEMA)
        db.execute("INSERT INTO meta VALUES ('seed', ?)", (secrets.token_hex(16),))

    def _change(self, db: sqlite3.Connection, statements: str) -> None:
        for statement in statements.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One connection, one transaction: committed when the block ends well, rolled back when it does not."""
        try:
            with closing(sqlite3.connect(self.path, timeout=15)) as db:
                db.row_factory = sqlite3.Row
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute("PRAGMA foreign_keys = ON")
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    yield db
        except sqlite3.Error as error:
            raise StoreError(f"the history file {self.path} cannot be used ({error})") from error


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def _take(row: sqlite3.Row, clips: list[sqlite3.Row]) -> Take:
    made = tuple(_clip(dict(clip)) for clip in clips)
    settings, models, form = json.loads(row["settings"]), tuple(json.loads(row["models"])), json.loads(row["form"])
    return Take(row["id"], row["created_at"], row["prompt"], settings, models, made, bool(row["blind"]), form)


def _clip(row: dict[str, Any]) -> ClipRow:
    return ClipRow(**{**row, "figures": json.loads(row["figures"]), "stopped": bool(row["stopped"])})
