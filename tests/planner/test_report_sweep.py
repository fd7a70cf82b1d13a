"""What a person and a program are told of a sweep: while it runs, at its end, on a terminal, in a pipe and as JSON."""

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from estimators.outcome import Outcome
from estimators.recipe import Adapter, Recipe
from estimators.units import GIB
from planner.cli import command as plan
from planner.commands.plan import goal_of
from planner.report.live import Board, Show
from planner.report.page import Line, plain
from planner.report.stream import Stream, event_document, perplexity
from planner.report.sweep import Screenplay, sweep_page
from planner.report.telling import in_words, recipe_command
from planner.sweep.result import (
    Expected,
    Finished,
    Moved,
    Noise,
    PassedOver,
    Planned,
    Recommendation,
    Retried,
    Screened,
    Started,
    Sweep,
    Trial,
)
from planner.sweep.space import Configuration, Terms
from runners import guard
from runners.executors import Progress

HOSTILE = "evil\x1b[31m\u202egpj\r\nname"
TERMS = Terms(model="llama-3.2-1b", steps=50, global_batch=16, sequence_length=1024, weights="w", data="d.jsonl",
              held_out=None, seed=42)  # fmt: skip


def recipe(rank: int) -> Recipe:
    return Recipe(
        model="llama-3.2-1b", adapter=Adapter(method="lora", rank=rank, alpha=4 * rank, targets=("q_proj", "v_proj")),
        micro_batch=4, gradient_accumulation=4, sequence_length=1024, gradient_checkpointing=True,
    )  # fmt: skip


def trial(number: int, rank: int, loss: float | None = None, **changes: Any) -> Trial:
    plain: dict[str, Any] = {
        "number": number, "configuration": Configuration(rank=rank, alpha=4 * rank), "recipe": recipe(rank),
        "seed": 42, "place": "GPU 0", "outcome": Outcome.OK, "seconds": 61.5, "loss": loss, "untrained_loss": 3.25,
        "vram_bytes": 12 * GIB, "tokens_per_second": 3120.0, "expected_seconds": 60.0,
        "expected_vram_bytes": 11 * GIB, "losses": (3.0,) * 50,
    }  # fmt: skip
    return Trial(**(plain | changes))


GOOD = (trial(0, 8, 1.25), trial(1, 16, 1.2), trial(2, 16, 1.22, seed=43, repeat=True))
TOO_BIG = trial(3, 64, outcome=Outcome.OUT_OF_MEMORY, evidence="CUDA out of memory. Tried to allocate 2.00 GiB",
                vram_bytes=None, tokens_per_second=None, losses=())  # fmt: skip
SKIPPED = Screened(configuration=Configuration(rank=128, alpha=512), kind="estimate", reason="takes 90 GiB of 80 GiB")


def sweep(**changes: Any) -> Sweep:
    whole: dict[str, Any] = {
        "terms": TERMS, "objective": "loss", "objectives": ("loss", "vram_bytes", "tokens_per_second"),
        "places": ("GPU 0", "GPU 1"), "vram_budget_bytes": 80 * GIB, "trials": (*GOOD, TOO_BIG),
        "screened": (SKIPPED,), "front": (0, 1), "recommendation": Recommendation(number=0, why="as good as chance"),
        "noise": Noise(number=1, losses=(1.2, 1.22)), "seconds": 240.0, "expected_seconds": 230.0, "folder": "/runs/a",
        "storage": "postgresql://me:***@host/db", "study": "llama-1",
    }  # fmt: skip
    return Sweep(**(whole | changes))


def text(page: list[Line]) -> str:
    return "\n".join(plain(line) for line in page)


def row(page: str, number: int) -> str:
    return next(line for line in page.splitlines() if line.split()[:1] == [str(number)])


