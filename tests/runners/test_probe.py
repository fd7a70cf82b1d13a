"""The probe against every state of a driver: what is usable is told, what is broken has a cause and a next step."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import runners.probe
from estimators.errors import NoUsableGpu
from runners.probe import Probe

if TYPE_CHECKING:
    from tests.runners.conftest import Machine

GIB = 1 << 30
REPOSITORY = Path(runners.probe.__file__).parents[1]
A10G = {"name": "NVIDIA A10G", "memory2": f"{23028 << 20},{400 << 20},{22628 << 20},0"}
RTX_4090 = {"name": "NVIDIA GeForce RTX 4090", "memory2": f"{24564 << 20},0,{24564 << 20},0"}
T4 = {"name": "Tesla T4", "memory2": f"{15360 << 20},0,{15360 << 20},0"}
FAST, SLOW = {"cores": 16384, "max_clock_sm": 3105}, {"cores": 2560, "max_clock_sm": 1590}


def _uuids(machine: "Machine", *cards: dict[str, Any], **environment: str) -> list[str | None]:
    return [gpu.uuid for gpu in machine.probe(*cards, environment=environment).gpus]


def test_four_equal_cards_come_in_the_order_of_their_slots(machine: "Machine") -> None:
    slots = [{**A10G, "uuid": f"GPU-{slot}", "bus": f"00000000:{slot}:00.0"} for slot in ("1e", "1b", "1d", "1c")]
    assert _uuids(machine, *slots) == ["GPU-1b", "GPU-1c", "GPU-1d", "GPU-1e"]
    probe = machine.probe(*slots, environment={"CUDA_VISIBLE_DEVICES": "3,0"})
    assert [(gpu.uuid, gpu.index) for gpu in probe.gpus] == [("GPU-1e", 0), ("GPU-1b", 1)]
    assert (probe.hidden, probe.absent, probe.lost) == (2, None, ())
    assert all(gpu.notes == () for gpu in probe.gpus)


def test_different_cards_come_fastest_first_and_an_ordinal_is_marked_as_assumed(machine: "Machine") -> None:
    cards = [{**T4, **SLOW, "uuid": "GPU-slow"}, {**RTX_4090, **FAST, "uuid": "GPU-fast"}]
    assert _uuids(machine, *cards) == ["GPU-fast", "GPU-slow"]
    (first,) = machine.probe(*cards, environment={"CUDA_VISIBLE_DEVICES": "0"}).gpus
    assert first.uuid == "GPU-fast"
    assert "assumed" in " ".join(first.notes)


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "GPU-slow"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-f"}, "GPU-fast"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-slow"}, "GPU-slow"),
    ],
)
def test_pci_order_and_uuids_leave_nothing_to_assume(
    machine: "Machine", environment: dict[str, str], shown: str
) -> None:
    cards = [{**T4, **SLOW, "uuid": "GPU-slow"}, {**RTX_4090, **FAST, "uuid": "GPU-fast"}]
    (gpu,) = machine.probe(*cards, environment=environment).gpus
    assert gpu.uuid == shown
    assert gpu.notes == ()


@pytest.mark.parametrize(
    ("count", "environment", "reason"),
    [
        (4, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES hides all 4 GPUs (it is '')"),
        (4, {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES hides all 4 GPUs (it is '-1')"),
        (1, {"CUDA_VISIBLE_DEVICES": "7\x1b[2J"}, "CUDA_VISIBLE_DEVICES hides the only GPU (it is '7\\x1b[2J')"),
        (2, {"CUDA_DEVICE_ORDER": "x"}, "CUDA_DEVICE_ORDER='x' hides all 2 GPUs: CUDA knows only"),
    ],
)
def test_hidden_gpus_are_counted_and_the_reason_told(
    machine: "Machine", count: int, environment: dict[str, str], reason: str
) -> None:
    probe = machine.probe(*([A10G] * count), environment=environment)
    assert probe.gpus == ()
    assert probe.hidden == count
    assert (probe.absent or "").startswith(reason)
    assert probe.driver_version == "580.159.04"


def test_a_driver_without_gpus_is_no_error(machine: "Machine") -> None:
    for probe in (machine.probe(), machine.probe(init="!6"), machine.probe(init="!28")):
        assert (probe.gpus, probe.hidden, probe.absent) == ((), 0, "the driver reports no GPU")
        assert probe.host.memory_bytes == 100 * GIB


def test_a_driver_that_is_not_loaded_is_no_error_but_one_that_does_not_answer_is(machine: "Machine") -> None:
    with pytest.raises(NoUsableGpu, match="although its device files exist"):
        machine.probe(init="!9")
    (machine.root / "dev/nvidia0").unlink()
    assert "not loaded" in (machine.probe(init="!9").absent or "")


BROKEN = {
    4: "pass the device into the container",
    15: "power-cycle the machine",
    16: "nvidia-smi --gpu-reset",
    18: "reboot, or reload the nvidia kernel modules",
    999: "in a container restart it",
    20: "run nvidia-smi and see dmesg",
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_driver_is_refused_with_cause_and_next_step(machine: "Machine", code: int) -> None:
    with pytest.raises(NoUsableGpu) as refusal:
        machine.probe(A10G, init=f"!{code}")
    message = str(refusal.value)
    assert BROKEN[code] in message
    assert f"NVML error {code}" in message
    assert "\n" not in message
    assert refusal.value.exit_code == 4


@pytest.mark.parametrize("failure", [{"": "!15"}, {"handle": "!15"}, {"handle": "!4"}, {"name": "!999"}])
def test_a_lost_gpu_leaves_the_others(machine: "Machine", failure: dict[str, str]) -> None:
    probe = machine.probe({**A10G, **failure}, A10G)
    assert [gpu.index for gpu in probe.gpus] == [1]
    (line,) = probe.lost
    assert line.startswith("GPU 0: ")
    assert probe.absent is None
    (gpu,) = machine.probe({**A10G, **failure}, A10G, environment={"CUDA_VISIBLE_DEVICES": "0"}).gpus
    assert "a GPU of this machine is lost" in " ".join(gpu.notes)


def test_a_gpu_that_dies_while_it_is_read_is_lost_by_name(machine: "Machine") -> None:
    probe = machine.probe(A10G, {**A10G, "clock_sm": "!15"})
    assert [gpu.index for gpu in probe.gpus] == [0]
    assert probe.lost[0].startswith("GPU 1 (NVIDIA A10G): the GPU has fallen off the bus")


def test_only_lost_gpus_are_an_error(machine: "Machine") -> None:
    with pytest.raises(NoUsableGpu, match=r"GPU 0: the GPU has fallen off the bus.*\(and 1 more\)"):
        machine.probe({**A10G, "": "!15"}, {**A10G, "": "!15"})
    with pytest.raises(NoUsableGpu, match="does not tell its memory"):
        machine.probe(A10G, {"name": "NVIDIA A10G", "memory": "!999"}, environment={"CUDA_VISIBLE_DEVICES": "1"})


def _python(code: str, *paths: Path, **environment: str) -> str:
    """What a fresh interpreter prints; the paths come before the repository."""
    search = ":".join(map(str, [*paths, REPOSITORY, *sys.path]))
    command = [sys.executable, "-P", "-c", code]
    run = subprocess.run(command, env={"PYTHONPATH": search, **environment}, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


ASK = """
from pathlib import Path
from estimators.errors import NoUsableGpu
from runners.probe import Probe
from runners.probe import probe
try:
    print(probe({}, root=Path(ROOT)).absent)
