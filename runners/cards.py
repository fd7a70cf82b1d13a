"""The cards of a job while it runs, asked through one NVML session: who holds what, energy, slowdowns."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estimators.errors import NoUsableGpu
from estimators.hardware import GpuProcess
from estimators.units import MIB, format_bytes
from runners import nvml
from runners.gpu import SLOWDOWNS, ask_memory, read_processes, read_throttles
from runners.nvml import Driver, LostGpuError
from runners.probe import load_binding, session

SLACK_BYTES = 256 * MIB
"""Held memory that no listed process explains, and that still is nobody's: as much varies on an idle card."""


class OccupiedGpu(NoUsableGpu):
    """Another process holds memory on a GPU that is to be measured, and sharing it was not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardState:
    """One card at one moment. None: the driver does not tell."""

    uuid: str
    held_bytes: int | None
    processes: tuple[GpuProcess, ...] = ()
    joules: float | None = None
    """Since the driver was loaded."""
    slowdowns: tuple[str, ...] = ()
    fault: str | None = None
    """Why the card does not answer any more."""

    @property
    def unexplained_bytes(self) -> int:
        """Held by processes that the driver does not show, as those of another container."""
        if self.held_bytes is None or any(process.used_bytes is None for process in self.processes):
            return 0
        return max(self.held_bytes - sum(process.used_bytes or 0 for process in self.processes), 0)

    @property
    def occupant(self) -> str | None:
        """Who is on the card, in words; None where it is free."""
        if self.processes:
            one = self.processes[0]
            more = f" and {len(self.processes) - 1} more" if len(self.processes) > 1 else ""
            return f"process {one.pid}{f' ({one.name})' if one.name else ''}{more}"
        if self.unexplained_bytes > SLACK_BYTES:
            return f"a process that is not shown, with {format_bytes(self.unexplained_bytes)}"
        return None


Read = Callable[[], Sequence[CardState]]
Watch = Callable[[Sequence[str]], AbstractContextManager[Read]]
"""Opens a way to read the cards of these UUIDs, in their order."""


@contextmanager
def watch(uuids: Sequence[str]) -> Iterator[Read]:
    """The cards of these UUIDs, read as often as wanted; none of them asks for the driver."""
    if not uuids:
        yield tuple
        return
    with session(load_binding()) as driver:
        handles = {uuid: handle for uuid, handle in _handles(driver) if uuid in uuids}
        if missing := [uuid for uuid in uuids if uuid not in handles]:
            raise NoUsableGpu(f"the driver does not list {missing[0]} any more")
        yield lambda: [_state(driver, uuid, *handles[uuid]) for uuid in uuids]


def _handles(driver: Driver) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Every UUID with the handle that knows its memory and the one that knows its power: a MIG instance's card."""
    cards, _ = nvml.list_cards(driver, driver.nvml.nvmlDeviceGetCount())
    for card in cards:
        if card.uuid:
            yield card.uuid, (card.handle, card.handle)
        for instance in card.instances or ():
            if instance.uuid:
                yield instance.uuid, (instance.handle, None)


def _state(driver: Driver, uuid: str, handle: Any, whole: Any) -> CardState:
    try:
        memory, _ = ask_memory(driver, handle)
        millijoules = None if whole is None else driver.ask("nvmlDeviceGetTotalEnergyConsumption", whole)
        throttles = () if whole is None else read_throttles(driver, whole)
        return CardState(
            uuid=uuid,
            held_bytes=memory.held_bytes if memory else None,
            processes=read_processes(driver, handle, Path("/")),
            joules=None if millijoules is None else millijoules / 1e3,
            slowdowns=tuple(name for name in throttles if name in SLOWDOWNS),
        )
    except LostGpuError as lost:
        return CardState(uuid=uuid, held_bytes=None, fault=str(lost))