def expected(rank: int = 16, **changes: Any) -> Expected:
    found = Expected(configuration=Configuration(rank=rank, alpha=4 * rank), recipe=recipe(rank), seed=42,
                     seconds=100.0, vram_bytes=11 * GIB, evidence="dry run")  # fmt: skip
    return replace(found, **changes)


PLANNED = Planned(terms=TERMS, places=("GPU 0", "GPU 1"), queue=(expected(8), expected(16)), screened=(SKIPPED,),
                  finished=(), expected_seconds=120.0, budget_seconds=600.0)  # fmt: skip


def moved(
    step: int, loss: float | None = None, place: str = "GPU 0", phase: str = "steady", vram_bytes: int | None = None,
    tokens_per_second: float | None = None,
) -> Moved:  # fmt: skip
    progress = Progress(place=place, folder=Path("/runs/a/trials/1"), phase=phase, step=step, loss=loss,
                        vram_bytes=vram_bytes, tokens_per_second=tokens_per_second)  # fmt: skip
    return Moved(number=1, steps=50, progress=progress)


STARTED = Started(number=1, place="GPU 0", expected=expected())
FINISHED = Finished(trial=trial(1, 16, 1.2), best=trial(1, 16, 1.2), finished=1, waiting=1, out_of_memory=0,
                    seconds_left=90.0)  # fmt: skip


def test_the_page_shows_every_trial_with_what_it_took_and_how_far_off_the_estimate_was() -> None:
    page = text(sweep_page(sweep(), 120))
    assert row(page, 0).split() == [
        "0", "8", "32", "1.2500", "3.49", "12.0", "−8.3", "%", "3,120", "61.5", "s", "−2.4", "%", "use", "this,",
        "front",
    ]  # fmt: skip
    assert row(page, 1).split()[:5] == ["1", "16", "64", "1.2000", "0.0100"], "± is half of what the seeds span"
    assert row(page, 1).endswith("front")
    assert row(page, 2).endswith("seed 43")
    assert row(page, 3).endswith("out of memory")
    assert "learning rate 0.0002" in page and "819,200 tokens" in page.replace("819 k", "819,200 tokens")
    assert "Untrained: 3.2500" in page


def test_the_page_says_what_to_use_and_why_and_what_comes_next() -> None:
    page = text(sweep_page(sweep(unfinished=2, resumed=1), 100))
    flat = " ".join(page.split())
    assert flat.startswith("llama-3.2-1b: 4 of 6 trials, so far: use lora r8 alpha 32, lr 0.0002, as good as chance.")
    assert "held-out loss 3.2500 untrained, 1.2500 after 50 steps" in flat
    assert "trial 3 CUDA out of memory. Tried to allocate 2.00 GiB" in flat
    assert "cannot fit by estimate lora r128, lr 0.0002: takes 90 GiB of 80 GiB" in flat
    assert "plan --model llama-3.2-1b --method lora --rank 8 --alpha 32 --targets q_proj,v_proj --seq-len 1024" in page
    assert "learning rate is to be" not in flat and "--learning-rate 1e-05" in flat
    assert "2 trials left: the same command goes on in /runs/a." in flat
    assert "optuna-dashboard 'postgresql://me:***@host/db'" in flat
    assert "study llama-1" in flat and "1 of the trials by an earlier command" in flat


