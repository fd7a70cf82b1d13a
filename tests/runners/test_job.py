"""A job folder says all that a child needs, is read strictly, and never holds half a file."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from estimators.errors import BadInput
from estimators.learning import Training
from runners import job
from tests.runners import tiny_job


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    work = job.Job(
        recipe=tiny_job.recipe(padded=True), config=tiny_job.CONFIG, steps=9, budget_bytes=1 << 30,
        training=Training(schedule="cosine", warm_up_steps=2, held_out="/held", evaluate_every=3, metric="m:f",
                          metric_folder="/work", clip_norm=0.0, patience=2),
    )  # fmt: skip
    assert job.read(job.create(tmp_path / "new" / "folder", work)) == work
    assert work.versions["torch"] and work.token != replace(work, token=job.new_token()).token


def test_a_job_is_for_its_owner_alone(tmp_path: Path) -> None:
    assert tiny_job.make(tmp_path / "job").stat().st_mode & 0o077 == 0


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(BadInput, match="not empty"):
        tiny_job.make(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"trust_remote_code": True}, "unknown key 'trust_remote_code'"),
        ({"steps": 0}, "steps"),
        ({"steps": True}, "steps"),
        ({"weights": "../elsewhere"}, "weights"),
        ({"data": "rows.jsonl"}, "data"),
        ({"token": "x; rm -rf /"}, "token"),
        ({"budget_bytes": -1}, "budget_bytes"),
        ({"save": 1}, "save"),
        ({"schema_version": 1}, "schema_version must be 2"),
        ({"recipe": {"model": "tiny"}}, "adapter"),
        ({"training": None}, "training: must be an object"),
        ({"training": {"epochs": 3}}, "training: unknown key 'epochs'"),
        ({"training": {"schedule": "warm"}}, "unknown learning-rate schedule 'warm'"),
        ({"training": {"warm_up_steps": -1}}, "warm_up_steps must be at least 0"),
        ({"training": {"clip_norm": "nan"}}, "clip_norm"),
        ({"training": {"weight_decay": True}}, "weight_decay"),
        ({"training": {"held_out": "rows.jsonl"}}, "held_out must be an absolute path"),
        ({"training": {"held_out": "/rows", "evaluate_every": 0}}, "evaluate_every must be at least 1"),
        ({"training": {"patience": 2}}, "held out"),
        ({"training": {"held_out": "/rows", "metric": "a.b:c"}}, "folder"),
        ({"training": {"held_out": "/rows", "metric": "os.system('x')", "metric_folder": "/m"}}, "module:function"),
    ],
)
def test_anything_unexpected_is_refused_by_name(tmp_path: Path, change: dict[str, object], named: str) -> None:
    path = tiny_job.make(tmp_path) / job.JOB
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadInput, match=named):
        job.read(tmp_path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tiny_job.make(tmp_path) / job.JOB
    document = json.loads(path.read_text())
    del document["seed"]
    path.write_text(json.dumps(document))
    with pytest.raises(BadInput, match="missing key 'seed'"):
        job.read(tmp_path)


def test_a_file_torn_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tiny_job.make(tmp_path) / job.JOB
    whole = path.read_bytes()
    for length in range(0, len(whole.rstrip()), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput):
            job.read(tmp_path)


@pytest.mark.parametrize("operation", ["fsync", "write"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    path = tmp_path / "result.json"
    job.write_atomically(path, {"run": 1})

    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", full) if operation == "fsync" else (json, "dump", full)))
    with pytest.raises(OSError, match="No space left"):
        job.write_atomically(path, {"run": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"run": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
