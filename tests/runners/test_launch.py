"""A launched job ends in exactly one known way, leaves nothing behind, and never passes off a spoilt figure as its own.

The children are stand-ins that end in every way there is; the guard, the watcher and the files are real.
"""

import _thread
import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from estimators.outcome import Outcome
from estimators.recipe import Parallelism
from runners import ends, job, launch, processes
from runners.environment import environment_of
from runners.interrupts import undisturbed
from tests.runners import tiny_job
from tests.runners.tiny_job import CARD, QUICK, gpu, run_stand_in


def nothing_is_left(folder: Path) -> bool:
    token = job.read(folder).token
    return not [pid for pid in processes.descendants(os.getpid()) if processes.token_of(pid) == token]


def test_a_good_job_is_summed_up_and_written_down(tmp_path: Path) -> None:
    result = run_stand_in(tmp_path, "beat('steady', 3); leave(GOOD)")
    assert (result.end.outcome, result.valid, result.notes) == (Outcome.OK, True, ())
    assert (result.step_seconds, result.tokens_per_second, result.real_tokens_per_second) == (0.1, 640.0, 480.0)
    document = json.loads((tmp_path / job.RESULT).read_text())
    assert document["end"]["outcome"] == "ok"
    assert document["ranks"][0]["step_seconds"] == [0.5, 0.2, 0.1, 0.1]


DEATHS = {
    "exhausted GPU, told by the rank": (
        "fail('torch.OutOfMemoryError', 'CUDA out of memory. Tried to allocate 2.00 GiB')",
        Outcome.OUT_OF_MEMORY, "Tried to allocate 2.00 GiB",
    ),
    "exhausted GPU, under another name": (
        "fail('builtins.RuntimeError', 'CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`')",
        Outcome.OUT_OF_MEMORY, "CUBLAS_STATUS_ALLOC_FAILED",
    ),
    "exhausted GPU, printed by C code that exits": (
        "os.write(2, b'Error out of memory at line 380 in file /src/csrc/pythonInterface.c\\n'); os._exit(1)",
        Outcome.OUT_OF_MEMORY, "at line 380",
    ),
    "exhausted host, as Python says it": (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28)); bytearray(1 << 30)",
        Outcome.HOST_OUT_OF_MEMORY, "MemoryError",
    ),
    "a CUDA assertion": (
        "fail('torch.AcceleratorError', 'CUDA error: device-side assert triggered')",
        Outcome.FAILED, "device-side assert",
    ),
    "killed by somebody": ("os.kill(os.getpid(), 9)", Outcome.FAILED, "SIGKILL"),
    "a crash": ("import ctypes; ctypes.string_at(0)", Outcome.FAILED, "SIGSEGV"),
    "an import that fails": ("import nonexistent_module", Outcome.FAILED, "ModuleNotFoundError"),
    "well, without a result": ("sys.exit(0)", Outcome.FAILED, "no readable result"),
    "well, with half a result": (
        "(folder / 'rank-0.json').write_text(json.dumps(GOOD)[:60])", Outcome.FAILED, "no readable result",
    ),
    "well, with a lie": (
        "leave(GOOD | {'step_seconds': [float('nan')]})", Outcome.FAILED, "no readable result",
    ),
    "well, with a result too many": ("leave(GOOD | {'bonus': 1})", Outcome.FAILED, "no readable result"),
}  # fmt: skip


@pytest.mark.parametrize("death", DEATHS)
def test_every_death_is_told(tmp_path: Path, death: str) -> None:
    script, outcome, evidence = DEATHS[death]
    result = run_stand_in(tmp_path, script)
    assert (result.end.outcome, result.valid) == (outcome, False)
    assert evidence in result.end.evidence
    assert nothing_is_left(tmp_path)


def test_a_kill_for_want_of_host_memory_is_told_by_the_kernels_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "root/sys/fs/cgroup/memory.events"
    for path, text in {events: "oom_kill 2\n", events.with_name("cgroup.controllers"): "memory"}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "root/proc/self").mkdir(parents=True)
    (tmp_path / "root/proc/self/cgroup").write_text("0::/\n")
    count = ends.oom_kills
    monkeypatch.setattr(ends, "oom_kills", lambda: count(tmp_path / "root"))
    script = f"Path({str(events)!r}).write_text('oom_kill 3\\n'); os.kill(os.getpid(), 9)"
    end = run_stand_in(tmp_path / "job", script).end
    assert (end.outcome, "host memory" in end.evidence) == (Outcome.HOST_OUT_OF_MEMORY, True)


def test_what_dies_without_a_word_was_last_heard_of_somewhere(tmp_path: Path) -> None:
    end = run_stand_in(tmp_path, "beat('load', 0); os.kill(os.getpid(), 9)").end
    assert (end.outcome, end.phase) == (Outcome.FAILED, "load")