def test_the_next_command_is_one_that_plan_understands() -> None:
    one = trial(0, 8)
    words = recipe_command(one, "--emit", "run")
    with plan.make_context("plan", words[1:], resilient_parsing=False) as context:
        assert context.params["rank"] == 8 and context.params["alpha"] == 32
        assert context.params["micro_batch"] == 4 and context.params["emit_folder"] == "run"
        assert context.params["learning_rate"] is not None and context.params["expandable_segments"] is None
        assert goal_of(context.params).learning_rate == one.recipe.learning_rate
    rate = replace(one, recipe=replace(one.recipe, expandable_segments=True, learning_rate=1.2345678901234e-05))
    with plan.make_context("plan", recipe_command(rate)[1:]) as context:
        goal = goal_of(context.params)
        assert goal.expandable_segments is True and goal.learning_rate == 1.2345678901234e-05
    odd = replace(one.recipe, optimizer="adamw_8bit", attention="eager", trainer="trl", padded=True)
    with plan.make_context("plan", recipe_command(replace(one, recipe=odd))[1:]) as context:
        goal = goal_of(context.params)
        assert (goal.optimizer, goal.attention, goal.trainer, goal.padded) == ("adamw_8bit", "eager", "trl", True)
    full = replace(one, configuration=Configuration(method="full", rank=0, learning_rate=2e-5))
    assert "--rank" not in recipe_command(full)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"trials": (), "front": (), "recommendation": None, "noise": None}, "nothing fits by estimate"),
        ({"trials": (), "front": (), "recommendation": None, "noise": None, "screened": ()}, "no trial has ended yet"),
        ({"trials": (TOO_BIG,), "front": (), "recommendation": None, "noise": None}, "every trial ran out of memory"),
        (
            {"trials": (replace(TOO_BIG, outcome=Outcome.FAILED),), "front": (), "recommendation": None, "noise": None},
            "no trial ended well",
        ),
        ({"interrupted": True}, "Interrupted: what ran is kept"),
    ],
)
def test_every_end_of_a_sweep_has_its_verdict(changes: dict[str, Any], verdict: str) -> None:
    assert verdict in " ".join(text(sweep_page(sweep(**changes), 100)).split())


def test_the_legend_explains_the_columns_that_are_shown() -> None:
    many = tuple(
        replace(one, configuration=replace(one.configuration, method=method, learning_rate=rate))
        for one, method, rate in zip(GOOD, ("lora", "qlora", "lora"), (1e-4, 2e-4, 2e-4), strict=True)
    )
    pages = {width: text(sweep_page(sweep(trials=many), width)) for width in (80, 100, 150)}
    heads = {width: next(line for line in page.splitlines() if "tokens/s" in line) for width, page in pages.items()}
    assert heads[150].split().count("off") == 2
    for width, page in pages.items():
        assert ("Off: " in page) == ("off" in heads[width].split())
        assert ("Perplexity " in page) == ("perplexity" in heads[width].split())
    assert "Off: " not in pages[80]


def test_on_a_cpu_the_page_has_no_column_of_memory() -> None:
    trials = tuple(replace(one, vram_bytes=None, expected_vram_bytes=None) for one in GOOD)
    page = text(sweep_page(sweep(trials=trials, objectives=("loss",), screened=()), 100))
    assert "GiB" not in page
    assert "1.2500" in row(page, 0)


def test_rows_that_differ_in_nothing_but_dropout_or_layers_are_told_apart() -> None:
    many = tuple(
        replace(one, configuration=replace(one.configuration, rank=8, dropout=dropout, targets=targets))
        for one, dropout, targets in zip(
            GOOD, (0.0, 0.1, 0.1), (None, ("all-linear",), ("q_proj", "v_proj")), strict=True
        )
    )
    page = text(sweep_page(sweep(trials=many), 110))
    assert [said in row(page, number) for number, said in enumerate(
        ("by default, dropout 0.0", "all-linear, dropout 0.1", "q,v, dropout 0.1"))] == [True] * 3  # fmt: skip
    assert "dropout" not in text(sweep_page(sweep(), 100))


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_narrow_page_keeps_what_matters(width: int) -> None:
    page = text(sweep_page(sweep(), width))
    assert all(word in row(page, 0) for word in ("1.2500", "12.0", "3,120", "use this"))
    assert ("3.49" in row(page, 0)) is (width >= 100)
    assert all(len(line) <= width for line in page.splitlines() if "plan --model" not in line)


