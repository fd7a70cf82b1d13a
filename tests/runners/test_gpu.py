"""What the probe tells about one GPU: every figure that the driver gives, and None for those that it withholds."""

from typing import TYPE_CHECKING, Any

import pytest

from estimators.hardware import Gpu, GpuProcess

if TYPE_CHECKING:
    from tests.runners.conftest import Machine

GIB = 1 << 30


def _only(machine: "Machine", **changes: Any) -> Gpu:
    (gpu,) = machine.probe({**machine.h200, **changes}).gpus
    return gpu


def test_a_healthy_card_answers_everything(machine: "Machine") -> None:
    gpu = _only(machine, uuid="GPU-59b384ea", retired_single=0, retired_double=0)
    assert gpu.device.title == "NVIDIA H200"
    assert gpu.device.confidence == "verified"
    assert gpu.device.total_bytes == gpu.total_bytes == 150754820096
    assert gpu.device.usable_bytes == 150109880320, "cuDeviceTotalMem's answer on the card these figures are from"
    assert (gpu.free_bytes, gpu.used_bytes, gpu.reserved_bytes) == (150109880320, 0, 644939776)
    assert (gpu.index, gpu.uuid, gpu.driver_version) == (0, "GPU-59b384ea", "580.159.04")
    assert (gpu.sm_clock_mhz, gpu.max_sm_clock_mhz, gpu.memory_clock_mhz) == (585, 1980, 3201)
    assert (gpu.power_limit_watts, gpu.pcie_generation, gpu.pcie_width) == (700.0, 5, 16)
    assert (gpu.ecc_enabled, gpu.retired_pages, gpu.throttle_reasons) == (True, 0, ())
    assert (gpu.processes, gpu.nvlink_peers, gpu.mig_parent_uuid, gpu.notes) == ((), (), None, ())


def test_a_card_that_withholds_everything_else_still_has_its_memory(machine: "Machine") -> None:
    (gpu,) = machine.probe({"name": "NVIDIA H200", "memory": machine.h200["memory"], "uuid": "!3", "bus": "!3"}).gpus
    assert (gpu.total_bytes, gpu.free_bytes) == (150754820096, 150109880320)
    assert gpu.device.usable_bytes < gpu.device.total_bytes
    clocks = (gpu.sm_clock_mhz, gpu.memory_clock_mhz, gpu.max_sm_clock_mhz)
    health = (gpu.uuid, gpu.reserved_bytes, gpu.power_limit_watts, gpu.ecc_enabled, gpu.retired_pages)
    assert {*clocks, *health, gpu.pcie_generation, gpu.pcie_width} == {None}
    assert (gpu.throttle_reasons, gpu.processes, gpu.nvlink_peers, gpu.notes) == ((), (), (), ())


def test_processes_are_listed_once_and_named(machine: "Machine") -> None:
    machine.write("proc/700/comm", "python3\n")
    machine.write("proc/701/comm", "evil\x1b[2J\n")
    held = {"compute": f"700:{4 * GIB} 701:{GIB}", "graphics": f"700:{3 * GIB} 99:{GIB}", "mps": f"98:{GIB}"}
    gpu = _only(machine, **held, memory2=f"{140 * GIB},0,{133 * GIB},{7 * GIB}")
    assert gpu.processes == (
        GpuProcess(pid=98, used_bytes=GIB, name=None),
        GpuProcess(pid=99, used_bytes=GIB, name=None),
        GpuProcess(pid=700, used_bytes=4 * GIB, name="python3"),
        GpuProcess(pid=701, used_bytes=GIB, name="evil?[2J"),
    )
    assert "in use: process 700 (python3) holds 4.00 GiB" in gpu.notes
    assert len(gpu.notes) == 4


def test_an_older_driver_lists_its_processes_too(machine: "Machine") -> None:
    gpu = _only(machine, compute="!13", compute_old=f"700:{GIB}")
    assert gpu.processes == (GpuProcess(pid=700, used_bytes=GIB, name=None),)


def test_in_a_container_a_process_id_gets_no_foreign_name(machine: "Machine") -> None:
    machine.write("proc/700/comm", "innocent\n")
    (machine.root / "proc/self/ns/pid").unlink()
    (machine.root / "proc/self/ns/pid").symlink_to("pid:[4026532285]")
    assert _only(machine, compute=f"700:{GIB}").processes == (GpuProcess(pid=700, used_bytes=GIB, name=None),)


