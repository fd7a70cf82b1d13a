"""Dry runs on the command line: what is said while they run, what the answer carries, and what stands in for them."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import planner.dry
import profiles
import runners.dry.tracer
from estimators.document import to_document
from estimators.errors import BadInput
from estimators.hardware import Device
from estimators.memory import estimate_memory
from estimators.models import load_model
from estimators.recipe import Adapter, Recipe
from estimators.traced import Traced
from estimators.work import Work
from planner.__main__ import main
from planner.report.progress import Progress
from runners.dry.tracer import DryRuns

LORA = Adapter(method="lora", rank=8, alpha=32, targets=("q_proj",))
RECIPE = Recipe(model="llama-7b", adapter=LORA)
CARD = ("--model", "llama-7b", "--gpus", "1xrtx-4090")
RESERVED = 16 << 30
"""What the stand-in finds that any recipe reserves."""


class Answer:
    """What a command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Run = Callable[..., Answer]


def traced(allocated: int, reserved: int = RESERVED) -> Traced:
    return Traced(
        loaded_bytes=allocated // 2,
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=max(allocated, reserved),
        peak_moment="backward pass, block 3",
        terms={"weights": allocated},
        phases={"load": allocated // 2, "backward pass": reserved},
        worst_allocated_bytes=allocated,
        worst_reserved_bytes=max(allocated, reserved),
        work=Work(loads={}),
        layers_traced=5,
        seconds=3.5,
    )


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `plan` where a dry run finds 2 % less than the formula, instantly."""

    def trace(self: DryRuns, recipe: Recipe, device: Device) -> Traced:
        memory = estimate_memory(load_model(recipe.model), recipe, device)
        return traced(round(0.98 * memory.allocated_bytes), 0)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(planner.dry, "what_is_missing", lambda: None)
    monkeypatch.setattr(runners.dry.tracer, "versions", lambda: {"torch": "9.9.9"})
    monkeypatch.setattr(DryRuns, "__call__", trace)

    def run(*words: str) -> Answer:
        code = main(words)
        return Answer(code, *capsys.readouterr())

    return run


def breaking(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(self: DryRuns, recipe: Recipe, device: Device) -> Traced:
        raise error

    monkeypatch.setattr(DryRuns, "__call__", broken)


def recipes(tmp_path: Path, *some: Recipe) -> str:
    file = tmp_path / "recipes.jsonl"
    file.write_text("".join(json.dumps(to_document(one)) + "\n" for one in some))
    return str(file)


def test_the_formulas_answer_comes_first_and_the_plan_is_the_dry_runs(plan: Run) -> None:
    answer = plan(*CARD)
    assert answer.code == 0
    first, last = answer.err.splitlines()
    assert first.startswith("formula: LoRA, at most ") and "confirming by dry run" in first
    assert last.startswith("dry run: LoRA, at most ")
    assert all(", in batches of " in line for line in (first, last))
    assert "confirmed by a dry run of 5 of 32 blocks" in answer.out
    assert "at the backward pass, block 3; dry run" in answer.out
    assert "unconfirmed" not in answer.out


def test_what_was_not_dry_run_says_so_in_its_row(plan: Run) -> None:
    rows = [line for line in plan(*CARD).out.splitlines() if line.startswith(("  lora  ", "  qlora  ", "  full  "))]
    assert ["dry run" in row for row in rows] == [True, False, False]
    assert ["formula" in row for row in rows] == [False, True, True]


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_progress_is_silent_where_it_would_disturb(plan: Run, option: str) -> None:
    assert plan(*CARD, option).err == ""


def test_fast_dry_runs_nothing(plan: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, AssertionError("a dry run"))
    answer = plan(*CARD, "--fast")
    assert (answer.code, answer.err) == (0, "")
    assert "unconfirmed: formula only; without --fast a dry run confirms it" in " ".join(answer.out.split())


def test_json_carries_evidence_versions_and_what_was_traced(plan: Run) -> None:
    document = json.loads(plan(*CARD, "--json").out)
    assert (document["evidence"], document["confirmed"], document["doubt"]) == ("dry run", True, None)
    assert document["versions"]["torch"] == "9.9.9"
    assert document["chosen"]["price"]["evidence"] == "dry run"
    assert document["chosen"]["dry_run"]["layers_traced"] == 5
    assert {one["price"]["evidence"] for one in document["alternatives"]} == {"formula"}


def test_without_the_libraries_the_plan_says_what_they_would_add(plan: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    answer = plan(*CARD)
    assert (answer.code, answer.err) == (0, "")
    page = " ".join(answer.out.split())
    assert "unconfirmed: formula only; pip install 'finetune-plan[train]' adds the dry run" in page
    assert "1.2 % instead of 10 %" in page
    document = json.loads(plan(*CARD, "--json").out)
    assert (document["evidence"], document["confirmed"]) == ("formula", False)
    assert "finetune-plan[train]" in document["doubt"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BadInput("llama-7b cannot run aten.strange on the meta device: no kernel"), "cannot run aten.strange"),
        (ImportError("libcudart.so.13: cannot open\nmore"), "the dry run failed with ImportError: libcudart.so.13"),
    ],
)
def test_a_recipe_that_cannot_be_traced_is_planned_by_formula(
    plan: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    breaking(monkeypatch, error)
    answer = plan(*CARD)
    assert answer.code == 0
    assert f"unconfirmed: formula only; {'llama-7b ' if 'aten' in said else ''}{said}" in " ".join(answer.out.split())
    document = json.loads(plan(*CARD, "--json").out)
    assert (document["evidence"], document["confirmed"]) == ("formula", False)


def test_a_difference_of_a_tenth_is_said_and_logged_once(
    plan: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(DryRuns, "__call__", lambda self, recipe, device: traced(11 << 30, 0))
    log = tmp_path / "cache" / "finetune-plan" / "disagreements.jsonl"
    for _ in range(2):
        assert "the formula's figure for lora is" in plan(*CARD).out
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 1
    assert lines[0]["formula_process_bytes"] > 1.1 * lines[0]["dry_run_process_bytes"]
    assert lines[0]["recipe"]["model"] == "llama-7b"
    assert lines[0]["versions"] == {"torch": "9.9.9"}


def test_a_log_that_cannot_be_written_costs_nothing(plan: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(DryRuns, "__call__", lambda self, recipe, device: traced(11 << 30, 0))
    (tmp_path / "cache").write_text("in the way")
    assert plan(*CARD).code == 0


def test_where_the_dry_run_finds_that_nothing_fits_the_exit_code_says_so(
    plan: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DryRuns, "__call__", lambda self, recipe, device: traced(80 << 30))
    answer = plan(*CARD)
    assert answer.code == 3
    assert answer.out.startswith("Nothing fits")
    assert answer.err.splitlines()[-1].startswith("dry run: nothing fits")


def test_an_estimate_is_by_the_best_evidence_unless_one_is_named(plan: Run, tmp_path: Path) -> None:
    file = recipes(tmp_path, RECIPE)
    answers = {
        words: json.loads(plan("estimate", file, "--gpus", "h200", "--json", *words).out)
        for words in ((), ("--evidence", "dry-run"), ("--evidence", "formula"))
    }
    assert [one["evidence"] for one in answers.values()] == ["dry run", "dry run", "formula"]
    assert ["torch" in one["versions"] for one in answers.values()] == [True, True, False]
    assert all({"survives", "note"}.isdisjoint(one) for one in answers.values())
    assert plan("estimate", file, "--gpus", "h200", "--evidence", "guess").code == 2


def test_an_estimate_that_cannot_be_traced_is_the_formulas_or_an_error_where_a_dry_run_was_named(
    plan: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    breaking(monkeypatch, BadInput("llama-7b cannot run aten.strange on the meta device"))
    file = recipes(tmp_path, RECIPE)
    fallen = json.loads(plan("estimate", file, "--gpus", "h200", "--json").out)
    assert (fallen["evidence"], fallen["note"]) == ("formula", "llama-7b cannot run aten.strange on the meta device")
    answer = plan("estimate", file, "--gpus", "h200", "--json", "--evidence", "dry-run")
    assert answer.code == 0
    assert json.loads(answer.out)["error"] == "llama-7b cannot run aten.strange on the meta device"
    page = " ".join(plan("estimate", file, "--gpus", "h200").out.split())
    assert "cannot run aten.strange" in page


def test_naming_a_dry_run_without_the_libraries_is_bad_use(
    plan: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(planner.dry, "what_is_missing", lambda: "pip install it")
    file = recipes(tmp_path, RECIPE)
    answer = plan("estimate", file, "--gpus", "h200", "--evidence", "dry-run")
    assert (answer.code, answer.out, answer.err) == (2, "", "error: --evidence dry-run: pip install it\n")
    assert json.loads(plan("estimate", file, "--gpus", "h200", "--json").out)["evidence"] == "formula"


def test_by_formula_a_job_survives_only_what_covers_its_error_bar(plan: Run, tmp_path: Path) -> None:
    words = ("estimate", recipes(tmp_path, RECIPE), "--gpus", "h200", "--evidence", "formula")
    low, high = json.loads(plan(*words, "--json").out)["interval_95"]["peak_reserved_bytes"]
    answers = [
        json.loads(plan(*words, "--json", "--allocator-cap", f"{cap}B").out) for cap in (high + 1, high - 1, low)
    ]
    assert [one["survives"] for one in answers] == [True, False, False]
    page = plan(*words, "--allocator-cap", "100GiB").out
    assert "survives a cap of 100.0 GiB: yes\n" in page
    assert plan(*words, "--allocator-cap", "lots").code == 2


def test_where_nothing_could_fit_there_is_no_dry_run_to_speak_of(plan: Run) -> None:
    answer = plan("--model", "llama-2-70b", "--gpus", "t4")
    assert (answer.code, answer.err) == (3, "")


def test_of_a_sharded_job_the_plan_says_what_the_dry_run_covers(plan: Run) -> None:
    page = " ".join(plan("--model", "llama-3.1-8b", "--gpus", "2xa100-80gb").out.split())
    assert "confirmed by a dry run of 5 of 32 blocks, as one GPU computes them; what is sharded" in page


def test_on_a_terminal_progress_is_replaced_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress()
    progress.show("looking")
    progress.tick("still looking")
    progress.leave("found")
    progress.clear()
    assert stream.getvalue() == "looking\r\x1b[Kstill looking\r\x1b[Kfound\n"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


CAPPED = [json.loads(line) for line in profiles.read("measurements", "h200_capped.jsonl").splitlines()]
"""Runs that were capped 2 to 12 % above their allocated peak."""
TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    for package in ("torch", "transformers", "peft", "bitsandbytes"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def real(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, real_cache: str) -> Run:
    """Runs `plan` with real dry runs, whose traces the tests of this file share."""
    monkeypatch.setenv("XDG_CACHE_HOME", real_cache)

    def run(*words: str) -> Answer:
        code = main(words)
        return Answer(code, *capsys.readouterr())

    return run


def test_a_plan_is_really_dry_run_and_the_next_one_is_there_at_once(real: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    words = (
        "--model",
        str(tmp_path),
        "--gpus",
        "rtx-4090",
        "--method",
        "lora",
        "--seq-len",
        "128",
        "--micro-batch",
        "1",
    )
    first, second = real(*words), real(*words)
    assert first.code == 0
    assert len(first.err.splitlines()) == 2  # the libraries' own words are not passed on
    assert " in " in first.err.splitlines()[1] and second.err.endswith("from earlier dry runs\n")
    assert first.out == second.out
    assert "confirmed by a dry run of 2 of 2 blocks" in first.out


def test_no_run_that_died_under_its_cap_is_said_to_survive(real: Run, tmp_path: Path) -> None:
    """Never "survives" where a run died, and "dies" for at most 30 % of those that lived."""
    said = []
    for number, row in enumerate(CAPPED):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(row["recipe"]))
        words = ("--gpus", "h200", "--evidence", "dry-run", "--json", "--allocator-cap", f"{row['cap_bytes']}B")
        said.append(json.loads(real("estimate", str(file), *words).out)["survives"])
    died = [answer for answer, row in zip(said, CAPPED, strict=True) if row["outcome"] == "out_of_memory"]
    lived = [answer for answer, row in zip(said, CAPPED, strict=True) if row["outcome"] == "ok"]
    assert died and not any(died)
    assert lived.count(False) <= 0.3 * len(lived)
