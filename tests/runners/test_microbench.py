"""The microbenchmarks: all of them for real on the CPU, in the child that a GPU machine has, and its bad ends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

import profiles
from estimators.calibration import Rates
from estimators.catalogue import find_device
from estimators.device_profile import QUANTITIES, DeviceProfile, profile_document, profile_from_document
from estimators.hardware import Gpu, GpuProcess
from estimators.profiled import told
from estimators.traced_throughput import host_seconds
from runners import processes
from runners.cards import CardState, OccupiedGpu
from runners.microbench import child
from runners.microbench.clock import Clock
from runners.microbench.collectives import collectives, launched
from runners.microbench.host import VARIANTS, Host, Passes, _issued
from runners.microbench.kernels import Bench
from runners.microbench.launch import OF_SEVERAL_GPUS, CalibrationFailedError, Wish, calibrate
from runners.microbench.sizes import FULL, TINY

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("tests.runners.quick_bench",)
CPU = {"device": "cpu", "card": "h200-sxm", "sizes": "tiny", "ranks": 1}


@pytest.fixture(scope="module")
def profile() -> DeviceProfile:
    """Real products, copies, models and layers, in a child under the guard."""
    return calibrate((), Wish(sizes="tiny", longest_seconds=240.0))


def test_every_figure_is_found_or_says_why_not(profile: DeviceProfile) -> None:
    assert profile.figures.keys() | profile.missing.keys() == QUANTITIES.keys() - set(OF_SEVERAL_GPUS)
    assert not profile.figures.keys() & profile.missing.keys()
    assert all(figure > 0 for figure in profile.figures.values())
    assert all(why for why in profile.missing.values())
    assert profile.teaches


def test_the_figures_that_need_nothing_but_torch_are_there(profile: DeviceProfile) -> None:
    plain = {
        "matmul_bfloat16", "matmul_float32", "elementwise", "copy", "narrow", "kernel_seconds", "attention",
        "uneven_attention", "update", "pinned_to_device", "pageable_to_host", "disk_write", "disk_read", "view_seconds",
        "module_seconds", "operator_seconds", "backward_operator_seconds", "dequantize",
    }  # fmt: skip
    assert plain <= profile.figures.keys(), profile.missing
    assert profile.figures["view_seconds"] < profile.figures["operator_seconds"]


def test_an_average_host_is_told_the_default_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose passes take what the default rates say of a dry run: what the figures are made of is undone."""
    usual = Rates()

    def passes(host: Host, variant: str) -> Passes:
        work, quantization = host._work(variant), VARIANTS[variant].quantization
        ahead, again, back = (
            host_seconds(work, phase, usual.traced, quantization) for phase in ("forward", "recomputation", "backward")
        )
        return Passes(forward=ahead, backward=again + back, work=work)

    monkeypatch.setattr(Host, "_passes", passes)
    clock = Clock(device="cpu", round_seconds=FULL.round_seconds)
    host = Host(bench=Bench(clock=clock, sizes=FULL), card="h200-sxm")
    figures = {**host.adapters(), **host.four_bits(), **host.eight_bits(), **host.checkpointing()}
    plain = host._passes("plain")
    figures["backward_operator_seconds"] = plain.backward / _issued(plain.work, "backward")
    figures |= {name: getattr(usual.traced, name) for name in ("operator_seconds", "view_seconds", "module_seconds")}
    card = find_device("h200-sxm")
    shipped = profile_from_document(json.loads(profiles.read("calibrations", "h200.json")))
    found = list(told(usual, replace(shipped, figures=figures), card))
    assert len([one for one in found if one.follows.place == "traced"]) == 10
    for one in found:
        if one.follows.rate != "backward_dispatch_seconds":  # the formula's own is not that of the pass
            assert one.now == pytest.approx(one.before, rel=0.03), one.follows.name


def test_the_profile_is_a_document(profile: DeviceProfile) -> None:
    assert profile_from_document(profile_document(profile)) == profile
    assert profile.versions["torch"]
    assert profile.gpu == "cpu"


def test_a_library_that_is_absent_costs_its_own_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    report = child.Report(path=tmp_path / "found.json")
    wanted = {"NF4 dequantisation", "8-bit products", "memory"}
    for step in child.steps(dict(CPU)):
        if step.title in wanted:
            child.run(step, report)
    assert report.figures.keys() == {"elementwise", "copy"}
    assert report.missing.keys() == {"dequantize", "int8"}
    assert "bitsandbytes" in report.missing["int8"]