def test_names_and_evidence_from_outside_are_harmless() -> None:
    bad = replace(TOO_BIG, evidence=HOSTILE, place=HOSTILE, notes=(HOSTILE,))
    targets = replace(GOOD[0].configuration, targets=(HOSTILE,))
    good = replace(GOOD[0], configuration=targets, recipe=replace(recipe(8), model=HOSTILE))
    whole = sweep(trials=(good, bad), terms=replace(TERMS, model=HOSTILE), front=(0,), noise=None, study=HOSTILE,
                  folder=HOSTILE, notes=(HOSTILE,), screened=(replace(SKIPPED, reason=HOSTILE),))  # fmt: skip
    board = Board()
    for event in (PLANNED, replace(STARTED, place=HOSTILE), moved(3, place=HOSTILE, phase=HOSTILE)):
        board.hear(event)
    board.hear(replace(FINISHED, trial=bad, best=good))
    told = text(sweep_page(whole, 100)) + text(board.lines(100))
    assert "evil" in told
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", told)


def test_the_board_knows_speed_time_left_and_what_was_best() -> None:
    now = [1000.0]
    board = Board(clock=lambda: now[0])
    held = moved(25, loss=1.5, vram_bytes=10 * GIB, tokens_per_second=16_384.0)
    for seconds, event in ((0, PLANNED), (0, STARTED), (10, moved(5)), (20, held)):
        now[0] += seconds
        board.hear(event)
    page = text(board.lines(120))
    line = next(line for line in page.splitlines() if "GPU 0" in line).split()
    assert line[:6] == ["GPU", "0", "1", "lora", "r16", "alpha"]
    assert line[6:] == ["64", "trains", "25/50", "1.5000", "10.0", "16,400", "11.0", "30", "s"]
    assert "budget    9.5 min left of 10 min" in page
    now[0] += 10
    board.hear(FINISHED)
    page = text(board.lines(120))
    assert "1 trial ended, 1 waiting, 0 out of memory, 0 not launched" in page
    assert "best      trial 1, lora r16 alpha 64, lr 0.0002, loss 1.2000" in page
    assert "90 s more, until" in page
    assert re.search(r"GPU 0 +1 .*done +50 +1\.2000 +12\.0 +3,120 +11\.0", page)


def test_what_a_running_trial_holds_and_how_fast_it_is_is_shown_at_80_columns_too() -> None:
    """Beside trials that ran out of memory, whose row is the widest."""
    board = Board()
    planned = replace(PLANNED, queue=(expected(64), expected(128)))
    started = replace(STARTED, expected=expected(128))
    for event in (planned, started, replace(FINISHED, trial=TOO_BIG), moved(5)):
        board.hear(event)
    assert "GiB" in text(board.lines(80)) and "12.5" not in text(board.lines(80))
    board.hear(moved(25, loss=1.5, vram_bytes=round(12.5 * GIB), tokens_per_second=3120.0))
    page = text(board.lines(80))
    head, running, ended = page.splitlines()[:3]
    assert head.split() == ["place", "#", "configuration", "phase", "step", "loss", "GiB", "tokens/s"]
    assert running.split() == ["GPU", "0", "1", "lora", "r128", "alpha", "512", "trains", "25/50", "1.5000", "12.5",
                               "3,120"]  # fmt: skip
    assert "out of memory" in ended and all(len(line) <= 80 for line in page.splitlines())


def test_what_tells_configurations_apart_stays() -> None:
    rates = [replace(expected(8).configuration, learning_rate=rate) for rate in (1e-4, 2e-4)]
    board = Board()
    board.hear(replace(PLANNED, queue=tuple(expected(configuration=one) for one in rates)))
    board.hear(replace(STARTED, expected=expected(configuration=rates[1])))
    assert "lora r8 alpha 32, lr 0.0002" in text(board.lines(120))
    board.hear(replace(PLANNED, queue=()))  # of a sampler: the next one may differ in anything
    board.hear(STARTED)
    assert "lora r16 alpha 64, lr 0.0002" in text(board.lines(120))


