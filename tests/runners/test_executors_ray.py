"""Jobs on a Ray cluster: a real one of two machines that are this one, with GPUs that are only declared.

The jobs run on the CPU, their children are stand-ins; Ray, its workers, the launcher and the guards are real.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("ray") is None:  # imported before its environment is set it would let everybody in
    pytest.skip("ray is not installed", allow_module_level=True)

from estimators.errors import BadInput, NoUsableGpu
from estimators.outcome import Outcome
from planner.sweep.result import Retried
from planner.sweep.space import Space
from runners import guard, job, processes
from runners.executors import Ended, Event, Progress
from runners.executors import ray as cluster_of
from runners.executors.local import LocalExecutor
from runners.executors.ray import RayExecutor, connect
from runners.executors.station import LARGEST_FOLDER_BYTES, clear_up, own_folder, read_files, write_files
from runners.running import WARM_TOKEN
from tests.runners import tiny_job
from tests.runners.light_spare import code_of, scripted
from tests.runners.tiny_job import QUICK

PATIENCE_SECONDS = 60.0


def on_cpus(script: str) -> Callable[[int], LocalExecutor]:
    """The jobs of a worker run on its CPU, whatever GPUs it was given, and their child does what `script` says."""
    child, limits = tiny_job.stand_in(script), QUICK
    return lambda gpus: LocalExecutor((), child=child, limits=limits)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """As `connect` sets it; Ray reads it once, when it is imported."""
    names = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "canary" * 8, "RAY_USAGE_STATS_ENABLED": "0",
             "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def cluster(environment: None) -> Iterator[Any]:
    """A machine with two GPUs, as far as Ray is told."""
    from ray.cluster_utils import Cluster

    seconds = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = {"num_cpus": 4, "num_gpus": 2, "node_ip_address": "127.0.0.1", "include_dashboard": False,
            "_system_config": seconds}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # sockets want a short name
        found = Cluster(initialize_head=True, head_node_args={**head, "temp_dir": folder})
        try:
            yield found
        finally:
            found.shutdown()


def events_until(ray: RayExecutor, done: Callable[[list[Event]], object]) -> list[Event]:
    found: list[Event] = []
    until = time.monotonic() + PATIENCE_SECONDS
    while not done(found):
        assert time.monotonic() < until, (found, ray.places, ray.absent)
        found += ray.wait(0.2)
    return found


def ended(ray: RayExecutor, count: int = 1) -> list[Ended]:
    events = events_until(ray, lambda found: sum(isinstance(event, Ended) for event in found) >= count)
    return [event for event in events if isinstance(event, Ended)]


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def for_ever(root: Path, once: bool = False) -> str:
    """Says which process it is, and hangs; with `once`, only the first time."""
    mark = f"mark = Path({str(root)!r}) / f'{{Path.cwd().name}}.pid'; first = Path({str(root)!r}) / 'first'\n"
    hang = "mark.write_text(str(os.getpid())); beat('steady', 3); time.sleep(100)\n"
    if not once:
        return mark + hang
    return f"{mark}if not first.exists():\n    first.write_text(str(Path.cwd())); {hang}leave(GOOD)"


def running(root: Path, count: int = 1) -> list[int]:
    """The processes of the jobs, once so many have begun."""
    wait_for(lambda: len([path for path in root.glob("*.pid") if path.read_text()]) >= count)
    return [int(path.read_text()) for path in root.glob("*.pid")]


def test_jobs_run_side_by_side_and_their_folders_come_back(cluster: Any, tmp_path: Path) -> None:
    script = (
        f"root = Path({str(tmp_path)!r}); (root / f'{{os.getpid()}}.began').touch(); beat('steady', 3)\n"
        "while len(list(root.glob('*.began'))) < 2: time.sleep(0.02)\n"
        "print('what the job says', 'RAY_AUTH_TOKEN' in os.environ)\n"
        "(folder / 'weights.safetensors').write_bytes(bytes(5 << 20)); time.sleep(0.5); leave(GOOD)"
    )
    with closing(RayExecutor(cluster.address, make=on_cpus(script))) as ray:
        assert list(ray.places) == ["GPU 0", "GPU 1"]
        folders = [tiny_job.make(tmp_path / name) for name in "ab"]
        for place, folder in zip(ray.places, folders, strict=True):
            ray.start(place, folder)
        with pytest.raises(ValueError, match="GPU 0 is not free: it runs a job"):
            ray.start("GPU 0", tiny_job.make(tmp_path / "c"))
        events = events_until(ray, lambda found: sum(isinstance(event, Ended) for event in found) >= 2)
    over = [event for event in events if isinstance(event, Ended)]
    assert {event.folder for event in over} == set(folders)
    assert all(event.result is not None and event.result.end.ok for event in over), over
    assert {event.phase for event in events if isinstance(event, Progress)} == {"steady"}
    for folder in folders:
        assert (folder / job.RESULT).exists() and (folder / "rank-0.json").exists()
        assert "what the job says False" in (folder / job.LOG).read_text()
        assert not (folder / "weights.safetensors").exists(), "what is large stays where it was made"


def with_light_spares(code: str) -> Callable[[int], LocalExecutor]:
    """Jobs on a worker's CPU, in waiting processes that import nothing."""
    limits, program = QUICK, [sys.executable, "-P", "-c", code]

    def make(gpus: int) -> LocalExecutor:
        from runners import guard

        guard.python = lambda *arguments: program
        return LocalExecutor((), limits=limits)

    return make


