"""Which Device a GPU is: MIG instances, shared memory, virtual GPUs, and cards that no catalogue knows."""

from typing import TYPE_CHECKING, Any

import pytest

from estimators.errors import NoUsableGpu
from estimators.hardware import Gpu

if TYPE_CHECKING:
    from tests.runners.conftest import Machine

GIB, MIB = 1 << 30, 1 << 20
PARENT = "GPU-a1b2c3d4-0000"
A100_MIG = {
    "name": "NVIDIA A100-SXM4-40GB", "uuid": PARENT, "mig": "1,1", "mig_max": 7,
    "memory": "!4", "memory2": "!4", "power": 400000, "links": 1, "link0": "gpu 00000000:09:00.0",
    "mig0.name": "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "mig0.uuid": "MIG-11111111-aaaa", "mig0.multiprocessors": 42,
    "mig0.memory2": f"{20096 * MIB},0,{20000 * MIB},{96 * MIB}", "mig0.gpu_instance": 1, "mig0.compute_instance": 0,
    "mig4.name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "mig4.uuid": "MIG-22222222-bbbb", "mig4.multiprocessors": 14,
    "mig4.memory2": f"{4864 * MIB},0,{4800 * MIB},{64 * MIB}", "mig4.gpu_instance": 9, "mig4.compute_instance": 0,
    "mig4.compute": f"700:{GIB}",
}  # fmt: skip
UNKNOWN = {
    "name": "NVIDIA GeForce RTX 9090", "capability": "12.5", "cores": 20480, "max_clock_sm": 3000,
    "max_clock_memory": 14000, "bus_width": 512, "memory2": f"{48 * GIB},{GIB},{47 * GIB},0", "power": 500000,
    "pcie_max_generation": 5, "pcie_width": 16,
}  # fmt: skip


def _only(machine: "Machine", card: dict[str, Any], **changes: Any) -> Gpu:
    (gpu,) = machine.probe({**card, **changes}).gpus
    return gpu


def test_each_mig_instance_is_a_gpu_with_its_own_memory_and_share(machine: "Machine") -> None:
    half, seventh = machine.probe(A100_MIG).gpus
    assert (half.uuid, seventh.uuid) == ("MIG-11111111-aaaa", "MIG-22222222-bbbb")
    assert (half.total_bytes, half.free_bytes) == (20096 * MIB, 20000 * MIB)
    assert half.mig_parent_uuid == seventh.mig_parent_uuid == PARENT
    assert half.device.name.endswith("-mig-3g.20gb") and seventh.device.name.endswith("-mig-1g.5gb")
    assert (half.device.multiprocessors, seventh.device.multiprocessors) == (42, 14)
    assert seventh.device.bfloat16_flops_per_second == pytest.approx(312e12 * 14 / 108)
    assert seventh.device.memory_bytes_per_second == pytest.approx(1555e9 * 4864 / 40960)
    assert seventh.device.peer_link is None and seventh.device.confidence == "derived"
    assert seventh.nvlink_peers == ()
    assert [process.pid for process in seventh.processes] == [700] and half.processes == ()
    assert "single-GPU target" in half.notes[0]


@pytest.mark.parametrize(
    ("value", "shown", "hidden"),
    [
        ("MIG-22222222-bbbb", ["MIG-22222222-bbbb"], 2),
        ("MIG-2", ["MIG-22222222-bbbb"], 2),
        (f"MIG-{PARENT}/9/0,MIG-11111111-aaaa", ["MIG-22222222-bbbb", "MIG-11111111-aaaa"], 1),
        (PARENT, ["MIG-11111111-aaaa", "MIG-22222222-bbbb"], 1),
        ("1", ["GPU-whole"], 2),
        ("MIG-zz", [], 3),
    ],
)
def test_the_variable_reaches_instances(machine: "Machine", value: str, shown: list[str], hidden: int) -> None:
    whole = {"name": "NVIDIA A100-SXM4-40GB", "memory": f"{40 * GIB},{39 * GIB},{GIB}", "uuid": "GPU-whole"}
    probe = machine.probe(A100_MIG, whole, environment={"CUDA_VISIBLE_DEVICES": value})
    assert [gpu.uuid for gpu in probe.gpus] == shown
    assert probe.hidden == hidden
    assert (probe.absent is None) == bool(shown)


