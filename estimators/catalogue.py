"""The GPU catalogue: what people type and what NVML prints, resolved to a Device of profiles/devices.

Case, spaces, hyphens, underscores, brackets and vendor words do not count. Each file lists its aliases, and no alias
leads to two files. A name without a memory size ("v100", "NVIDIA GeForce RTX 4060 Ti") means the smallest card of that
name, because what fits there fits on its larger sister; with NVML's total it means the sister of that size. As the
clouds have it, "a100" is the 40 GB and "a100-80gb" the 80 GB card on SXM4, and "h100" is the one on SXM5.
"""

import difflib
import functools
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import profiles
from estimators.errors import BadInput, UnknownName
from estimators.hardware import Confidence, Device, Link
from estimators.units import MIB

GIGA, TERA = 1e9, 1e12

FIGURES = {
    "total_mib": "total_bytes",
    "usable_mib": "usable_bytes",
    "memory_gb_per_second": "memory_bytes_per_second",
    "float16_tflops": "float16_flops_per_second",
    "bfloat16_tflops": "bfloat16_flops_per_second",
    "float8_tflops": "float8_flops_per_second",
    "float32_tflops": "float32_flops_per_second",
    "compute_capability": "compute_capability",
    "multiprocessors": "multiprocessors",
    "host_link": "host_link",
    "nvlink_gb_per_second_both_ways": "peer_link",
    "nvlink_bridged_cards": "nvlink_bridged_cards",
    "power_watts": "power_watts",
}
"""Every figure of a device file, with the field of Device that it fills; each needs an entry under [sources]."""