def test_a_worker_gets_ready_before_its_first_job_and_tells_how_fast_that_is(cluster: Any, tmp_path: Path) -> None:
    mark = f"Path({str(tmp_path)!r}, f'{{os.getpid()}}.spare').write_text(os.environ['PLAN_JOB_TOKEN'])"
    code = code_of(forks=True, before=f"from pathlib import Path\n{mark}")
    script = "for number in range(2, 40): beat('steady', f'{number} 1.5 t{100 * number}'); time.sleep(0.1)\nleave(GOOD)"
    folder = scripted(tmp_path / "job", script)
    with closing(RayExecutor(cluster.address, make=with_light_spares(code))) as ray:
        ray.warm(job.read(folder))
        wait_for(lambda: len([path for path in tmp_path.glob("*.spare") if path.read_text()]) == len(ray.places))
        early = {path.read_text() for path in tmp_path.glob("*.spare")}
        ray.start(ray.places[0], folder)
        events = events_until(ray, lambda found: any(isinstance(event, Ended) for event in found))
    assert (folder / WARM_TOKEN).read_text() in early
    told = [event for event in events if isinstance(event, Progress)]
    assert told[-1].tokens_per_second == pytest.approx(1_000, rel=0.5)
    assert {(event.place, event.folder, event.loss) for event in told} == {(told[0].place, folder, 1.5)}


def test_a_worker_that_is_killed_loses_its_job_and_the_place_comes_back(cluster: Any, tmp_path: Path) -> None:
    with closing(RayExecutor(cluster.address, make=on_cpus(for_ever(tmp_path, once=True)))) as ray:
        ray.start("GPU 0", tiny_job.make(tmp_path / "a"))
        (pid,) = running(tmp_path)
        os.kill(parent(parent(pid)), signal.SIGKILL)  # the job's guard's parent
        (lost,) = ended(ray)
        assert (lost.place, lost.result, list(ray.places)) == ("GPU 0", None, ["GPU 1"])
        assert lost.lost.startswith("the worker is gone: ")
        wait_for(lambda: processes.started_ticks(pid) is None)
        events_until(ray, lambda _: not ray.absent)
        ray.start("GPU 0", tiny_job.make(tmp_path / "b"))
        (again,) = ended(ray)
        assert again.result is not None and again.result.end.ok
    assert not Path((tmp_path / "first").read_text()).parent.exists(), "what the dead one left is gone too"


def test_a_machine_that_goes_away_takes_its_places_along(cluster: Any, tmp_path: Path) -> None:
    machine = cluster.add_node(num_cpus=2, num_gpus=1, node_ip_address="127.0.0.2")
    with closing(RayExecutor(cluster.address, make=on_cpus(for_ever(tmp_path)))) as ray:
        (there,) = (place for place in ray.places if "127.0.0.2" in place)
        assert len(ray.places) == 3 and there.endswith(" GPU 0")
        ray.start(there, tiny_job.make(tmp_path / "a"))
        (pid,) = running(tmp_path)
        folder = Path(f"/proc/{pid}/cwd").readlink()
        cluster.remove_node(machine, allow_graceful=False)
        (lost,) = ended(ray)
        assert (lost.place, lost.result, list(ray.absent)) == (there, None, [there])
        assert len(ray.places) == 2
        wait_for(lambda: processes.started_ticks(pid) is None)
    assert folder.exists()
    clear_up()  # as the next worker of that machine does
    assert not folder.parent.exists()


def test_stopping_ends_one_job_and_closing_the_others(cluster: Any, tmp_path: Path) -> None:
    with closing(RayExecutor(cluster.address, make=on_cpus(for_ever(tmp_path)))) as ray:
        for place, name in zip(ray.places, "ab", strict=True):
            ray.start(place, tiny_job.make(tmp_path / name))
        pids = running(tmp_path, count=2)
        ray.stop("GPU 1")
        (over,) = ended(ray)
        assert (over.place, over.result and over.result.end.outcome) == ("GPU 1", Outcome.CANCELLED)
    assert [processes.started_ticks(pid) for pid in pids] == [None, None]
    with pytest.raises(ValueError, match="closed"):
        ray.start("GPU 0", tiny_job.make(tmp_path / "c"))


def test_a_trial_takes_whole_gpus_of_one_machine(cluster: Any, tmp_path: Path) -> None:
    seen = f"Path({str(tmp_path / 'seen')!r}).touch(); leave(GOOD)"
    with closing(RayExecutor(cluster.address, per_trial=2, make=on_cpus(seen))) as ray:
        assert list(ray.places) == ["GPUs 0-1"]
        ray.start("GPUs 0-1", tiny_job.make(tmp_path / "a"))
        assert ended(ray)[0].result is not None and (tmp_path / "seen").exists()
    with pytest.raises(NoUsableGpu, match="has 3 GPUs for a trial"):
        RayExecutor(cluster.address, per_trial=3)


