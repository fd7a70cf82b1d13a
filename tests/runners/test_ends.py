"""How a job ended is told from what it left: exhausted memory from every look-alike, a cause from its consequences."""

from pathlib import Path
from typing import Any

import pytest

from estimators.errors import BadInput
from estimators.outcome import End, Outcome
from runners import ends
from runners.ends import Failure, Remains, judge, recognise

MESSAGES = Path(__file__).parents[1] / "fixtures/messages"
FILES = sorted(MESSAGES.glob("*/*.txt"))
EXHAUSTED = [path for path in FILES if path.parent.name != "neither"]
OOM = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB"


def failure(text: str, rank: int = 0, at: float = 0.0, kind: str = "builtins.RuntimeError") -> Failure:
    return Failure(rank=rank, kind=kind, text=text, phase="steady", at_seconds=at)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_message_is_told(path: Path) -> None:
    expected = None if path.parent.name == "neither" else Outcome(path.parent.name)
    assert recognise(path.read_text()) is expected


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(EXHAUSTED) >= 19
    assert len(FILES) - len(EXHAUSTED) >= 19


@pytest.mark.parametrize("path", EXHAUSTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_process_that_only_printed_it_is_told_too(path: Path) -> None:
    """What is printed by C code, or by a launcher, is found in the log, among other lines."""
    end = judge(Remains(returncode=1, log=f"loading\n{path.read_text()}\nbye\n"))
    assert end.outcome is Outcome(path.parent.name)


def test_text_of_the_user_in_the_log_is_no_evidence() -> None:
    log = "step 3: the answer was 'CUDA out of memory. Tried to allocate 1 GiB'\nValueError: wrong shape\n"
    assert judge(Remains(returncode=1, log=log)).outcome is Outcome.FAILED


def test_exception_classes_speak_for_themselves() -> None:
    assert recognise("", "torch.OutOfMemoryError") is Outcome.OUT_OF_MEMORY
    assert recognise("", "torch.cuda.OutOfMemoryError") is Outcome.OUT_OF_MEMORY
    assert recognise("", "builtins.MemoryError") is Outcome.HOST_OUT_OF_MEMORY
    assert recognise("", "builtins.RuntimeError") is None


def test_the_first_cause_wins_over_what_the_other_ranks_saw() -> None:
    """The clocks of the lost peers may even be ahead: what they saw is a consequence all the same."""
    closed = "Connection closed by peer [127.0.0.1]:17182"
    failures = (failure(closed, rank=0, at=1.0), failure(OOM, rank=1, at=2.0), failure(closed, rank=2, at=3.0))
    end = judge(Remains(returncode=1, ranks=3, failures=failures))
    assert (end.outcome, end.rank, end.phase) == (Outcome.OUT_OF_MEMORY, 1, "steady")


def test_of_two_causes_the_earlier_wins() -> None:
    failures = (failure("index out of range", rank=0, at=2.0), failure(OOM, rank=1, at=1.0))
    assert judge(Remains(returncode=1, ranks=2, failures=failures)).rank == 1


def test_a_rank_killed_by_the_kernel_wins_over_its_peers_complaints() -> None:
    remains = Remains(returncode=1, ranks=2, failures=(failure("Connection closed by peer"),), oom_kills=1)
    end = judge(remains)
    assert (end.outcome, end.evidence) == (
        Outcome.HOST_OUT_OF_MEMORY,
        "the kernel killed 1 process for want of host memory",
    )


@pytest.mark.parametrize(
    "remains",
    [
        Remains(returncode=1, oom_kills=1, log="ValueError: wrong shape"),
        Remains(returncode=-11, oom_kills=1),
        Remains(returncode=-9, oom_kills=1, stopped=End(outcome=Outcome.TIMED_OUT)),
    ],
)
def test_a_kill_among_the_jobs_beside_it_is_not_its_own(remains: Remains) -> None:
    assert judge(remains).outcome is not Outcome.HOST_OUT_OF_MEMORY
    assert judge(Remains(returncode=-9, oom_kills=1)).outcome is Outcome.HOST_OUT_OF_MEMORY


def test_a_kill_without_the_kernels_count_is_only_a_failure() -> None:
    end = judge(Remains(returncode=-9, log="loading\n"))
    assert end.outcome is Outcome.FAILED
    assert "SIGKILL" in end.evidence


def test_a_launchers_report_of_a_signal_is_read() -> None:
    end = judge(Remains(returncode=1, ranks=2, log="  exitcode  : -11 (pid: 5277)\n"))
    assert "SIGSEGV" in end.evidence


def test_memory_explains_a_hang_and_cancelling_explains_all() -> None:
    hang = End(outcome=Outcome.TIMED_OUT, evidence="rank 0: no sign of life")
    cancelled = End(outcome=Outcome.CANCELLED)
    peer_died = Remains(returncode=-9, ranks=2, failures=(failure(OOM, rank=1),), stopped=hang)
    assert judge(peer_died).outcome is Outcome.OUT_OF_MEMORY
    assert judge(Remains(returncode=-9, stopped=hang)) is hang
    assert judge(Remains(returncode=-9, failures=(failure(OOM),), stopped=cancelled)) is cancelled


@pytest.mark.parametrize(("reports", "outcome"), [(2, Outcome.OK), (1, Outcome.FAILED), (0, Outcome.FAILED)])
def test_well_is_only_what_every_rank_says_is_well(reports: int, outcome: Outcome) -> None:
    assert judge(Remains(returncode=0, reports=reports, ranks=2)).outcome is outcome


@pytest.mark.parametrize(
    "text",
    ["CUDA error: uncorrectable ECC error encountered", "Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus"],
)
def test_a_broken_card_is_not_the_recipes_fault(text: str) -> None:
    end = judge(Remains(returncode=1, failures=(failure(text),)))
    assert (end.outcome, end.gpu_fault) == (Outcome.FAILED, True)
    assert not judge(Remains(returncode=1, failures=(failure(OOM),))).gpu_fault


def test_evidence_is_one_printable_line_without_secrets() -> None:
    text = "boom\x1b[2J\nsecond line token hf_abcdefghijklmnop at https://user:hunter2@host/x " + "y" * 500
    evidence = judge(Remains(returncode=1, failures=(failure(text),))).evidence
    assert "\n" not in evidence and "\x1b" not in evidence
    assert "hf_abc" not in evidence and "hunter2" not in evidence
    assert len(evidence) <= 300


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("sys/fs/cgroup/job/memory.events", "low 0\nhigh 3\nmax 12\noom 4\noom_kill 4\noom_group_kill 0\n"),
        ("sys/fs/cgroup/memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
        ("proc/vmstat", "nr_free_pages 100\noom_kill 4\n"),
    ],
)
def test_the_kernels_count_is_read_from_either_version(tmp_path: Path, file: str, text: str) -> None:
    lines = {"proc/self/cgroup": "4:memory:/job\n0::/job\n", "sys/fs/cgroup/cgroup.controllers": "memory", file: text}
    for name, content in lines.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert ends.oom_kills(tmp_path) == 4


@pytest.mark.parametrize(
    "wrong", [[], {}, {"rank": "0"}, {"rank": 0, "kind": "x", "text": 3, "phase": "", "at_seconds": 1}]
)
def test_a_strange_failure_file_is_refused(wrong: Any) -> None:
    with pytest.raises(BadInput):
        ends.failure_from(wrong)
