"""`plan history` as its user meets it: the stored runs beside what had been expected of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from estimators.errors import PlanError
from estimators.measurement import RankPeak
from estimators.outcome import Outcome
from estimators.recipe import Parallelism
from estimators.record import Measured
from planner.commands.history import command
from planner.report.history import history_page, method_of
from planner.report.page import plain
from runners.store import Store
from tests.entries import LORA, entry, expected, rank

History = Callable[..., Result]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "measurements.sqlite"


@pytest.fixture
def history(path: Path) -> History:
    def run(*words: str) -> Result:
        return CliRunner().invoke(command, ["--store", str(path), *words], standalone_mode=False)

    return run


def fill(path: Path, count: int = 1) -> None:
    run = expected(entry())
    assert run.prediction is not None
    peak: RankPeak = rank(4 << 30, process=round(run.prediction.process.value * 2))
    with Store.open(path) as store:
        for number in range(count):
            measured = Measured(outcome=Outcome.OK, ranks=(peak,), step_seconds=run.prediction.step_seconds.value)
            store.add(replace(run, job=str(number), measured=measured))


def test_an_empty_store_says_so_and_how_to_fill_it(history: History, path: Path) -> None:
    done = history()
    assert done.exception is None
    assert "No run was measured yet" in done.output and str(path) in done.output.replace("\n", "")
    assert "plan measure --model llama-3.2-1b --method lora --weights random" in done.output
    assert not path.exists()


def test_a_run_stands_beside_what_was_expected_of_it(history: History, path: Path) -> None:
    fill(path)
    head, row, *_, note = history().stdout.split("\n", maxsplit=3)
    assert head.split() == [
        "run",
        "when",
        "(UTC)",
        "model",
        "method",
        "GiB",
        "took",
        "off",
        "step",
        "took",
        "off",
        "end",
    ]
    assert row.split()[:5] == ["1", "2026-11-18", "11:06", "llama-3.2-1b", "lora"]
    assert "on h200-sxm" in " ".join(note.split())
    assert "−50.0 %" in row and "0.0 %" in row and row.endswith("ok")


def test_runs_on_several_kinds_of_gpu_name_each(path: Path) -> None:
    runs = [entry("a"), entry("b", gpu="rtx-4090")]
    head, *rows = [plain(line) for line in history_page(runs, 2, str(path), 120)]
    assert "GPU" in head and "h200-sxm" in rows[0] and "rtx-4090" in rows[1]


def test_a_bad_end_shows_its_evidence_and_no_error(history: History, path: Path) -> None:
    dead = Measured(outcome=Outcome.OUT_OF_MEMORY, ranks=(rank(1 << 30),), evidence="CUDA out of memory.\x1b[31m Tried")
    shared = replace(entry().measured, marks=("another process took 10 GiB",))
    with Store.open(path) as store:
        store.add(replace(expected(entry("dead")), measured=dead))
        store.add(replace(expected(entry("shared")), measured=shared))
    out = history().stdout
    assert "out of memory" in out and "run 1  CUDA out of memory.?[31m Tried" in out
    assert "disturbed" in out and "run 2  another process took 10 GiB" in out
    runs = json.loads(history("--json").stdout)["runs"]
    assert set(runs[1]["errors"].values()) == {None}


def test_a_run_without_a_prediction_is_listed_too(history: History, path: Path) -> None:
    with Store.open(path) as store:
        store.add(entry())
    done = history()
    assert done.exception is None and "250 ms" in done.stdout


def test_json_is_one_document_with_whole_runs(history: History, path: Path) -> None:
    fill(path, 30)
    document = json.loads(history("--json").stdout)
    assert (document["schema_version"], document["stored"], document["store"]) == (1, 30, str(path))
    assert len(document["runs"]) == 30
    run = document["runs"][0]
    assert run["number"] == 30 and run["method"] == "lora"
    assert run["recipe"]["model"] == "llama-3.2-1b" and run["prediction"]["evidence"] == "formula"
    assert run["errors"]["process_bytes"] == pytest.approx(-0.5, abs=1e-6)
    assert run["errors"]["step_seconds"] == 0.0


def test_the_newest_twenty_are_shown_or_as_many_as_asked_for(history: History, path: Path) -> None:
    fill(path, 25)
    assert history().stdout.count(" lora ") == 20
    assert "20 of 25 runs" in history().stdout
    assert history("--limit", "3").stdout.count(" lora ") == 3
    assert len(json.loads(history("--json", "--limit", "2").stdout)["runs"]) == 2


def test_runs_of_one_model(history: History, path: Path) -> None:
    fill(path, 2)
    with Store.open(path) as store:
        store.add(entry("other", recipe=replace(LORA, model="gpt2")))
    assert [run["recipe"]["model"] for run in json.loads(history("--json", "--model", "gpt2").stdout)["runs"]] == [
        "gpt2"
    ]
    assert "None of the 3 runs" in history("--model", "unheard-of").stdout


def test_a_damaged_row_costs_one_warning(history: History, path: Path) -> None:
    fill(path, 2)
    with Store.open(path) as store:
        store._connection.execute("UPDATE measurements SET entry = '{' WHERE number = 1")
    done = history()
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("warning: run 1 of")
    assert done.stdout.count(" lora ") == 1


def test_a_file_that_is_no_store_is_refused_in_one_line(history: History, path: Path) -> None:
    path.write_text("not a database " * 50)
    done = history()
    assert isinstance(done.exception, PlanError) and done.exception.exit_code == 2
    assert "is no database" in str(done.exception) and "\n" not in str(done.exception)


@pytest.mark.parametrize("words", [("--limit", "0"), ("--limit", "many")])
def test_a_wrong_limit_is_named(history: History, words: tuple[str, ...]) -> None:
    done = history(*words)
    assert isinstance(done.exception, PlanError) and "--limit must be a whole number" in str(done.exception)


def test_methods_are_named_as_people_name_them() -> None:
    spread = replace(LORA, parallelism=Parallelism(kind="zero2", devices=2, offload=("optimizer",)))
    recipes = [LORA, replace(LORA, quantization="nf4"), replace(LORA, quantization="int8"), spread]
    assert [method_of(recipe) for recipe in recipes] == ["lora", "qlora", "int8 lora", "lora zero2 × 2 offload"]


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_a_page_keeps_to_its_width(width: int) -> None:
    runs = [replace(expected(entry(str(number))), number=number) for number in range(3)]
    lines = [plain(line) for line in history_page(runs, 3, "/home/someone/store.sqlite", width)]
    assert max(map(len, lines)) <= max(width, 96)