def test_a_card_in_mig_mode_without_instances_is_no_target(machine: "Machine") -> None:
    empty = {"name": "NVIDIA A100-SXM4-40GB", "mig": "1,1", "mig_max": 7}
    with pytest.raises(NoUsableGpu, match="in MIG mode but without an instance"):
        machine.probe(empty)
    probe = machine.probe(empty, machine.h200)
    assert [gpu.index for gpu in probe.gpus] == [1]
    assert "without an instance" in probe.lost[0]


def test_shared_memory_is_the_hosts(machine: "Machine") -> None:
    """A GB10's driver does not support the question; the host has 128 GiB, and its control group leaves 60."""
    machine.write("sys/fs/cgroup/cgroup.controllers", "")
    machine.write("sys/fs/cgroup/memory.max", str(60 * GIB))
    gpu = _only(machine, {"name": "NVIDIA GB10", "capability": "12.1", "compute": f"700:{GIB}"})
    assert gpu.device.unified_memory
    assert (gpu.total_bytes, gpu.free_bytes) == (128 * GIB, 60 * GIB)
    assert gpu.device.total_bytes == 128 * GIB >= gpu.device.usable_bytes
    assert gpu.used_bytes is None and gpu.reserved_bytes is None
    assert "unified memory" in gpu.notes[0]


def test_shared_memory_is_the_hosts_even_where_the_driver_names_a_figure(machine: "Machine") -> None:
    gpu = _only(machine, {"name": "NVIDIA GB10", "memory": f"{8 * GIB},{8 * GIB},0"})
    assert (gpu.total_bytes, gpu.free_bytes) == (128 * GIB, 100 * GIB)


def test_a_host_with_less_memory_than_the_catalogue_has_no_more(machine: "Machine") -> None:
    machine.write("proc/meminfo", f"MemTotal: {64 << 20} kB\nMemAvailable: {60 << 20} kB\n")
    gpu = _only(machine, {"name": "NVIDIA GB10"})
    assert gpu.device.usable_bytes <= gpu.device.total_bytes == 64 * GIB


def test_a_jetson_that_tells_nothing_is_refused_by_name_not_guessed(machine: "Machine") -> None:
    with pytest.raises(NoUsableGpu, match=r"GPU 0 \(Orin \(nvgpu\)\): not in the catalogue, and the driver does not"):
        machine.probe({"name": "Orin (nvgpu)", "uuid": "!3", "bus": "!3"})


def test_a_card_with_memory_of_its_own_that_does_not_tell_it_is_refused(machine: "Machine") -> None:
    with pytest.raises(NoUsableGpu, match="does not tell its memory"):
        machine.probe({"name": "NVIDIA A10G"})


@pytest.mark.parametrize("name", ["NVIDIA A40-24Q", "GRID A40-24C", "NVIDIA A40-4-24C"])
def test_a_virtual_gpu_has_its_own_memory_and_at_most_its_cards_rates(machine: "Machine", name: str) -> None:
    gpu = _only(machine, {"name": name, "memory2": f"{24 * GIB},{GIB},{23 * GIB},0", "ecc": "!3", "throttle": "!3"})
    assert gpu.device.bfloat16_flops_per_second == pytest.approx(149.7e12)
    assert (gpu.total_bytes, gpu.device.usable_bytes) == (24 * GIB, 23 * GIB)
    assert (gpu.ecc_enabled, gpu.sm_clock_mhz, gpu.power_limit_watts) == (None, None, None)
    assert "virtual GPU" in gpu.notes[0]


