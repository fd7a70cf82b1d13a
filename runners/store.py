"""The store: every measured run of this machine's user, in one SQLite file that survives whatever ends its writer.

A row is there once `add` has returned, and not at all before: writers take the file in turn, each row is one
transaction that SQLite has handed to the disk, and a job that is added again after a crash is the row that it was.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from estimators.errors import BadInput, PlanError
from estimators.fingerprint import Machine
from estimators.record import Entry
from estimators.strict import decoded, encoded

APPLICATION_ID = 0x46545053
"""In the file's head ("FTPS"): says that an SQLite file is a store of ours."""
UPGRADES: tuple[str, ...] = (
    """
    CREATE TABLE measurements (
        number INTEGER PRIMARY KEY,
        job TEXT NOT NULL UNIQUE,
        seconds_since_epoch REAL NOT NULL,
        model TEXT NOT NULL,
        entry TEXT NOT NULL
    ) STRICT;
    CREATE INDEX measurements_by_model ON measurements (model, number);
    """,
)
"""Step N makes schema N + 1 of schema N. A step that was released is never changed; a new schema is a new step."""
PATIENCE_SECONDS = 30.0
"""How long a writer waits for the one before it: a row takes milliseconds."""
Skipped = Callable[[str], None]


class StoreError(PlanError):
    """The store cannot be used, and the message names it and the cause; what it holds is as it was."""


def default_path() -> Path:
    """Where the store lies for this user (the XDG base directories)."""
    data = os.environ.get("XDG_DATA_HOME", "")
    base = Path(data) if Path(data).is_absolute() else Path.home() / ".local" / "share"
    return base / "finetune-plan" / "measurements.sqlite"


class Store:
    """An open store; a context manager."""

    __slots__ = ("_connection", "path")

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self._connection = path, connection

    @classmethod
    def open(cls, path: Path | None = None, *, patience_seconds: float = PATIENCE_SECONDS) -> Self:
        """Opens the store to add to it, and makes it where there is none.

        Raises:
            BadInput: it is another program's file, or of a newer plan.
            StoreError: it cannot be opened, made or brought to this schema; the message says why.
        """
        path = path or default_path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"cannot make the folder of the store {path}: {error.strerror or error}") from None
        with _told(path):
            connection = sqlite3.connect(path, timeout=patience_seconds, isolation_level=None)
        return cls._prepared(path, connection, _upgrade)

    @classmethod
    def look(cls, path: Path | None = None) -> Self | None:
        """Opens the store to read it, also where it cannot be written; None where there is none.

        Raises:
            BadInput, StoreError: as of `open`.
        """
        path = path or default_path()
        with _told(path):
            if not path.exists():
                return None
        address = f"file:{quote(str(path.absolute()))}?mode="
        modes = _modes(path)
        for mode in modes:
            with _told(path):
                connection = sqlite3.connect(address + mode, timeout=PATIENCE_SECONDS, isolation_level=None, uri=True)
            try:
                return cls._prepared(path, connection, _check)
            except StoreError:
                if mode == modes[-1]:
                    raise
        return None

    @classmethod
    def _prepared(
        cls, path: Path, connection: sqlite3.Connection, prepare: Callable[[Path, sqlite3.Connection], None]
    ) -> Self:
        try:
            with _told(path):
                prepare(path, connection)
        except BaseException:
            connection.close()
            raise
        return cls(path, connection)

    def add(self, entry: Entry) -> int:
        """Stores a run and returns its number; a job that is there already keeps its row.

        Raises:
            StoreError: it could not be stored; the rows before it are all there.
        """
        bare = encoded(replace(entry, number=None))
        row = (entry.job, entry.seconds_since_epoch, entry.recipe.model, json.dumps(bare, allow_nan=False))
        with _told(self.path), _writing(self._connection):
            self._connection.execute(
                "INSERT INTO measurements (job, seconds_since_epoch, model, entry) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (job) DO NOTHING",
                row,
            )
            found = self._connection.execute("SELECT number FROM measurements WHERE job = ?", (entry.job,)).fetchone()
        return int(found[0])

    def entries(
        self,
        machine: Machine | None = None,
        model: str | None = None,
        limit: int | None = None,
        *,
        skipped: Skipped = lambda line: None,
    ) -> tuple[Entry, ...]:
        """The newest runs, newest first: of one machine, of one model, at most so many.

        A row that cannot be read is left out, and `skipped` is told in one line.
        """
        found: list[Entry] = []
        for entry in self._rows(model, skipped):
            if limit is not None and len(found) >= limit:
                break
            if machine is None or entry.machine.is_same_as(machine):
                found.append(entry)
        return tuple(found)

    def _rows(self, model: str | None, skipped: Skipped) -> Iterator[Entry]:
        with _told(self.path):
            rows = self._connection.execute(
                "SELECT number, entry FROM measurements WHERE ?1 IS NULL OR model = ?1 ORDER BY number DESC", (model,)
            )
            for number, text in rows:
                try:
                    yield replace(decoded(Entry, json.loads(text), "entry"), number=number)
                except (BadInput, ValueError, TypeError, RecursionError) as error:
                    skipped(f"run {number} of {self.path} is damaged and left out: {str(error)[:200]}")

    def count(self) -> int:
        """How many runs it holds, damaged ones included."""
        with _told(self.path):
            return int(self._connection.execute("SELECT count(*) FROM measurements").fetchone()[0])

    def close(self) -> None:
        with suppress(sqlite3.Error):  # a full disk: the log is written back by whoever opens it next
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _modes(path: Path) -> list[str]:
    """How to open a store to read it, the likeliest way first. In a folder that cannot be written, SQLite reads a file
    of this kind only if told that nobody writes, and then without the log of one who did not finish."""
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return ["rw", "ro"]
    log = path.with_name(f"{path.name}-wal")
    return ["ro"] if log.exists() and log.stat().st_size else ["ro", "ro&immutable=1"]


