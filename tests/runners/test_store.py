"""The store keeps what it acknowledged, whatever ends its writer, and says in one line what stops it."""

import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import runners.store
from estimators.errors import BadInput, PlanError
from estimators.measurement import RankPeak
from estimators.outcome import Outcome
from estimators.record import Measured
from runners.machine import processor_name, this_machine
from runners.store import Store, StoreError, default_path
from tests.entries import LORA, entry, expected, machine

ROOT = Path(__file__).parents[2]
KILLS = 40
NURSERY = """
import os, random, signal, sys, time
from itertools import count
from pathlib import Path
from estimators.outcome import Outcome
from estimators.record import Measured
from runners.store import Store
from tests.entries import entry

LARGE = Measured(outcome=Outcome.FAILED, evidence="of several pages " * 4000)
path, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)

def write_until_killed(writer, pipe):
    with Store.open(path) as store:
        for number in count():
            job = f"{seed}-{writer}-{number}"
            store.add(entry(job, measured=LARGE))
            os.write(pipe, f"{job}\\n".encode())

for writer in range(kills):
    back, pipe = os.pipe()
    child = os.fork()
    if not child:
        write_until_killed(writer, pipe)
    os.close(pipe)
    time.sleep(chance.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while text := os.read(back, 1 << 16):
        os.write(1, text)
    os.close(back)
"""
TOO_LARGE = """
import resource, signal, sys
from pathlib import Path
from estimators.errors import PlanError
from runners.store import Store
from tests.entries import entry

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Store.open(Path(sys.argv[1])) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    try:
        for number in range(1000):
            store.add(entry(str(number)))
            print(number)
    except PlanError as error:
        print(error, file=sys.stderr)
"""