def test_an_unknown_card_is_derived_from_what_the_driver_says(machine: "Machine") -> None:
    gpu = _only(machine, UNKNOWN)
    device = gpu.device
    assert gpu.notes == ("unknown card: rates derived, not from the catalogue",)
    assert (device.name, device.confidence) == ("geforce-rtx-9090", "derived")
    assert device.memory_bytes_per_second == pytest.approx(1792e9)
    assert device.float32_flops_per_second == pytest.approx(2 * 20480 * 3000e6)
    assert device.bfloat16_flops_per_second == pytest.approx(2 * device.float32_flops_per_second)
    assert device.float8_flops_per_second == pytest.approx(4 * device.float32_flops_per_second)
    assert (device.multiprocessors, device.power_watts, device.data_centre) == (160, 500.0, False)
    assert (device.host_link.name, device.peer_link) == ("pcie5-x16", None)
    assert (device.total_bytes, device.usable_bytes) == (48 * GIB, 47 * GIB)
    assert "2 x float32 on GeForce" in device.sources["bfloat16_flops_per_second"]


@pytest.mark.parametrize(
    ("changes", "factor", "bfloat16", "float8"),
    [
        ({"name": "NVIDIA RTX PRO 9000", "capability": "12.0"}, 4, True, True),
        ({"name": "NVIDIA X100", "capability": "9.0"}, 4, True, True),
        ({"name": "NVIDIA PG506-230", "capability": "8.0"}, 16, True, False),
        ({"name": "NVIDIA CMP 170X", "capability": "8.6"}, 4, True, False),
        ({"name": "NVIDIA T1000", "capability": "7.5"}, 2, False, False),
        ({"name": "NVIDIA TITAN V", "capability": "7.0"}, 4, False, False),
        ({"name": "NVIDIA GeForce GTX 1080", "capability": "6.1"}, 1, False, False),
    ],
)
def test_the_rule_for_an_unknown_card(
    machine: "Machine", changes: dict[str, str], factor: float, bfloat16: bool, float8: bool
) -> None:
    device = _only(machine, UNKNOWN, **changes).device
    assert device.float16_flops_per_second == pytest.approx(factor * device.float32_flops_per_second)
    assert (device.bfloat16_flops_per_second is not None) == bfloat16
    assert (device.float8_flops_per_second is not None) == float8


def test_an_unknown_card_with_nvlink_has_that_link(machine: "Machine") -> None:
    links = {f"link{number}": "gpu 00000000:09:00.0" for number in range(4)}
    device = _only(machine, UNKNOWN, name="NVIDIA X100", links=6, link_version=6, **links).device
    assert device.peer_link is not None
    assert device.peer_link.bytes_per_second == pytest.approx(100e9)


@pytest.mark.parametrize(
    ("missing", "what"),
    [
        ("capability", "compute capability"),
        ("cores", "number of cores"),
        ("max_clock_sm", "clock"),
        ("max_clock_memory", "memory clock"),
        ("bus_width", "memory bus width"),
    ],
)
def test_an_unknown_card_that_withholds_what_rates_need_is_refused_by_name(
    machine: "Machine", missing: str, what: str
) -> None:
    probe = machine.probe({**UNKNOWN, missing: "!3"}, machine.h200)
    assert [gpu.index for gpu in probe.gpus] == [1]
    assert probe.lost == (
        f"GPU 0 (NVIDIA GeForce RTX 9090): not in the catalogue, and the driver does not tell its {what}",
    )


def test_an_unknown_card_without_power_or_pcie_gets_bounds_that_say_so(machine: "Machine") -> None:
    device = _only(machine, UNKNOWN, power="!3", pcie_max_generation="!3", pcie_width="!3").device
    assert device.power_watts == 600.0
    assert "assumed" in device.sources["power_watts"]
    assert device.host_link.name == "pcie3-x4"
