"""The command that a sweep ends with: run as it is printed, it writes the recipe that was measured."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("optuna", reason="optuna is not installed")

from estimators.outcome import Outcome
from estimators.recipe import Adapter, Recipe
from planner.cli import command
from planner.commands.ordering import order_of, subject_of
from planner.commands.sweep import _appraiser
from planner.commands.sweep import command as sweep_command
from planner.report.page import plain
from planner.report.sweep import sweep_page
from planner.report.telling import recipe_command
from planner.sweep.address import address_of
from planner.sweep.result import Sweep, Trial
from planner.sweep.space import Configuration
from tests.planner.sweeps import LEARN, sweep
from tests.runners.tiny_job import CONFIG

ON_CPU = (
    "--cpu", "--ranks", "2,4", "--steps", "4", "--seq-len", "16", "--global-batch", "8", "--repeats", "0",
    "--learning-rates", "3e-4",
)  # fmt: skip


def folder_of_weights(folder: Path) -> Path:
    """As far as a plan looks at them."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rows = ({"prompt": str(number), "completion": "yes"} for number in range(8))
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def swept(tmp_path: Path, *words: str) -> Sweep:
    """By children that only say that they trained."""
    with sweep_command.make_context("sweep", list(words)) as context:
        values = dict(context.params)
    subject = subject_of(values)
    one = order_of(subject, values)
    one = replace(one, folder=tmp_path / "sweep", address=address_of(None, tmp_path / "sweep"))
    return sweep(one, LEARN, appraiser=_appraiser(subject, one.work.terms, values))


def emitted(done: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], str]:
    """The recipe that the closing command, as it stands on the page, writes down, and the script."""
    page = "\n".join(plain(line) for line in sweep_page(done, 80))
    line = next(line for line in page.splitlines() if "--emit run" in line)
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(command, [*shlex.split(line)[1:], "--fast"])
    assert found.exit_code == 0, found.output
    recipe: dict[str, Any] = json.loads((tmp_path / "run/plan.json").read_text())["chosen"]["recipe"]
    return recipe, (tmp_path / "run/train.py").read_text()


@pytest.mark.parametrize(
    "more",
    [
        ("--targets", "all-linear", "--dropouts", "0.05"),
        ("--methods", "full", "--packing", "--micro-batches", "2"),
        ("--attention", "eager", "--padded"),
    ],
)
def test_after_a_sweep_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]) -> None:
    folder = folder_of_weights(tmp_path / "weights")
    words = ("--model", "llama-3.2-1b", "--weights", str(folder), "--data", str(folder / "train.jsonl"))
    done = swept(tmp_path, *words, *ON_CPU, *more)
    assert done.recommendation is not None
    measured = json.loads((tmp_path / f"sweep/trials/{done.recommendation.number:04d}-1/job.json").read_text())
    recipe, script = emitted(done, tmp_path, monkeypatch)
    differ = {name for name, value in measured["recipe"].items() if recipe[name] != value}
    assert differ - {"expandable_segments", "padded"} == {"model", "optimizer"}, "nothing that changes what is learned"
    assert recipe["model"] == str(folder) and recipe["optimizer"] == "adamw_torch_fused"
    assert f"WEIGHTS = {str(folder)!r}" in script
    assert str(folder / "train.jsonl") in script


def test_what_the_trials_of_a_gpu_were_run_with_is_said_although_plan_may_choose_otherwise(tmp_path: Path) -> None:
    adapter = Adapter(method="lora", rank=8, alpha=32, targets=("q_proj", "v_proj"))
    one = Trial(
        number=0, configuration=Configuration(rank=8, alpha=32), recipe=Recipe(model="llama-3.2-1b", adapter=adapter),
        seed=42, place="GPU 0", outcome=Outcome.OK, vram_bytes=12 << 30,
    )  # fmt: skip
    said = shlex.join(recipe_command(one, "--data", "train.jsonl"))
    assert "--no-expandable-segments --attention sdpa --offload never" in said
    assert "segments" not in shlex.join(recipe_command(replace(one, vram_bytes=None), "--data", "train.jsonl"))


def test_schedule_and_seed_of_the_trials_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of_weights(tmp_path / "weights")
    words = ("--model", str(folder), "--weights", str(folder), "--data", str(folder / "train.jsonl"), *ON_CPU)
    done = swept(tmp_path, *words, "--schedule", "cosine", "--warm-up-steps", "0", "--seed", "7")
    recipe, script = emitted(done, tmp_path, monkeypatch)
    assert recipe["seed"] == 7
    assert all(one in script for one in ("'lr_scheduler_type': 'cosine'", "'warmup_steps': 0,", "'seed': 7"))


def test_what_plan_cannot_be_told_is_said_beside(tmp_path: Path) -> None:
    folder = folder_of_weights(tmp_path / "weights")
    words = ("--model", str(folder), "--weights", str(folder), "--data", str(folder / "train.jsonl"), *ON_CPU)
    for more, said in (((), False), (("--evaluate-every", "2", "--patience", "3"), True)):
        with sweep_command.make_context("sweep", [*words, *more]) as context:
            values = dict(context.params)
        notes = " ".join(order_of(subject_of(values), values).settings.notes)
        assert ("trials had a patience of 3" in notes) == ("plan --emit" in notes) == said
