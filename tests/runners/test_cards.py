"""A job's cards as the driver tells them, asked by UUID through the real NVML binding."""

from typing import TYPE_CHECKING

import pytest

from estimators.errors import NoUsableGpu
from estimators.hardware import GpuProcess
from estimators.units import GIB
from runners.cards import CardState, watch

if TYPE_CHECKING:
    from tests.runners.conftest import Machine


def read(uuids: list[str]) -> list[CardState]:
    with watch(uuids) as cards:
        return list(cards())


def test_cards_come_in_the_order_asked_for(machine: "Machine") -> None:
    busy = {
        "uuid": "GPU-b",
        "compute": f"700:{4 * GIB}",
        "memory2": f"{140 * GIB},0,{136 * GIB},{4 * GIB}",
        "throttle": 8,
    }
    machine.probe({**machine.h200, "uuid": "GPU-a"}, {**machine.h200, **busy})
    second, first = machine.ask(read, ["GPU-b", "GPU-a"])
    assert (second.uuid, second.held_bytes, second.slowdowns) == ("GPU-b", 4 * GIB, ("hw_slowdown",))
    assert second.processes == (GpuProcess(pid=700, used_bytes=4 * GIB, name=None),)
    assert "process 700" in second.occupant
    assert (first.held_bytes, first.processes, first.occupant) == (0, (), None)
    assert first.joules is None, "this driver does not tell it"


def test_memory_that_nobody_shown_holds_is_somebodys(machine: "Machine") -> None:
    machine.probe({**machine.h200, "uuid": "GPU-a", "memory2": f"{140 * GIB},0,{137 * GIB},{3 * GIB}"})
    (card,) = machine.ask(read, ["GPU-a"])
    assert "not shown, with 3.00 GiB" in card.occupant


def test_a_mig_instance_is_a_card_of_its_own(machine: "Machine") -> None:
    small = {"": "1", "uuid": "MIG-1", "name": "NVIDIA H200 MIG 1g.18gb", "memory2": f"{18 * GIB},0,{17 * GIB},{GIB}"}
    instance = {f"mig0.{key}" if key else "mig0": value for key, value in small.items()}
    machine.probe({**machine.h200, "uuid": "GPU-a", "mig": "1,1", "mig_max": 7, **instance})
    (card,) = machine.ask(read, ["MIG-1"])
    assert (card.uuid, card.held_bytes, card.joules) == ("MIG-1", GIB, None)


def test_a_card_that_is_gone_is_refused(machine: "Machine") -> None:
    machine.probe({**machine.h200, "uuid": "GPU-a"})
    with pytest.raises(NoUsableGpu, match="GPU-b"):
        machine.ask(read, ["GPU-b"])


def test_a_card_that_dies_meanwhile_says_why(machine: "Machine") -> None:
    machine.probe({**machine.h200, "uuid": "GPU-a"})
    machine.scenario.write_text(machine.scenario.read_text().replace("gpu0.memory2=", "gpu0.memory2=!15\ngpu0.was="))
    (card,) = machine.ask(read, ["GPU-a"])
    assert (card.held_bytes, "fallen off the bus" in card.fault) == (None, True)


def test_no_cards_need_no_driver() -> None:
    assert read([]) == []
