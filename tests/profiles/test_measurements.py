"""The measured runs: every line is whole, says with what it was made, and is about things that the catalogue has."""

import json
from typing import Any

import pytest

import profiles
from benchmarks.figures import CAPPED, FILES, written
from benchmarks.predicted import PREDICTED, foretold
from benchmarks.published import FIELD_OF, WITHOUT_SPEED, Published, published, timed
from estimators.catalogue import find_device
from estimators.document import from_document
from estimators.measurement import measurements
from estimators.models import load_model

OURS = [*FILES, *CAPPED]
COMMANDS = ("python benchmarks/measure_recipes.py", "plan measure")
"""That ran what was predicted."""


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in profiles.read("measurements", f"{name}.jsonl").splitlines()]


def test_every_file_is_shown() -> None:
    assert set(profiles.names("measurements", ".jsonl")) == {*OURS, "published"}


@pytest.mark.parametrize("name", OURS)
def test_a_run_says_what_it_was_and_with_what_it_was_made(name: str) -> None:
    rows = lines(name)
    assert len({row["name"] for row in rows}) == len(rows) >= 8
    for row in rows:
        assert load_model(from_document(row["recipe"]).model)
        if row["outcome"] == "ok":
            assert find_device(row["gpu"]).name in ("h200-sxm", "h100-sxm")
            assert {"torch", "transformers"} <= row["versions"].keys()
            assert len(row["ranks"]) == from_document(row["recipe"]).parallelism.devices
        else:
            assert row["outcome"] == "out_of_memory"
            assert "out of memory" in row["evidence"]


@pytest.mark.parametrize("name", FILES)
def test_counters_are_in_their_order(name: str) -> None:
    for run in measurements(name):
        for rank in run.ranks:
            assert 0 < rank.peak_allocated_bytes <= rank.peak_reserved_bytes
            assert rank.process_bytes is None or rank.process_bytes > rank.peak_reserved_bytes


@pytest.mark.parametrize("name", [*OURS, "published"])
def test_the_dry_run_was_asked_about_every_run(name: str) -> None:
    assert list(written()[name]) == [row["name"] for row in lines(name)]


def test_enough_published_runs_are_kept_and_no_two_are_one() -> None:
    rows = published()
    assert len({row.name for row in rows}) == len(rows) >= 40
    assert len({(row.source, row.recipe, row.gpu) for row in rows}) >= len(rows) - 1  # LoRA's scale costs nothing


@pytest.mark.parametrize("row", published(), ids=lambda row: row.name)
def test_a_published_run_has_a_source_and_could_have_run(row: Published) -> None:
    assert row.source and row.where and row.notes
    assert row.implementation in ("transformers and PEFT", "other implementation")
    assert row.unit in ("GB", "GiB") and row.metric in FIELD_OF
    assert row.gpus == row.recipe.parallelism.devices <= 8
    assert load_model(row.recipe.model).name == row.recipe.model
    assert row.peak_bytes or row.tokens_per_second
    assert row.peak_bytes is None or row.peak_bytes < find_device(row.gpu).total_bytes


@pytest.mark.parametrize(("name", "command"), list(zip(PREDICTED, COMMANDS, strict=True)))
def test_what_was_predicted_is_kept_as_it_was_said_and_says_how_it_was_run(name: str, command: str) -> None:
    runs = foretold(name)
    assert [run.name for run in runs] == [run.name for run in measurements(name)]
    for run in runs:
        assert run.command.startswith(command)
        assert {("step_seconds", "dry run"), ("peak_reserved_bytes", "dry run")} <= run.errors.keys()


def test_sources_whose_speed_is_left_out_say_why_and_no_row_of_the_set_is_theirs() -> None:
    assert len(timed()) == 37
    assert all(len(why) > 10 for why in WITHOUT_SPEED.values())
    assert {row.gpu for row in timed()} == {"a100-sxm4-40gb", "a100-sxm4-80gb", "l40s"}
