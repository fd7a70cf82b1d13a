"""Questions to NVML and the cards it lists: what the driver does not know is None, a dead card raises LostGpuError."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runners.visible import CardNames

NO_PERMISSION, NOT_FOUND, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, GPU_IS_LOST = 4, 6, 9, 12, 15
NOT_SUPPORTED, RESET_REQUIRED, LIBRARY_MISMATCH, GPU_NOT_FOUND, UNKNOWN = 3, 16, 18, 28, 999
_DEAD = {GPU_IS_LOST, RESET_REQUIRED}

_CAUSES = {
    NO_PERMISSION: "the driver denies this process the GPU: use a user who may open /dev/nvidia*, "
    "or pass the device into the container",
    DRIVER_NOT_LOADED: "the driver's kernel module does not answer although its device files exist: "
    "run nvidia-smi and see dmesg",
    GPU_IS_LOST: "the GPU has fallen off the bus: power-cycle the machine, and if that recurs have the card checked",
    RESET_REQUIRED: "the GPU needs a reset: stop what runs on it, then nvidia-smi --gpu-reset, or reboot",
    LIBRARY_MISMATCH: "the driver's library and kernel module differ in version, as after an update: "
    "reboot, or reload the nvidia kernel modules",
    UNKNOWN: "the driver gave an unknown error: in a container restart it (its devices may have been taken away), "
    "elsewhere run nvidia-smi and see dmesg",
}


def explain(code: int, text: str = "") -> str:
    """The cause and the next step behind an NVML error code, in one line."""
    return f"{_CAUSES.get(code, f'the driver answered {text!r}: run nvidia-smi and see dmesg')} (NVML error {code})"


class LostGpuError(Exception):
    """One GPU cannot be used, and the message says which and why."""


@dataclass(frozen=True, slots=True)
class Driver:
    """NVML, asked through the module pynvml after nvmlInit."""

    nvml: Any

    def answer(self, question: str, *arguments: Any) -> tuple[Any, int]:
        """The answer and NVML's error code; an old module or driver that lacks the question does not support it.

        Raises:
            LostGpuError: the GPU asked about does not answer any more.
        """
        function = getattr(self.nvml, question, None)
        if function is None:
            return None, NOT_SUPPORTED
        try:
            return _printable(function(*arguments)), 0
        except self.nvml.NVMLError as error:
            if error.value in _DEAD:
                raise LostGpuError(explain(error.value)) from error
            return None, int(error.value)
        except UnicodeDecodeError:
            return None, UNKNOWN

    def ask(self, question: str, *arguments: Any) -> Any:
        """The answer, or None where the driver has none."""
        return self.answer(question, *arguments)[0]


def _printable(value: Any) -> Any:
    """Names come from firmware and vendors: nothing in them may drive a terminal. Old modules answer in bytes."""
    if isinstance(value, bytes):
        value = value.decode()
    return "".join(letter if letter.isprintable() else "?" for letter in value) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A MIG instance of a card."""

    handle: Any
    uuid: str | None
    name: str | None
    names: tuple[str, ...]
    """What CUDA_VISIBLE_DEVICES may call it: its UUID, and the form MIG-GPU-UUID/instance/compute of old drivers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A physical GPU, or the virtual one that a guest is given."""

    index: int
    handle: Any
    name: str
    uuid: str | None
    bus_id: str | None
    instances: tuple[Instance, ...] | None
    """None where the card is not in MIG mode."""

    @property
    def title(self) -> str:
        return f"GPU {self.index} ({self.name})"

    def cuda_names(self) -> CardNames:
        instances = None if self.instances is None else tuple(instance.names for instance in self.instances)
        return CardNames(uuid=self.uuid, instances=instances)


def list_cards(driver: Driver, count: int) -> tuple[list[Card], list[str]]:
    """The cards that answer, by NVML's index, and a line for each that does not."""
    cards, failures = [], []
    for index in range(count):
        try:
            cards.append(_read_card(driver, index))
        except LostGpuError as lost:
            failures.append(f"GPU {index}: {lost}")
    return cards, failures


def _read_card(driver: Driver, index: int) -> Card:
    handle, code = driver.answer("nvmlDeviceGetHandleByIndex", index)
    if handle is None:
        raise LostGpuError(explain(code))
    name, code = driver.answer("nvmlDeviceGetName", handle)
    if name is None:
        raise LostGpuError(f"the driver does not even tell its name; {explain(code)}")
    uuid = driver.ask("nvmlDeviceGetUUID", handle)
    return Card(
        index=index,
        handle=handle,
        name=name,
        uuid=uuid,
        bus_id=_bus_id(driver.ask("nvmlDeviceGetPciInfo", handle)),
        instances=_read_instances(driver, handle, uuid),
    )


def _read_instances(driver: Driver, handle: Any, uuid: str | None) -> tuple[Instance, ...] | None:
    mode = driver.ask("nvmlDeviceGetMigMode", handle)
    if not mode or mode[0] != 1:
        return None
    places = range(driver.ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0)
    handles = [driver.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, place) for place in places]
    return tuple(_read_instance(driver, found, uuid) for found in handles if found is not None)


def _read_instance(driver: Driver, handle: Any, parent_uuid: str | None) -> Instance:
    uuid = driver.ask("nvmlDeviceGetUUID", handle)
    ids = [driver.ask(f"nvmlDeviceGet{kind}InstanceId", handle) for kind in ("Gpu", "Compute")]
    old_name = f"MIG-{parent_uuid}/{ids[0]}/{ids[1]}" if parent_uuid and None not in ids else None
    names = tuple(name for name in (uuid, old_name) if name)
    return Instance(handle=handle, uuid=uuid, name=driver.ask("nvmlDeviceGetName", handle), names=names)


def _bus_id(info: Any) -> str | None:
    return _printable(info.busId).lower() if info is not None else None


def cuda_order(driver: Driver, cards: Sequence[Card], order: str) -> tuple[list[Card], bool]:
    """The cards as CUDA numbers them, and whether that is assumed.

    Cards of one kind stand in PCI order. CUDA puts different ones fastest first unless CUDA_DEVICE_ORDER is
    PCI_BUS_ID, by a rule that it does not publish: cores times clock is a guess.
    """
    by_bus = sorted(cards, key=lambda card: (card.bus_id or "", card.index))
    if order == "PCI_BUS_ID" or len({card.name for card in cards}) < 2:
        return by_bus, False
    return sorted(by_bus, key=lambda card: -_speed(driver, card)), True


def _speed(driver: Driver, card: Card) -> int:
    try:
        cores = driver.ask("nvmlDeviceGetNumGpuCores", card.handle)
        clock = driver.ask("nvmlDeviceGetMaxClockInfo", card.handle, driver.nvml.NVML_CLOCK_SM)
    except LostGpuError:
        return 0
    return (cores or 0) * (clock or 0)