def test_two_processes_reduce_and_gather() -> None:
    bench = Bench(clock=Clock(device="cpu", round_seconds=TINY.round_seconds), sizes=TINY)
    found = collectives(bench, 2)
    assert found.keys() == set(OF_SEVERAL_GPUS)
    assert all(figure > 0 for figure in found.values())


LAUNCHER = """
import pathlib, subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(100)"], start_new_session=True)
pathlib.Path(sys.argv[1]).write_text(str(rank.pid))
rank.wait()
"""


def test_ranks_do_not_outlive_a_launcher_that_takes_too_long(tmp_path: Path) -> None:
    """They would disturb every figure after theirs."""
    with pytest.raises(subprocess.TimeoutExpired):
        launched([sys.executable, "-I", "-c", LAUNCHER, str(tmp_path / "rank")], 2.0)
    rank = int((tmp_path / "rank").read_text())
    alive = processes.started_ticks(rank) is not None
    if alive:
        os.kill(rank, signal.SIGKILL)
    assert not alive


def test_a_child_that_takes_too_long_is_ended_and_what_it_found_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICK", "hangs")
    seen: list[str] = []
    found = calibrate((), Wish(child=QUICK, longest_seconds=3.0), seen.append)
    assert found.figures == {"copy": 3e12}
    assert found.missing["attention"] == "was not done after 3 s, in copies"
    assert not found.missing.keys() & set(OF_SEVERAL_GPUS)
    assert seen == ["copies"]


def test_a_child_that_dies_leaves_what_it_had_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICK", "dies")
    found = calibrate((), Wish(child=QUICK))
    assert found.figures == {"copy": 3e12}
    assert "the card fell off the bus" in found.missing["attention"]


def test_a_child_that_leaves_nothing_is_an_error_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICK", "nothing")
    with pytest.raises(CalibrationFailedError, match="the card fell off the bus"):
        calibrate((), Wish(child=QUICK))


def gpu() -> Gpu:
    device = find_device("h200-sxm")
    return Gpu(device=device, total_bytes=device.total_bytes, uuid="GPU-test", index=0)


def watched(*processes: GpuProcess) -> Callable[[Sequence[str]], object]:
    @contextmanager
    def watch(uuids: Sequence[str]) -> Iterator[Callable[[], Sequence[CardState]]]:
        yield lambda: [CardState(uuid=uuid, held_bytes=0, processes=processes) for uuid in uuids]

    return watch


def test_the_link_that_was_measured_is_the_one_that_the_driver_sees() -> None:
    """NVLink on the data sheet is no NVLink in the machine."""
    apart = [replace(gpu(), uuid=f"GPU-{at}") for at in range(2)]
    joined = [replace(one, nvlink_peers=(f"GPU-{1 - at}",)) for at, one in enumerate(apart)]
    card = gpu().device
    assert card.peer_link is not None
    for gpus, link in ((apart, card.host_link), (joined, card.peer_link)):
        found = calibrate(gpus, Wish(child=QUICK, watch=watched()))  # type: ignore[arg-type]
        assert found.peer_bytes_per_second == link.bytes_per_second
    assert calibrate(apart[:1], Wish(child=QUICK, watch=watched())).peer_bytes_per_second is None  # type: ignore[arg-type]


def test_an_occupied_gpu_is_refused_and_a_shared_one_teaches_nothing() -> None:
    other = GpuProcess(pid=1, used_bytes=1 << 30, name="somebody")
    with pytest.raises(OccupiedGpu, match="somebody") as refused:
        calibrate([gpu()], Wish(child=QUICK, watch=watched(other)))  # type: ignore[arg-type]
    assert refused.value.exit_code == 4
    shared = calibrate([gpu()], Wish(child=QUICK, watch=watched(other), share=True))  # type: ignore[arg-type]
    assert shared.figures == {"copy": 3e12}
    assert shared.notes
    assert not shared.teaches
    assert calibrate([gpu()], Wish(child=QUICK, watch=watched())).teaches  # type: ignore[arg-type]


def test_the_planner_never_makes_a_cuda_context() -> None:
    """It does not so much as import torch, before, during or after."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.path.insert(0, '.'); "
        "from runners.microbench.launch import Wish, calibrate; "
        f"print(calibrate((), Wish(child={QUICK!r})).figures)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "copy" in done.stdout
