"""A server that is not there: one line after a bounded time, whatever the driver, and never the password."""

import socket
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="optuna is not installed")

from planner.sweep import storage
from planner.sweep.address import address_of
from planner.sweep.space import Space
from planner.sweep.storage import CONNECT_SECONDS, StudyError, engine
from planner.sweep.study import Study

SECONDS = 2
"""The least that libpq's own rules allow."""


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of a server that takes every connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refused(port: int, more: str = "") -> StudyError:
    address = address_of(f"postgresql+psycopg://me:hunter2%21@127.0.0.1:{port}/none{more}", Path("/nowhere"))
    with pytest.raises(StudyError) as found:
        Study.open(address, "never", ("loss",), Space(), patience_seconds=5.0)
    text = "".join(traceback.format_exception(found.value)) + repr(found.value)
    assert "hunter2" not in text and "me:***@127.0.0.1" in text and "\n" not in str(found.value)
    assert found.value.exit_code == 2
    return found.value


@pytest.mark.parametrize("from_url", [True, False])
def test_a_server_that_says_nothing_is_given_up(mute: int, from_url: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the seconds that the URL names, or else ours."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 300 if from_url else SECONDS)
    began = time.monotonic()
    error = refused(mute, f"?connect_timeout={SECONDS}" if from_url else "")
    assert time.monotonic() - began < 10
    assert "does not answer in time" in str(error)


def test_an_address_where_nobody_listens_is_bad_use() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # held, and not listened at
        assert "refused" in str(refused(held.getsockname()[1]))


@pytest.mark.parametrize(
    ("driver", "option"),
    [
        ("postgresql", "connect_timeout"),
        ("postgresql+psycopg2", "connect_timeout"),
        ("mysql+pymysql", "connect_timeout"),
        ("mysql+mysqlconnector", "connection_timeout"),
    ],
)
def test_every_driver_is_told_how_long_to_wait(driver: str, option: str) -> None:
    found = engine(address_of(f"{driver}://me@host/none", Path("/nowhere")), 5.0)["connect_args"]
    assert found[option] == CONNECT_SECONDS <= 15
    said = engine(address_of(f"{driver}://me@host/none?{option}=3", Path("/nowhere")), 5.0)["connect_args"]
    assert option not in said


def test_a_server_whose_machine_goes_away_is_noticed_within_half_a_minute() -> None:
    conninfo = pytest.importorskip("psycopg.conninfo", reason="psycopg is not installed")
    url = "postgresql+psycopg://me@host/none"
    found = engine(address_of(url, Path("/nowhere")), 5.0)["connect_args"]
    assert found["keepalives_idle"] + found["keepalives_interval"] * found["keepalives_count"] <= 30
    assert 0 < found["tcp_user_timeout"] <= 30_000
    assert conninfo.conninfo_to_dict(conninfo.make_conninfo("", **found)), "libpq knows each of them"
    said = engine(address_of(f"{url}?keepalives_idle=60", Path("/nowhere")), 5.0)["connect_args"]
    assert "keepalives_idle" not in said and "tcp_user_timeout" in said