def _upgrade(path: Path, connection: sqlite3.Connection) -> None:
    """Brings a file to this schema, in one transaction: a new one from nothing, an older one step by step."""
    if _version(path, connection) == len(UPGRADES):
        connection.execute("PRAGMA synchronous = FULL")
        return
    _log_ahead(connection)
    connection.execute("PRAGMA synchronous = FULL")
    with _writing(connection):
        for step in range(_version(path, connection), len(UPGRADES)):  # asked again: another process may have done it
            for statement in filter(str.strip, UPGRADES[step].split(";")):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(UPGRADES)}")


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Switches to the write-ahead log. SQLite does not wait its turn for that, so we do."""
    patience = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if _reason(error) != "SQLITE_BUSY" or time.monotonic() > patience:
                raise
            time.sleep(0.02)


def _check(path: Path, connection: sqlite3.Connection) -> None:
    """A store that is only read must be of this schema, or be brought to it."""
    if _version(path, connection) < len(UPGRADES):
        _upgrade(path, connection)


def _version(path: Path, connection: sqlite3.Connection) -> int:
    """The schema of the file; 0 of a new one.

    Raises:
        BadInput: it is another program's database, or was written by a newer plan.
    """
    version, owner, holds = _at_one_moment(connection, *HEADER)
    if owner != APPLICATION_ID and (owner or version or holds):
        raise BadInput(f"{path} is a database of another program, not a store of measurements")
    if version > len(UPGRADES):
        raise BadInput(
            f"{path} was written by a newer plan (schema {version}; this one reads up to {len(UPGRADES)}): "
            "upgrade plan, or name another store"
        )
    return version


HEADER = ("PRAGMA user_version", "PRAGMA application_id", "SELECT count(*) FROM sqlite_master")


def _at_one_moment(connection: sqlite3.Connection, *questions: str) -> list[int]:
    """Answers that belong together: between two of them another process may have made the file a store."""
    begun = not connection.in_transaction
    if begun:
        connection.execute("BEGIN")
    try:
        return [int(connection.execute(question).fetchone()[0]) for question in questions]
    finally:
        if begun:
            connection.execute("ROLLBACK")


@contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction, with the file taken from its start: what is read in it stays true until it is written."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite has rolled back by itself where the disk was full
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """SQLite's errors as one line that names the file and the cause."""
    try:
        yield
    except sqlite3.Error as error:
        reason = _reason(error)
        if reason == "SQLITE_NOTADB":
            raise BadInput(f"{path} is no database; it was left as it is") from None
        said = next((text for prefix, text in CAUSES.items() if reason.startswith(prefix)), str(error))
        raise StoreError(f"the store {path} {said}") from None
    except OSError as error:
        raise StoreError(f"the store {path}: {error.strerror}") from None


def _reason(error: sqlite3.Error) -> str:
    """SQLite's name of the error, such as "SQLITE_FULL"."""
    return str(getattr(error, "sqlite_errorname", ""))


CAUSES = {
    "SQLITE_FULL": "cannot grow: the disk is full; what it holds is safe",
    "SQLITE_READONLY": "cannot be written: the file or its folder is read-only",
    "SQLITE_CANTOPEN": "cannot be opened: its folder is read-only, missing, no folder, or closed to this user",
    "SQLITE_PERM": "cannot be opened: this user may not",
    "SQLITE_BUSY": "is in use: another process kept it from being written for too long",
    "SQLITE_LOCKED": "is in use: another process kept it from being written for too long",
    "SQLITE_IOERR": "cannot be read or written: an error of the disk, or a limit on files; what it holds is safe",
    "SQLITE_CORRUPT": "is damaged; it was left as it is: move it away to start a new one",
}