def test_memory_held_by_processes_out_of_sight_is_told(machine: "Machine") -> None:
    held = _only(machine, memory2=f"{140 * GIB},{GIB},{100 * GIB},{39 * GIB}")
    assert held.notes == ("in use: 39.00 GiB by processes that the driver does not show here, as in another container",)
    with_reserved_in_used = _only(machine, memory2=f"{140 * GIB},{GIB},{139 * GIB},{GIB}")
    assert with_reserved_in_used.notes == ()
    assert with_reserved_in_used.device.usable_bytes == 139 * GIB


def test_wsl_tells_no_process_memory_and_spills(machine: "Machine") -> None:
    machine.write("dev/dxg", "")
    gpu = _only(machine, compute="700:na", memory2=f"{140 * GIB},0,{100 * GIB},{40 * GIB}", ecc="!3", power="!3")
    assert gpu.processes == (GpuProcess(pid=700, used_bytes=None, name=None),)
    assert gpu.free_bytes == 100 * GIB
    assert gpu.notes[0] == "in use: process 700 holds memory that the driver does not tell"
    assert gpu.notes[-1].startswith("WSL: ")


@pytest.mark.parametrize("source", ["throttle", "throttle_old"])
def test_a_throttled_card_is_marked(machine: "Machine", source: str) -> None:
    gpu = _only(machine, **{"throttle": "!13", source: 0x1 | 0x4 | 0x20 | 0x40})
    assert gpu.throttle_reasons == ("sw_power_cap", "sw_thermal_slowdown", "hw_thermal_slowdown")
    assert any("sw_thermal_slowdown, hw_thermal_slowdown" in note for note in gpu.notes)
    assert _only(machine, throttle=0x1).throttle_reasons == ()


def test_retired_pages_and_remapped_rows(machine: "Machine") -> None:
    assert _only(machine, retired_single=3, retired_double=2, ecc="0,1").retired_pages == 5
    assert _only(machine, ecc="0,1").ecc_enabled is False
    worn = _only(machine, remapped="2,1,1,1")
    assert worn.retired_pages == 3
    assert any("reset the GPU" in note for note in worn.notes)
    assert any("have the card replaced" in note for note in worn.notes)
    assert any("reset the GPU" in note for note in _only(machine, remapped="!3", retired_pending=1).notes)


def test_a_narrow_slot_and_an_idle_link(machine: "Machine") -> None:
    gpu = _only(machine, pcie_generation=1, pcie_max_generation=4, pcie_width=8)
    assert (gpu.pcie_generation, gpu.pcie_width) == (4, 8)
    assert gpu.notes == ("PCIe runs at x8 of x16",)


@pytest.mark.parametrize(("mode", "word"), [(2, "prohibited"), (3, "exclusive")])
def test_a_compute_mode_that_gets_in_the_way_is_told(machine: "Machine", mode: int, word: str) -> None:
    assert word in " ".join(_only(machine, compute_mode=mode).notes)


def test_names_cannot_drive_a_terminal(machine: "Machine") -> None:
    probe = machine.probe({**machine.h200, "name": "NVIDIA H200\x1b]0;x\x07"})
    assert "\x1b" not in probe.gpus[0].device.title


BUS = "00000000:0{}:00.0"


def test_nvlink_peers_are_at_the_other_end_of_a_link(machine: "Machine") -> None:
    linked = {**machine.h200, "links": 4, "link0": f"gpu {BUS.format(2)}", "link3": f"gpu {BUS.format(2)}"}
    probe = machine.probe(linked, machine.h200, {**machine.h200, "links": 1, "link0": f"gpu {BUS.format(9)}"})
    peers = [gpu.nvlink_peers for gpu in probe.gpus]
    assert peers == [(probe.gpus[1].uuid,), (), (BUS.format(9),)]


def test_nvlink_peers_are_behind_the_same_switches(machine: "Machine") -> None:
    switched = {**machine.h200, "links": 18, "link0": f"switch {BUS.format(8)}"}
    cards = [{**switched, "p2p": "gpu1"}, {**switched, "p2p": "gpu0"}, {**switched, "p2p": ""}]
    probe = machine.probe(*cards)
    peers = [gpu.nvlink_peers for gpu in probe.gpus]
    assert peers == [(probe.gpus[1].uuid,), (probe.gpus[0].uuid,), ()]