except NoUsableGpu as error:
    print(error)
"""


def test_no_driver_library_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("no library", encoding="utf-8")
    ask = ASK.replace("ROOT", repr(str(tmp_path)))
    assert _python(ask, LD_LIBRARY_PATH=str(tmp_path)) == "no NVIDIA driver (libnvidia-ml.so.1 not found)"
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    assert "a container needs the driver's 'utility' capability" in _python(ask, LD_LIBRARY_PATH=str(tmp_path))


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        ("pynvml", "lacks nvmlMemory_v2 and comes from pynvml: pip uninstall pynvml, then reinstall nvidia-ml-py"),
        ("nvidia_ml_py", "lacks nvmlMemory_v2 and is too old: pip install --upgrade nvidia-ml-py"),
    ],
)
def test_another_package_that_shadows_the_binding_is_named(tmp_path: Path, distribution: str, message: str) -> None:
    names = [name for name in runners.probe._NEEDED if name != "nvmlMemory_v2"]
    (tmp_path / "pynvml.py").write_text("".join(f"{name} = None\n" for name in names), encoding="utf-8")
    metadata = tmp_path / f"{distribution}-8.0.4.dist-info"
    metadata.mkdir()
    name = distribution.replace("_", "-")
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 8.0.4\n", encoding="utf-8")
    (metadata / "RECORD").write_text("pynvml.py,,\n", encoding="utf-8")
    assert message in _python(ASK.replace("ROOT", repr(str(tmp_path))), tmp_path)


def test_a_missing_binding_is_named(tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError\n", encoding="utf-8")
    assert "pip install nvidia-ml-py" in _python(ASK.replace("ROOT", repr(str(tmp_path))), tmp_path)


def test_importing_the_probe_asks_no_driver() -> None:
    assert _python("import sys, runners.probe; print('pynvml' in sys.modules, 'torch' in sys.modules)") == "False False"


def test_probing_needs_neither_torch_nor_cuda(machine: "Machine") -> None:
    machine.probe(A10G)
    assert machine.ask(eval, "'torch' in __import__('sys').modules") is False
    assert "libcudart" not in machine.ask(Path("/proc/self/maps").read_text)


CUDA = """
import ctypes
cuda, count, seen = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0), []
if cuda.cuInit(0) == 0:
    cuda.cuDeviceGetCount(ctypes.byref(count))