def test_a_late_word_of_another_trial_changes_nothing() -> None:
    board = Board()
    for event in (PLANNED, replace(STARTED, number=2), moved(5, loss=9.0)):
        board.hear(event)
    assert "9.0" not in text(board.lines(120))
    board.hear(Retried(number=2, place="GPU 0", reason="lost"))
    assert not board.running and board.waiting == 2


def test_without_a_terminal_there_is_a_plain_line_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    retried = Retried(number=1, place="GPU 0", reason="the worker is gone")
    skipped = PassedOver(screened=SKIPPED)
    with Show() as show:
        held = moved(5, vram_bytes=12 * GIB, tokens_per_second=3120.0)
        for event in (PLANNED, STARTED, held, moved(6), retried, skipped, FINISHED):
            show.hear(event)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "sweep of llama-3.2-1b on GPU 0, GPU 1: 2 trials of 50 steps to run, 1 not launched, about 2.0 min, "
        "10 min allowed",
        "GPU 0: trial 1 starts: lora r16 alpha 64, lr 0.0002, expected 11.00 GiB and 1.7 min",
        "GPU 0: trial 1 trains, step 5 of 50, 12.00 GiB, 3,120 tokens/s",
        "GPU 0: trial 1 was lost and runs again: the worker is gone",
        "not launched: lora r128, lr 0.0002: takes 90 GiB of 80 GiB",
        "GPU 0: trial 1 done: loss 1.2000, 12.00 GiB, 3,120 tokens/s, 61.5 s; best so far trial 1, lora r16 alpha 64, "
        "lr 0.0002, loss 1.2000; 1 waiting, about 90 s of them",
    ]


def test_a_long_evaluation_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("planner.report.live.SECONDS_BETWEEN", 0.0)
    with Show() as show:
        for event in (*[moved(50, phase="evaluation")] * 3, moved(50, 1.5, phase="save")):
            show.hear(event)
    assert capsys.readouterr().err.splitlines() == [
        "GPU 0: trial 1 evaluates, step 50 of 50", "GPU 0: trial 1 saves, step 50 of 50, loss 1.5000",
    ]  # fmt: skip


def test_in_short_too_it_is_said_what_was_not_launched(capsys: pytest.CaptureFixture[str]) -> None:
    with Screenplay(quiet=True) as play:
        play.close(sweep())
    assert "cannot fit by estimate" in capsys.readouterr().out


def test_a_bad_end_is_told_with_its_evidence() -> None:
    told = in_words(replace(FINISHED, trial=TOO_BIG, best=None, seconds_left=None))
    assert "trial 3 out of memory (CUDA out of memory. Tried to allocate 2.00 GiB)" in told


def test_json_is_one_document_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    play = Screenplay(as_json=True)
    told = moved(5, loss=float("nan"), vram_bytes=GIB, tokens_per_second=2.5)
    events = (PLANNED, STARTED, told, Retried(number=1, place="GPU 0", reason="lost"),
              PassedOver(screened=SKIPPED), FINISHED)  # fmt: skip
    with play:
        for event in events:
            play.hear(event)
    play.close(sweep())
    out, err = capsys.readouterr()
    documents = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    assert err == ""
    assert [one["event"] for one in documents] == [
        "planned", "started", "progress", "retried", "skipped", "ended", "recommended", "done",
    ]  # fmt: skip
    assert {one["schema_version"] for one in documents} == {1}
    _, started, progress, _, skipped, ended, recommended, done = documents
    assert (started["expected"]["vram_bytes"], started["expected"]["configuration"]["alpha"]) == (11 * GIB, 64)
    assert (progress["phase"], progress["step"], progress["steps"], progress["loss"]) == ("steady", 5, 50, "nan")
    assert (progress["vram_bytes"], progress["tokens_per_second"]) == (GIB, 2.5)
    assert (skipped["kind"], skipped["configuration"]["rank"]) == ("estimate", 128)
    assert (ended["trial"]["outcome"], ended["best"]["number"], ended["seconds_left"]) == ("ok", 1, 90.0)
    assert (recommended["number"], recommended["recipe"]["adapter"]["rank"]) == (0, 8)
    assert (done["exit_code"], done["out_of_memory"], len(done["trials"])) == (0, 1, 4)
    assert done["trials"][0]["perplexity"] == pytest.approx(3.49, abs=0.001)
    assert [one["on_front"] for one in done["trials"]] == [True, True, False, False]