def test_a_machine_that_cannot_start_a_process_is_an_end_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("runners.guard.start", refuse)
    end = run_stand_in(tmp_path, "leave(GOOD)").end
    assert (end.outcome, "Cannot allocate memory" in end.evidence) == (Outcome.HOST_OUT_OF_MEMORY, True)


def test_a_job_runs_in_its_own_folder(tmp_path: Path) -> None:
    assert run_stand_in(tmp_path, "Path('here').touch(); leave(GOOD)").end.ok
    assert (tmp_path / "here").exists()


def test_a_hanging_step_is_ended_and_says_where(tmp_path: Path) -> None:
    script = (
        "import faulthandler; faulthandler.register(signal.SIGUSR1, file=open(folder / 'stacks-0.txt', 'w'))\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "def all_reduce(): time.sleep(100)\n"
        "beat('steady', 4); all_reduce()"
    )
    began = time.monotonic()
    result = run_stand_in(tmp_path, script, limits=replace(QUICK, step_seconds=0.5))
    assert result.end.outcome is Outcome.TIMED_OUT
    assert (result.end.rank, result.end.phase) == (0, "steady")
    assert "after step 4: no sign of life for 0.5 s" in result.end.evidence
    assert "in all_reduce" in result.end.evidence
    assert "in all_reduce" in (tmp_path / "stacks-0.txt").read_text(), "the stacks stay for whoever looks into it"
    assert time.monotonic() - began < 10
    assert nothing_is_left(tmp_path)


def test_loading_may_take_longer_than_a_step(tmp_path: Path) -> None:
    script = "beat('load', 0); time.sleep(1.2); beat('steady', 3); leave(GOOD)"
    assert run_stand_in(tmp_path, script, limits=replace(QUICK, step_seconds=0.4)).end.ok


def test_a_job_that_steps_for_ever_is_ended(tmp_path: Path) -> None:
    script = "for step in range(10**6): beat('steady', step); time.sleep(0.01)"
    end = run_stand_in(tmp_path, script, limits=replace(QUICK, total_seconds=1.0)).end
    assert (end.outcome, "not done after 1 s" in end.evidence) == (Outcome.TIMED_OUT, True)


@pytest.mark.parametrize(("said", "shown"), [("steady 2", "steady 2"), ("steady 2 1.625", "steady 2 1.625")])
def test_progress_is_phase_and_step_and_the_loss_where_it_is_told(tmp_path: Path, said: str, shown: str) -> None:
    lines: list[str] = []
    tiny_job.make(tmp_path)
    script = f"(folder / 'beat-0').write_text(f'{{os.getpid()}} 1 {said}'.ljust(63)); time.sleep(0.3); leave(GOOD)"
    with launch.open_bench(()) as bench:
        bench = replace(bench, child=tiny_job.stand_in(script))
        assert launch.run(tmp_path, bench, limits=QUICK, progress=lines.append).end.ok
    assert lines == [shown]


def test_an_interrupt_cancels_and_leaves_nothing(tmp_path: Path) -> None:
    timer = threading.Timer(1.0, _thread.interrupt_main)
    timer.start()
    result = run_stand_in(tmp_path, "signal.signal(signal.SIGINT, signal.SIG_IGN); beat('steady', 1); time.sleep(100)")
    timer.join()
    assert result.end.outcome is Outcome.CANCELLED
    assert nothing_is_left(tmp_path)
    assert json.loads((tmp_path / job.RESULT).read_text())["end"]["outcome"] == "cancelled"


def test_a_daemon_of_the_job_goes_with_it(tmp_path: Path) -> None:
    script = (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'], start_new_session=True)\n"
        "(folder / 'pid').write_text(str(child.pid)); leave(GOOD)"
    )
    assert run_stand_in(tmp_path, script).end.ok
    assert processes.started_ticks(int((tmp_path / "pid").read_text())) is None


LOST_PEER = """
if rank == 1:
    fail("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 4.00 GiB")
time.sleep(0.2)
fail("torch.distributed.DistBackendError", "NCCL error: remote process exited or there was a network error", at=0.0)
"""


def test_the_first_failing_rank_tells_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "command_of", _two_ranks)
    end = run_stand_in(tmp_path, LOST_PEER, ranks=2).end
    assert (end.outcome, end.rank) == (Outcome.OUT_OF_MEMORY, 1)


def test_one_stuck_rank_of_two_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "command_of", _two_ranks)
    script = (
        "for step in range(10**6 if rank == 0 else 3):\n    beat('steady', step); time.sleep(0.01)\ntime.sleep(100)"
    )
    end = run_stand_in(tmp_path, script, ranks=2, limits=replace(QUICK, step_seconds=0.6)).end
    assert (end.outcome, end.rank) == (Outcome.TIMED_OUT, 1)
    assert nothing_is_left(tmp_path)