for ordinal in range(count.value):
    device, uuid, size = ctypes.c_int(), (ctypes.c_ubyte * 16)(), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    cuda.cuDeviceGetUuid_v2(uuid, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    seen.append((bytes(uuid).hex(), size.value))
print(seen)
"""


@pytest.fixture
def real() -> Probe:
    probe = runners.probe.probe({})
    if not probe.gpus or any(gpu.mig_parent_uuid for gpu in probe.gpus):
        pytest.skip(f"needs a GPU that is not in MIG mode: {probe.absent}")
    return probe


@pytest.mark.gpu
def test_cuda_sees_the_same_gpus_in_the_same_order(real: Probe) -> None:
    first, last = str(real.gpus[0].uuid), str(real.gpus[-1].uuid)
    shuffled = [f"{last},{first[:12]}", f"GPU-{last[4:].upper()}", f"{first}x", f"{first[:12]}z", f"{first},{first}"]
    for value in [None, "", "0", "1,0", "0,0", "0,99,99", "0,-1,0", "1x", "GPU-", *shuffled]:
        environment = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
        inherited = {key: text for key, text in os.environ.items() if not key.startswith(("CUDA_", "PYTHONPATH"))}
        seen = [uuid for uuid, _ in ast.literal_eval(_python(CUDA, **inherited, **environment))]
        shown = [str(gpu.uuid)[4:].replace("-", "") for gpu in runners.probe.probe(environment).gpus]
        assert shown == seen, value


@pytest.mark.gpu
def test_usable_memory_is_what_cuda_calls_total(real: Probe) -> None:
    inherited = {key: text for key, text in os.environ.items() if not key.startswith(("CUDA_", "PYTHONPATH"))}
    sizes = [size for _, size in ast.literal_eval(_python(CUDA, **inherited))]
    assert [gpu.device.usable_bytes for gpu in real.gpus] == sizes


@pytest.mark.gpu
def test_the_probe_holds_no_gpu_memory(real: Probe) -> None:
    again = runners.probe.probe({})
    assert os.getpid() not in [process.pid for gpu in again.gpus for process in gpu.processes]
    assert [gpu.free_bytes for gpu in again.gpus] == [gpu.free_bytes for gpu in real.gpus]