def test_json_tells_of_steps_once_a_second_and_of_every_phase(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    stream = Stream(clock=lambda: now[0])
    for seconds, event in (
        (0.0, moved(0, phase="load")), (0.1, moved(1)), (0.1, moved(2)), (0.5, moved(3)), (0.5, moved(4)),
        (0.1, moved(50)),
    ):  # fmt: skip
        now[0] += seconds
        stream.hear(event)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["phase"], one["step"]) for one in said] == [("load", 0), ("steady", 1), ("steady", 4), ("steady", 50)]


def test_every_event_has_its_document() -> None:
    retried = Retried(number=1, place=HOSTILE, reason=HOSTILE)
    for event in (PLANNED, STARTED, moved(1), retried, PassedOver(screened=SKIPPED), FINISHED):
        json.dumps(event_document(event), allow_nan=False)
    assert (perplexity(None), perplexity(float("nan")), perplexity(1e6)) == (None, None, None)


def test_quietly_there_is_the_verdict_and_what_comes_next(capsys: pytest.CaptureFixture[str]) -> None:
    with Screenplay(quiet=True) as play:
        play.hear(PLANNED)
    play.close(sweep())
    out, err = capsys.readouterr()
    assert err == "" and "use lora r8" in out and "--emit run" in out and "tokens/s" not in out


PLAYED = """
import time
from planner.report.sweep import Screenplay
from tests.planner.test_report_sweep import FINISHED, PLANNED, STARTED, moved, sweep
with Screenplay() as play:
    for event in (PLANNED, STARTED, moved(5, loss=1.5)):
        play.hear(event)
    time.sleep(0.6)
    play.hear(FINISHED)
play.close(sweep())
"""
ERASE = "\x1b[2K"


def on_a_terminal(**changes: str) -> str:
    """What a terminal is sent on stderr; stdout is a pipe, whose text is returned after a form feed."""
    master, slave = pty.openpty()
    names = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment = {**names, "PYTHONPATH": str(guard.ROOT), "TERM": "xterm-256color", "COLUMNS": "100", **changes}
    with subprocess.Popen(
        [sys.executable, "-c", PLAYED], env=environment, stdout=subprocess.PIPE, stderr=slave, stdin=slave
    ) as process:
        os.close(slave)
        found = b""
        with suppress(OSError):
            while piece := os.read(master, 65536):
                found += piece
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(master)
    assert process.returncode == 0, found.decode()
    return f"{found.decode()}\f{out.decode()}"


def test_on_a_terminal_the_table_stays_in_its_place_and_goes_at_the_end() -> None:
    live, result = on_a_terminal().split("\f")
    assert ERASE in live and "\x1b[1;32mdone" in live.replace("\x1b[1m\x1b[32m", "\x1b[1;32m")
    assert "lora r16 alpha 64" in live and "1.5000" in live and "sweep of llama-3.2-1b" in live
    assert re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", live.rpartition(ERASE)[2]).strip() == ""
    assert result.startswith("llama-3.2-1b: use lora r8") and "\x1b" not in result


def test_no_color_is_respected() -> None:
    live, _ = on_a_terminal(NO_COLOR="1").split("\f")
    assert ERASE in live
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", live)


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines() -> None:
    live, _ = on_a_terminal(TERM="dumb").split("\f")
    assert "\x1b" not in live
    assert "GPU 0: trial 1 done: loss 1.2000" in live