def test_ranks_that_disagree_about_the_end_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "command_of", _two_ranks)
    end = run_stand_in(tmp_path, "leave(GOOD) if rank == 0 else None", ranks=2).end
    assert "1 of 2 ranks left no readable result" in end.evidence


def _two_ranks(child: list[str], work: job.Job) -> list[str]:
    """What a launcher of processes does, in a fraction of torchrun's time."""
    code = (
        "import os, subprocess, sys\n"
        "ranks = [subprocess.Popen(sys.argv[1:], env={**os.environ, 'RANK': str(rank)}) for rank in range(2)]\n"
        "sys.exit(max(abs(rank.wait()) for rank in ranks))"
    )
    return [child[0], "-c", code, *child]


def test_secrets_reach_neither_the_job_nor_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"):
        monkeypatch.setenv(name, "canary-4711")
    script = "print(dict(os.environ)); raise ValueError('https://user:canary-4712@host failed with hf_canary471300')"
    result = run_stand_in(tmp_path, script)
    told = result.end.evidence + "".join(path.read_text() for path in tmp_path.iterdir() if path.name != job.LOG)
    assert "canary" not in told
    assert "canary-4711" not in (tmp_path / job.LOG).read_text()


def test_the_environment_is_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    inherited = {"PATH": "/bin", "PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync", "RANK": "3"}
    gpus = (gpu(), replace(gpu(), uuid="GPU-2222-bbbb"))
    parallel = Parallelism(kind="zero2", devices=2, offload=("optimizer",))
    work = job.Job(recipe=tiny_job.recipe(parallelism=parallel), config=tiny_job.CONFIG)
    monkeypatch.setattr("runners.environment.usable_cores", lambda: 16)
    found = environment_of(work, gpus, inherited)
    assert found["CUDA_VISIBLE_DEVICES"] == f"{CARD},GPU-2222-bbbb"
    numbered = environment_of(work, [replace(one, index=place + 4) for place, one in enumerate(gpus)], inherited)
    assert numbered["CUDA_VISIBLE_DEVICES"] == "4,5"  # DeepSpeed reads no other names
    assert (
        found["PLAN_CARDS"] == numbered["PLAN_CARDS"] == f"{CARD},GPU-2222-bbbb"
    )  # each rank checks its card by these
    assert found["OMP_NUM_THREADS"] == "8"
    assert "RANK" not in found and "PYTORCH_CUDA_ALLOC_CONF" not in found
    expandable = job.Job(recipe=tiny_job.recipe(expandable_segments=True), config=tiny_job.CONFIG)
    assert environment_of(expandable, gpus[:1], inherited)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_the_attention_of_a_job_is_its_own_and_not_the_shell_s() -> None:
    """torch reads which of its kernels goes last from the environment alone."""
    plain, without = (
        job.Job(recipe=tiny_job.recipe(attention=name), config=tiny_job.CONFIG) for name in ("sdpa", "sdpa_no_cudnn")
    )
    name = "TORCH_CUDNN_SDPA_DEPRIORITIZED"
    assert name not in environment_of(plain, (), {name: "1"})
    assert environment_of(without, (), {})[name] == environment_of(without, (), {name: "0"})[name] == "1"


def test_a_full_disk_does_not_lose_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, document: object) -> None:
        raise OSError(28, "No space left on device")

    tiny_job.make(tmp_path)
    with launch.open_bench(()) as bench:
        monkeypatch.setattr(job, "write_atomically", full)
        assert launch.run(tmp_path, replace(bench, child=tiny_job.stand_in("leave(GOOD)")), limits=QUICK).end.ok


def test_a_job_whose_disk_is_full_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which disk, and what is left of it; its own word of that may be lost, as the job's files are on it too."""
    script = "(folder / 'step').write_text('1'); open('/dev/full', 'w').write('weights' * 10_000)"
    assert "left on the disk" not in run_stand_in(tmp_path / "other", script).end.evidence
    usage = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    end = run_stand_in(tmp_path / "job", script).end
    assert end.outcome is Outcome.FAILED
    assert f"4 KiB left on the disk of {tmp_path / 'job'}" in end.evidence
    assert "No space left on device" in end.evidence
    silent = run_stand_in(tmp_path / "silent", "os._exit(1)").end
    assert "left on the disk of" in silent.evidence
    assert run_stand_in(tmp_path / "well", "leave(GOOD)").end.ok


class Torn(Exception):  # noqa: N818 (what a handler raises)
    """The clean-up was interrupted."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_end_the_cleaning_up_after_the_first(number: signal.Signals) -> None:
    def tear(caught: int, frame: object) -> None:
        raise Torn

    before = signal.signal(number, tear)
    try:
        with undisturbed():
            signal.raise_signal(number)
        with pytest.raises(Torn):
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)