_KEYS = {*FIGURES, "title", "aliases", "confidence", "data_centre", "unified_memory", "sources"}
_CONFIDENCES: dict[str, Confidence] = {"verified": "verified", "derived": "derived", "memory": "memory"}
_PCIE_X16_BYTES_PER_SECOND = {3: 15.75e9, 4: 31.5e9, 5: 63.0e9, 6: 121.0e9}
"""One direction, less the line encoding (from generation 6 on, less the flit overhead)."""
_LARGEST = 1e7
"""No figure of a GPU, in its file's unit, comes near it."""
_VENDOR_WORDS = re.compile("nvidia|geforce|tesla|quadro")
_MEMORY_SIZE = re.compile(r"\d+gb|\d+g$")
_USABLE = re.compile(r"^usable_mib = (\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFile:
    """One file of profiles/devices: the device, and the names that mean it besides the file's own."""

    device: Device
    aliases: tuple[str, ...]


def find_device(name: str, total_bytes: int | None = None) -> Device:
    """The device that `name` means; NVML's `total_bytes` picks among sisters where the name has no memory size.

    Raises:
        UnknownName: no such GPU; the message offers the nearest ones.
    """
    canonical = _canonical_name(name)
    if total_bytes is None or _MEMORY_SIZE.search(_normalise(name)):
        return load_device(canonical)
    sisters = [load_device(other) for other in device_names() if _stem(other) == _stem(canonical)]
    return min(sisters, key=lambda device: abs(device.total_bytes - total_bytes))


@functools.cache
def load_device(canonical_name: str) -> Device:
    """The device of the file of that name.

    Raises:
        UnknownName: there is no such file.
    """
    return load_device_file(canonical_name).device


@functools.cache
def load_device_file(canonical_name: str) -> DeviceFile:
    """As load_device, with the aliases."""
    if canonical_name not in device_names():
        raise UnknownName("GPU", canonical_name, device_names())
    return parse_device_file(_text(canonical_name), canonical_name)


def device_names() -> list[str]:
    """The canonical names, sorted."""
    return list(_names())


def all_devices() -> list[Device]:
    """Every device, the smallest memory first, then by name."""
    return sorted((load_device(name) for name in _names()), key=lambda device: (device.total_bytes, device.name))


def smallest_device(least_usable_bytes: float, accept: Callable[[Device], bool]) -> Device | None:
    """The card with the least usable memory that is enough and that `accept` takes; None where there is none.

    Sizes are read off the files' own lines, for parsing all of them takes longer than the rest of a plan.
    """
    sizes = sorted((int(match.group(1)), name) for name in _names() if (match := _USABLE.search(_text(name))))
    for usable_mib, name in sizes:
        if usable_mib * MIB >= least_usable_bytes and accept(load_device(name)):
            return load_device(name)
    return None


def _text(canonical_name: str) -> str:
    return profiles.read("devices", f"{canonical_name}.toml")


def pcie_link(generation: int, width: int) -> Link:
    """PCIe of that generation and width, as in "pcie4-x16".

    Raises:
        BadInput: there is no such generation or width.
    """
    if generation not in _PCIE_X16_BYTES_PER_SECOND or width not in (1, 2, 4, 8, 16):
        raise BadInput(f"PCIe generation {generation} with {width} lanes is not known")
    rate = _PCIE_X16_BYTES_PER_SECOND[generation] * width / 16
    return Link(name=f"pcie{generation}-x{width}", bytes_per_second=rate)


def parse_device_file(text: str, name: str) -> DeviceFile:
    """A device file's content; every key must be there, and no other.

    Raises:
        BadInput: the text is not such a file; the message names the file and the key.
    """
    table = _Table(text, name)
    return DeviceFile(device=_device(table), aliases=table.texts("aliases"))


@functools.cache
def _names() -> tuple[str, ...]:
    return tuple(profiles.names("devices", ".toml"))


@functools.cache
def _aliases() -> dict[str, str]:
    """The canonical name by normalised alias, from every file."""
    index: dict[str, str] = {}
    for canonical in _names():
        for alias in (canonical, *load_device_file(canonical).aliases):
            if index.setdefault(_normalise(alias), canonical) != canonical:
                raise BadInput(f"GPU alias {alias!r} is in two device files: {index[_normalise(alias)]}, {canonical}")
    return index


def _canonical_name(name: str) -> str:
    """The file that `name` means; only an alias makes it read them all."""
    if name in _names():
        return name
    aliases = _aliases()
    canonical = aliases.get(_normalise(name))
    if canonical is None:
        nearest = difflib.get_close_matches(_normalise(name), aliases, n=4, cutoff=0.65)
        offer = ", ".join(dict.fromkeys(aliases[alias] for alias in nearest))
        raise UnknownName("GPU", name, (), hint=f"(did you mean {offer}?)" if offer else "(see profiles/devices)")
    return canonical


def _normalise(name: str) -> str:
    return _VENDOR_WORDS.sub("", re.sub(r"[\s_()-]", "", name.lower()))


def _stem(canonical: str) -> str:
    """The name without its memory size, which sisters share."""
    return re.sub(r"-\d+gb$", "", canonical)


def _device(table: "_Table") -> Device:
    capability = table.capability()
    total, usable = table.number("total_mib"), table.number("usable_mib")
    if usable >= total:
        raise table.refusal("usable_mib", f"must be below total_mib, {total:g}")
    return Device(
        name=table.name,
        title=table.text("title"),
        total_bytes=round(total * MIB),
        usable_bytes=round(usable * MIB),
        memory_bytes_per_second=table.number("memory_gb_per_second") * GIGA,
        float16_flops_per_second=table.number("float16_tflops") * TERA,
        bfloat16_flops_per_second=table.rate("bfloat16_tflops", supported=capability >= (8, 0)),
        float8_flops_per_second=table.rate("float8_tflops", supported=capability >= (8, 9)),
        float32_flops_per_second=table.number("float32_tflops") * TERA,
        compute_capability=capability,
        multiprocessors=table.whole("multiprocessors"),
        host_link=table.host_link(),
        peer_link=table.peer_link(),
        nvlink_bridged_cards=table.whole("nvlink_bridged_cards", zero=True),
        power_watts=table.number("power_watts"),
        data_centre=table.truth("data_centre"),
        unified_memory=table.truth("unified_memory"),
        confidence=table.confidence(),
        sources=table.sources(),
    )


class _Table:
    """A device file's keys, each read as the kind of value that it must be."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        try:
            self._values: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise BadInput(f"GPU profile {name}.toml is not TOML: {error}") from None
        self._require_exactly(self._values, _KEYS, "")

    def refusal(self, key: str, problem: str) -> BadInput:
        return BadInput(f"GPU profile {self.name}.toml: {key} {problem}")

    def _require_exactly(self, values: dict[str, Any], keys: set[str], prefix: str) -> None:
        for key in sorted(keys - values.keys()):
            raise self.refusal(prefix + key, "is missing")
        for key in sorted(values.keys() - keys):
            raise self.refusal(prefix + key, "is not a known key")

    def number(self, key: str, *, zero: bool = False) -> float:
        value = self._values[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(key, f"must be a number, not {value!r}")
        if not 0 <= value < _LARGEST or (value == 0 and not zero):
            raise self.refusal(key, f"must be {'zero or ' if zero else ''}above zero and below {_LARGEST:g}")
        return float(value)

    def whole(self, key: str, *, zero: bool = False) -> int:
        value = self.number(key, zero=zero)
        if value != int(value):
            raise self.refusal(key, f"must be a whole number, not {value!r}")
        return int(value)

    def rate(self, key: str, *, supported: bool) -> float | None:
        """Flops a second, or None where the compute capability has no such format."""
        value = self.number(key, zero=True)
        if (value > 0) != supported:
            raise self.refusal(key, "must be zero exactly where the compute capability lacks the format")
        return value * TERA if supported else None

    def text(self, key: str) -> str:
        value = self._values[key]
        if not isinstance(value, str) or not value.strip():
            raise self.refusal(key, f"must be a text, not {value!r}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._values[key]
        if not isinstance(values, list) or not all(isinstance(value, str) and _normalise(value) for value in values):
            raise self.refusal(key, f"must be a list of names, not {values!r}")
        return tuple(values)

    def truth(self, key: str) -> bool:
        value = self._values[key]
        if not isinstance(value, bool):
            raise self.refusal(key, f"must be true or false, not {value!r}")
        return value

    def confidence(self) -> Confidence:
        value = self.text("confidence")
        if value not in _CONFIDENCES:
            raise self.refusal("confidence", f"must be one of {', '.join(_CONFIDENCES)}, not {value!r}")
        return _CONFIDENCES[value]

    def capability(self) -> tuple[int, int]:
        value = self.text("compute_capability")
        match = re.fullmatch(r"(\d{1,2})\.(\d)", value, re.ASCII)
        if match is None:
            raise self.refusal("compute_capability", f'must be a text such as "8.9", not {value!r}')
        return int(match[1]), int(match[2])

    def host_link(self) -> Link:
        """Of "pcie4-x16", or of "nvlink-c2c-900" with its GB/s both ways."""
        value = self.text("host_link")
        if match := re.fullmatch(r"pcie([3-6])-x(1|2|4|8|16)", value):
            return pcie_link(int(match[1]), int(match[2]))
        if match := re.fullmatch(r"nvlink-c2c-([1-9]\d{0,3})", value, re.ASCII):
            return Link(name="nvlink-c2c", bytes_per_second=int(match[1]) * GIGA / 2)
        raise self.refusal("host_link", f'must be a text such as "pcie4-x16", not {value!r}')

    def peer_link(self) -> Link | None:
        both_ways = self.number("nvlink_gb_per_second_both_ways", zero=True)
        return Link(name="nvlink", bytes_per_second=both_ways * GIGA / 2) if both_ways else None

    def sources(self) -> dict[str, str]:
        """The source of each figure, by the field of Device that it fills."""
        values = self._values["sources"]
        if not isinstance(values, dict):
            raise self.refusal("sources", "must be a table")
        self._require_exactly(values, set(FIGURES), "sources.")
        for key, value in values.items():
            if not isinstance(value, str) or not value.strip():
                raise self.refusal(f"sources.{key}", f"must be a text, not {value!r}")
        return {FIGURES[key]: value for key, value in values.items()}