def python(code: str, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def integrity(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "measurements.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as made:
        yield made


def test_a_run_comes_back_as_it_was(store: Store, path: Path) -> None:
    peak = RankPeak(loaded_bytes=1, peak_allocated_bytes=2, peak_reserved_bytes=3, process_bytes=None,
                    outside_torch_bytes=4, host_used_bytes=5)  # fmt: skip
    whole = Measured(
        outcome=Outcome.TIMED_OUT, ranks=(peak, peak), step_seconds=0.5, step_spread_seconds=0.1,
        tokens_per_second=100.5, real_tokens_per_second=90.0, flops_utilisation=0.4, energy_joules=300.0,
        allocator_retries=2, phases={"load": 7}, marks=("a co-tenant",), evidence="no step for 600 s",
    )  # fmt: skip
    run = expected(entry("first", measured=whole))
    number = store.add(run)
    with Store.open(path) as again:
        assert again.entries() == (replace(run, number=number),)


def test_a_job_added_again_is_the_row_that_it_was(store: Store) -> None:
    first = store.add(entry("job"))
    assert store.add(entry("another")) != first
    assert store.add(entry("job", seconds_since_epoch=1.0)) == first
    assert store.count() == 2
    assert store.entries()[-1].seconds_since_epoch == entry().seconds_since_epoch


def test_the_newest_of_a_machine_and_a_model_come_first(store: Store) -> None:
    small = replace(LORA, model="smollm2-135m")
    for job, recipe, host in (("a", LORA, "x"), ("b", small, "x"), ("c", LORA, "y"), ("d", LORA, "x")):
        store.add(entry(job, recipe=recipe, machine=machine(host)))
    assert [run.job for run in store.entries()] == ["d", "c", "b", "a"]
    assert [run.job for run in store.entries(machine=machine("x"))] == ["d", "b", "a"]
    assert [run.job for run in store.entries(machine("x"), model="llama-3.2-1b", limit=1)] == ["d"]
    assert store.entries(limit=0) == ()


def test_a_machine_is_known_by_its_gpus_and_else_by_its_name() -> None:
    renamed = machine("container-2", uuid="GPU-box")
    assert machine("box").is_same_as(renamed)
    assert not machine("box").is_same_as(machine("box", uuid="GPU-other"))
    assert not machine("box").is_same_as(replace(machine("box"), processor="Another CPU"))
    nameless = replace(machine("box"), gpu_hashes=())
    assert nameless.is_same_as(machine("box"))
    assert not nameless.is_same_as(machine("other"))
    assert "box" not in repr(machine("box"))


def test_this_machine_is_named_by_its_processor(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Intel(R)  Xeon(R) Platinum\n")
    assert this_machine([], tmp_path).processor == "Intel(R) Xeon(R) Platinum"
    assert processor_name(tmp_path / "nowhere")


def test_what_was_acknowledged_survives_kills_at_any_moment(path: Path) -> None:
    path.parent.mkdir()
    seeds = random.Random(4).sample(range(1000), 2)
    nurseries = [python(NURSERY, str(path), str(seed), str(KILLS)) for seed in seeds]
    ends = [nursery.communicate(timeout=120) for nursery in nurseries]
    acknowledged = [job for out, _ in ends for job in out.split()]
    assert [err for _, err in ends] == ["", ""]
    assert len(acknowledged) > KILLS
    with Store.open(path) as store:
        stored = [run.job for run in store.entries(skipped=pytest.fail)]
    assert len(stored) == len(set(stored))
    assert set(acknowledged) <= set(stored)
    # A row may be there that its writer died before it could acknowledge: at most one a writer.
    assert len(stored) - len(acknowledged) <= 2 * KILLS
    assert integrity(path) == "ok"


def test_a_full_disk_is_said_and_loses_nothing(store: Store, path: Path) -> None:
    store.add(entry("before"))
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages + 4}")  # SQLite's own SQLITE_FULL
    kept = ["before"]
    with pytest.raises(PlanError, match=r"the disk is full; what it holds is safe$") as full:
        for number in range(1000):
            store.add(entry(str(number)))
            kept.append(str(number))
    assert str(path) in str(full.value) and "\n" not in str(full.value)
    assert [run.job for run in store.entries()] == kept[::-1]
    store._connection.execute("PRAGMA max_page_count = 100000")
    store.add(entry("after"))
    assert [run.job for run in store.entries(limit=1)] == ["after"]
    assert integrity(path) == "ok"


def test_a_disk_that_takes_no_more_is_said_and_loses_nothing(path: Path) -> None:
    out, err = python(TOO_LARGE, str(path)).communicate(timeout=60)
    assert err.count("\n") == 1 and str(path) in err and "what it holds is safe" in err
    with Store.open(path) as store:
        assert [run.job for run in store.entries()] == out.split()[::-1] != []
    assert integrity(path) == "ok"


def test_a_read_only_store_is_read_and_not_written(store: Store, path: Path) -> None:
    store.add(entry("kept"))
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    with Store(path, connection) as fixed:
        with pytest.raises(PlanError, match="read-only"):
            fixed.add(entry("lost"))
        assert [run.job for run in fixed.entries()] == ["kept"]


@pytest.mark.parametrize("sealed", [False, True])
def test_a_store_in_a_folder_that_cannot_be_written_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    with Store.open(path) as store:
        store.add(entry("kept"))
    if sealed:
        monkeypatch.setattr(os, "access", lambda *_: False)
    before = path.read_bytes()
    found = Store.look(path)
    assert found is not None
    with found:
        assert [run.job for run in found.entries()] == ["kept"]
    assert path.read_bytes() == before


def test_a_row_is_on_the_disk_before_it_is_acknowledged(store: Store) -> None:
    """Power may fail too: SQLite's log is written ahead, and waited for at every commit."""
    modes = [store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert modes == ["wal", 2]


def test_looking_makes_nothing(path: Path) -> None:
    assert Store.look(path) is None
    assert not path.parent.exists()


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be one " * 20, b"short"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    for way in (Store.open, Store.look):
        with pytest.raises(BadInput, match="is no database; it was left as it is"):
            way(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE cookies (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(BadInput, match="another program"):
        Store.open(path)
    assert path.read_bytes() == before


def test_a_newer_plans_store_is_refused_in_one_line(store: Store, path: Path) -> None:
    store._connection.execute("PRAGMA user_version = 99")
    for way in (Store.open, Store.look):
        with pytest.raises(BadInput, match=r"written by a newer plan \(schema 99; .*\): upgrade plan"):
            way(path)


def test_an_older_store_is_upgraded_with_its_rows(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(entry("old"))
    monkeypatch.setattr(
        runners.store, "UPGRADES", (*runners.store.UPGRADES, "ALTER TABLE measurements ADD COLUMN note TEXT;")
    )
    with Store.open(path) as newer:
        assert [run.job for run in newer.entries()] == ["old"]
        assert newer._connection.execute("SELECT note FROM measurements").fetchall() == [(None,)]
    with Store.open(path) as again:
        assert again.add(entry("new")) == 2


def test_an_upgrade_that_fails_leaves_the_store_as_it_was(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(entry("old"))
    broken = "CREATE TABLE half (done TEXT); CREATE TABLE measurements (twice TEXT);"
    with monkeypatch.context() as patched:
        patched.setattr(runners.store, "UPGRADES", (*runners.store.UPGRADES, broken))
        with pytest.raises(StoreError):
            Store.open(path)
    with Store.open(path) as same:
        assert [run.job for run in same.entries()] == ["old"]
        assert not same._connection.execute("SELECT * FROM sqlite_master WHERE name = 'half'").fetchall()


@pytest.mark.parametrize("damage", ["{", "[]", "null", '{"job": 3}', "\x00", "[" * 100_000])
def test_a_damaged_row_is_skipped_with_one_line(store: Store, damage: str) -> None:
    for job in ("a", "b", "c"):
        store.add(entry(job))
    store._connection.execute("UPDATE measurements SET entry = ? WHERE job = 'b'", (damage,))
    lines: list[str] = []
    assert [run.job for run in store.entries(skipped=lines.append)] == ["c", "a"]
    assert len(lines) == 1 and "run 2 of" in lines[0] and "\n" not in lines[0]


def test_a_row_with_a_figure_of_the_wrong_kind_is_skipped(store: Store) -> None:
    store.add(entry("a"))
    store._connection.execute("UPDATE measurements SET entry = json_set(entry, '$.measured.step_seconds', 'fast')")
    lines: list[str] = []
    assert store.entries(skipped=lines.append) == ()
    assert "entry.measured.step_seconds" in lines[0]


def test_a_damaged_file_is_said_and_left_alone(path: Path) -> None:
    with Store.open(path) as store:
        for number in range(50):
            store.add(entry(str(number)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PlanError, match="is damaged; it was left as it is"), Store.open(path) as cut:
        cut.entries()
    assert path.read_bytes() == whole[: len(whole) // 2]


def test_a_writer_waits_for_another_but_not_for_ever(store: Store, path: Path) -> None:
    with Store.open(path, patience_seconds=0.05) as hasty:
        store._connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(PlanError, match="another process"):
            hasty.add(entry("late"))
        store._connection.execute("ROLLBACK")
        assert hasty.add(entry("late")) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="cannot make the folder of the store"):
        Store.open(tmp_path / "file" / "below" / "store.sqlite")
    with pytest.raises(PlanError, match="cannot be opened"):
        Store.open(tmp_path)


def test_the_store_lies_where_the_user_keeps_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_path() == tmp_path / "finetune-plan" / "measurements.sqlite"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local/share/finetune-plan/measurements.sqlite"
    with Store.open() as store:
        assert store.count() == 0
    assert (tmp_path / ".local/share/finetune-plan").stat().st_mode & 0o077 == 0


def test_two_that_make_a_store_at_once_take_each_other_for_no_other_program(path: Path) -> None:
    """Between two questions of the first to a file that is still empty, the second makes it a store."""
    path.parent.mkdir()
    others: list[threading.Thread] = []

    def make(statement: str) -> None:
        if "sqlite_master" in statement and not others:
            others.append(threading.Thread(target=lambda: Store.open(path).close()))
            others[0].start()
            others[0].join(timeout=1.0)

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.set_trace_callback(make)
        assert runners.store._version(path, connection) == 0
    others[0].join(timeout=30.0)
    with Store.open(path) as store:
        assert store.count() == 0
