"""The database under a study: how it is opened, who may write it, and its errors as one line without a password."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from estimators.errors import BadInput, PlanError
from planner.sweep.address import Address
from runners.store import CAUSES

PATIENCE_SECONDS = 30.0
CONNECT_SECONDS = 10
"""For each address of a server's name, where the URL itself says nothing."""
_CONNECT = {
    "psycopg": "connect_timeout", "psycopg2": "connect_timeout", "pymysql": "connect_timeout",
    "mysqldb": "connect_timeout", "mariadbconnector": "connect_timeout", "mysqlconnector": "connection_timeout",
    "pg8000": "timeout",
}  # fmt: skip
"""What a driver calls the seconds after which it gives a connection up; by itself none does."""
_GONE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4, "tcp_user_timeout": 30_000}
"""For libpq: a server whose machine is gone is noticed after half a minute, and not after the kernel's quarter hour."""
_LATE = re.compile(r"time-?d? ?out", re.IGNORECASE)
_LOCKS = {
    "postgresql": "SELECT pg_try_advisory_lock({key})",
    "mysql": "SELECT GET_LOCK('plan-sweep-{key}', 0)",
    "mariadb": "SELECT GET_LOCK('plan-sweep-{key}', 0)",
}
"""What a server's own lock is asked for with: it goes when the connection does."""


class StudyError(PlanError):
    """The study cannot be used, and the message names it and the cause; what it holds is as it was."""


class UnreachableError(StudyError):
    """The address was never reached, so it is what the user typed, or a server that is down."""

    exit_code = 2


def engine(address: Address, patience_seconds: float) -> dict[str, Any]:
    """How the database is connected to: neither a lock nor a connection is waited for without end."""
    if address.path is not None:
        return {"connect_args": {"timeout": patience_seconds}}
    driver = address.driver
    given = {_CONNECT[driver]: CONNECT_SECONDS} if driver in _CONNECT else {}
    given |= _GONE if driver.startswith("psycopg") else {}
    return {
        "pool_pre_ping": True,
        "connect_args": {name: v for name, v in given.items() if name not in address.parameters},
    }


def check(storage: Any, address: Address) -> None:
    """
    Raises:
        StudyError: pages of the file are damaged.
    """
    if address.path is None:
        return
    with storage.engine.connect() as connection:
        found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if found != "ok":
        raise StudyError(f"the study {address.shown} {CAUSES['SQLITE_CORRUPT']}")


@contextmanager
def server_lock(storage: Any, address: Address, name: str) -> Iterator[None]:
    """
    Raises:
        BadInput: another supervisor has the study.
    """
    question = _LOCKS.get(storage.engine.dialect.name)
    if question is None:
        yield
        return
    connection = storage.engine.connect()
    try:
        key = int.from_bytes(name.encode()[-6:], "big")
        if not connection.exec_driver_sql(question.format(key=key)).scalar():
            raise BadInput(f"another process is running this sweep already (study {name} of {address.shown})")
        connection.commit()
        yield
    finally:
        with suppress(Exception):
            connection.invalidate()  # ends the session on the server, and the lock with it
            connection.close()


@contextmanager
def told(address: Address, *, opening: bool = False) -> Iterator[None]:
    """The libraries' errors as one line that names the study and the cause, and no password."""
    try:
        yield
    except PlanError:
        raise
    except ImportError as error:
        raise BadInput(f"--storage {address.shown} needs a driver that is not installed: {error}") from None
    except Exception as error:
        reason, text = _cause(error)
        if reason == "SQLITE_NOTADB":
            raise BadInput(f"{address.shown} is no database; it was left as it is") from None
        said = next((words for prefix, words in CAUSES.items() if reason.startswith(prefix)), None)
        line = address.clean(" ".join(text.split()))[:300]
        if opening and address.path is None and _never_connected(error):
            how = "does not answer in time" if _LATE.search(line) else "cannot be used"
            raise UnreachableError(f"the study {address.shown} {how}: {line}") from None
        raise StudyError(f"the study {address.shown} {said or f'cannot be used: {line}'}") from None


def _never_connected(error: BaseException | None) -> bool:
    """SQLAlchemy's errors name the statement that failed, and a connection that failed has none."""
    while error is not None and not hasattr(error, "statement"):
        error = error.__cause__ or error.__context__
    return error is not None and getattr(error, "statement", "") is None


def _cause(error: BaseException) -> tuple[str, str]:
    """What SQLite calls the first cause of an error, and what the error says."""
    text, seen = "", error
    while True:
        text = f"{type(seen).__name__}: {getattr(seen, 'orig', None) or seen}"
        if name := getattr(seen, "sqlite_errorname", ""):
            return str(name), text
        deeper = seen.__cause__ or seen.__context__
        if deeper is None:
            return "", text
        seen = deeper