def test_declared_gpus_that_the_driver_does_not_show_are_no_place(cluster: Any) -> None:
    with pytest.raises(NoUsableGpu, match="Ray gave this worker 1 GPUs, and the driver shows it 0"):
        RayExecutor(cluster.address, places_seconds=30)


def test_a_sweep_on_a_cluster_runs_what_a_dead_worker_had_once_more(
    cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    from tests.planner import sweeps

    first = tmp_path / "first"
    script = f"""
first = Path({str(first)!r})
if size == 8 and not first.exists():
    parent = lambda pid: int(Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[1])
    first.touch(); os.kill(parent(os.getppid()), 9); time.sleep(100)
"""
    child, limits = sweeps.child(f"import time\n{script}{sweeps.LEARN}"), QUICK
    order = sweeps.order(tmp_path / "sweep", space=Space(ranks=(4, 8, 16)), repeats=0)
    told: list[object] = []
    with closing(RayExecutor(cluster.address, make=lambda gpus: LocalExecutor((), child=child, limits=limits))) as ray:
        done = sweeps.sweep(order, executor=ray, listen=told.append)
    (lost,) = (event for event in told if isinstance(event, Retried))
    assert "the worker is gone" in lost.reason
    assert [(one.configuration.rank, one.outcome) for one in done.trials] == [(r, Outcome.OK) for r in (4, 8, 16)]
    assert {one.place for one in done.trials} <= {"GPU 0", "GPU 1"}
    assert done.recommendation is not None
    assert not ray.wait(0.0)
    assert capfd.readouterr().out == "", "stdout is the result's"


OWN = """
import os, subprocess, sys
from runners.executors.ray import RayExecutor
from runners.executors.local import LocalExecutor
executor = RayExecutor(make=lambda gpus: LocalExecutor(()))
import ray
print(*executor.places, os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"]))
print(*(node["NodeManagerAddress"] for node in ray.nodes()))
executor.close()
print(ray.is_initialized())
"""


def test_a_cluster_of_our_own_listens_to_this_machine_only_and_asks_for_a_token(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    logs = tempfile.mkdtemp(prefix="ray-")
    done = subprocess.run(
        [sys.executable, "-c", OWN],
        env={**environment, "PYTHONPATH": str(guard.ROOT), "HOME": str(tmp_path), "RAY_TMPDIR": logs},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    shutil.rmtree(logs, ignore_errors=True)
    assert done.stdout.split() == ["CPU", "token", "64", "127.0.0.1", "False"], done.stderr
    assert not (tmp_path / ".ray").exists(), "the token is nowhere on the disk"


def test_a_cluster_that_lets_everybody_in_or_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(BadInput, match="lets anybody"):
        connect("auto")
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(BadInput, match="HOST:PORT"):
        connect("ray://somewhere:10001")


def test_a_worker_that_ray_ends_for_want_of_memory_is_the_jobs_own_end(tmp_path: Path) -> None:
    """Run again it would be ended again."""
    from ray.exceptions import ActorDiedError, OutOfMemoryError

    story = (  # of ray 2.60, when it did it
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1) was 5.81GB "
        "used / 23.54GB limit (0.246895)\nOOM kill reason: Memory usage exceeded threshold\nEviction Stats:"
    )
    over = cluster_of.lost("GPU 0", tmp_path, OutOfMemoryError(story), 12.0)
    assert over.result is not None
    assert over.result.end.outcome is Outcome.HOST_OUT_OF_MEMORY
    assert "running low on memory" in over.result.end.evidence
    other = cluster_of.lost("GPU 0", tmp_path, ActorDiedError(), 12.0)
    assert (other.result, other.lost) == (None, "the worker is gone: " + ActorDiedError.BASE_ERROR_MSG)


def test_an_old_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "__version__", "2.51.2")
    with pytest.raises(BadInput, match=r"Ray 2\.51\.2 is not safe: 2\.52 or newer"):
        cluster_of._import()


def test_only_what_nobody_uses_is_cleared_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    used, left = own_folder(), own_folder()
    (tmp_path / "plan-jobs-link").symlink_to(tmp_path / "other")
    (tmp_path / "other").mkdir()
    (left[0] / "weights").touch()
    os.close(left[1])
    clear_up()
    assert {path.name for path in tmp_path.iterdir()} == {used[0].name, "plan-jobs-link", "other"}
    os.close(used[1])


def test_a_folder_travels_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, there = tiny_job.make(tmp_path / "a"), tmp_path / "there"
    there.mkdir()
    write_files(there, read_files(folder))
    assert job.read(there) == job.read(folder)
    with (folder / "large").open("wb") as file:
        file.truncate(LARGEST_FOLDER_BYTES)
    with pytest.raises(BadInput, match="too many to send"):
        read_files(folder)
    with pytest.raises(BadInput, match="absent: No such file"):
        read_files(tmp_path / "absent")
    for name in ("../escape", "/etc/escape", "..", "a/b", ""):
        with pytest.raises(BadInput, match="no name of a file"):
            write_files(there, {name: b""})
