"""What people type after an option, read strictly: GPUs, counts, sizes, links, lists. A wrong text is refused by name.

Every reader takes the text and the option's name, and returns a value or raises BadInput with one line.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from estimators.catalogue import find_device, pcie_link
from estimators.errors import BadInput, UnknownName
from estimators.hardware import Device, Link
from estimators.recipe import ALL_LINEAR
from estimators.units import MIB, parse_bytes

AUTO = "auto"
MOST_GPUS = 1024
LARGEST_COUNT = 10**18
LARGEST_SEED = (1 << 32) - 1
"""NumPy's, which trainers seed too."""
Names = Callable[[], Iterable[str]]
_LONGEST_TEXT = 4096
_COUNT_BEFORE = r"([0-9]+)\s*[xX×*]\s*(\S.*)"
_COUNT_BEHIND = r"(.*\S)\s*:\s*([0-9]+)"
_NUMBER = r"([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?(?:[eE][0-9]{1,2})?)\s*([kmbtKMBT]?)"
_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_RATE = r"([0-9]+(?:\.[0-9]+)?)\s*(?:([GMT])(B|b|bit)(?:/s|ps)?)?"
_RATE_PREFIXES = {"M": 1e6, "G": 1e9, "T": 1e12}
_PCIE = r"pcie-?([3-6])(?:\.0)?(?:[-_ ]?x([0-9]{1,2}))?"
_LAYER = r"[A-Za-z_][A-Za-z0-9_.]{0,127}"

LINKS = {
    "nvlink2": 150e9, "nvlink3": 300e9, "nvlink4": 450e9, "nvlink5": 900e9,
    "10gbe": 1.25e9, "25gbe": 3.125e9, "100gbe": 12.5e9, "200gbe": 25e9, "400gbe": 50e9,
    "infiniband-edr": 12.5e9, "infiniband-hdr": 25e9, "infiniband-ndr": 50e9, "infiniband-xdr": 100e9,
}  # fmt: skip
"""Bytes a second in one direction of one card: NVLink as data sheets of V100, A100, H100 and B200 have it (half of the
figure for both ways), Ethernet and InfiniBand by their line rate."""


class GpuRequest(NamedTuple):
    """So many GPUs of one kind, as the user named it."""

    name: str
    number: int


def read_gpus(text: str, option: str) -> tuple[GpuRequest, ...] | None:
    """The GPUs of one node, in order: "2xa100-80gb", "rtx-3090:2,a100-80gb:1"; None is "auto"."""
    if text.strip().lower() == AUTO:
        return None
    if not text.strip() or len(text) > _LONGEST_TEXT:
        raise BadInput(f"{option} must be auto or GPUs such as 2xa100-80gb, not {shown(text)}")
    requests = tuple(_read_gpu(part.strip(), option) for part in text.split(","))
    total = sum(request.number for request in requests)
    if total > MOST_GPUS:
        raise BadInput(f"{option} names {total:,} GPUs in one node, more than {MOST_GPUS:,}; --nodes multiplies them")
    return requests


def find_gpus(requests: Iterable[GpuRequest]) -> tuple[Device, ...]:
    """One Device per GPU.

    Raises:
        UnknownName: a GPU is not in the catalogue.
    """
    return tuple(device for request in requests for device in [find_device(request.name)] * request.number)


def _read_gpu(part: str, option: str) -> GpuRequest:
    if before := re.fullmatch(_COUNT_BEFORE, part):
        count, name = before[1], before[2]
    elif behind := re.fullmatch(_COUNT_BEHIND, part):
        name, count = behind[1], behind[2]
    else:
        name, count = part, "1"
    if not part or ":" in name or len(count) > 9 or not int(count):
        raise BadInput(f"{option} must be auto or GPUs such as 2xa100-80gb,rtx-4090:1, not {shown(part)}")
    if name.isdecimal() and int(name) <= 64:
        raise BadInput(f"{option} must also name the kind of GPU, such as {name}xrtx-4090, not {shown(part)}")
    if name.lower() == AUTO:
        raise BadInput(f"{option}: auto stands alone, not as in {shown(part)}")
    return GpuRequest(name=name, number=int(count))


def whole(low: int, high: int) -> Callable[[str, str], int]:
    """A reader of whole numbers from `low` to `high`."""

    def read(text: str, option: str) -> int:
        if not re.fullmatch(r"\d{1,19}", text.strip(), re.ASCII) or not low <= int(text) <= high:
            raise BadInput(f"{option} must be a whole number from {low} to {high}, not {shown(text)}")
        return int(text)

    return read


def read_count(text: str, option: str) -> int:
    """A number of tokens or samples: "1000000", "1e6", "10M", "1.5B"."""
    match = re.fullmatch(_NUMBER, text.strip())
    value = float(match[1].replace("_", "")) * _MULTIPLES[match[2].lower()] if match else 0.0
    if not 1 <= value <= LARGEST_COUNT or value != int(value):
        raise BadInput(f"{option} must be a count above zero such as 50000, 1e6 or 10M, not {shown(text)}")
    return int(value)


def read_dropout(text: str, option: str) -> float:
    """A share from 0 to 0.99."""
    if not re.fullmatch(r"0?\.\d{1,9}|0", text.strip(), re.ASCII) or float(text) > 0.99:
        raise BadInput(f"{option} must be a number from 0 to 0.99, not {shown(text)}")
    return float(text)


def read_size(text: str, option: str) -> int:
    """A size in bytes: a megabyte at least, for who types less has left out the unit."""
    size_bytes = parse_bytes(text, option)
    if size_bytes < MIB:
        raise BadInput(f"{option} {text.strip()} is {size_bytes} bytes: say {text.strip().rstrip('bB')}GiB")
    return size_bytes


def read_headroom(text: str, option: str) -> int:
    """As read_size; "0" keeps nothing free."""
    return 0 if text.strip() == "0" else parse_bytes(text, option)


def choice(names: Names) -> Callable[[str, str], str]:
    """A reader of one of some names, which are asked for only when needed; a near miss is offered."""

    def read(text: str, option: str) -> str:
        known = list(names())
        name = text.strip().lower()
        if name not in known:
            raise UnknownName(option, text, known, hint=f"(known: {', '.join(known)})")
        return name

    return read


def read_names(text: str, option: str) -> tuple[str, ...]:
    """A comma-separated list of names, in lower case, each once."""
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        if not re.fullmatch(r"[a-z][\w.+-]{0,63}", name, re.ASCII):
            raise BadInput(f"{option} must be names such as lora,qlora, not {shown(text)}")
    return tuple(dict.fromkeys(names))


def read_targets(text: str, option: str) -> tuple[str, ...] | str:
    """Layer names, or "all-linear"."""
    if text.strip().lower() == ALL_LINEAR:
        return ALL_LINEAR
    names = [name.strip() for name in text.split(",")]
    if not all(re.fullmatch(_LAYER, name) for name in names):
        raise BadInput(f"{option} must be layer names such as q_proj,v_proj or {ALL_LINEAR}, not {shown(text)}")
    return tuple(dict.fromkeys(names))


def read_link(text: str, option: str) -> Link:
    """A link by name ("nvlink4", "pcie4-x16", "infiniband-ndr") or by its rate one way ("50", "50GB/s", "400Gb/s")."""
    name = text.strip()
    if rate := LINKS.get(name.lower()):
        return Link(name=name.lower(), bytes_per_second=rate)
    if pcie := re.fullmatch(_PCIE, name.lower()):
        return pcie_link(int(pcie[1]), int(pcie[2] or 16))
    match = re.fullmatch(_RATE, name)
    if match is None:
        raise UnknownName(option, text, LINKS, hint="(a name, or a rate in one direction such as 50GB/s or 400Gb/s)")
    rate = float(match[1]) * _RATE_PREFIXES[match[2] or "G"] / (1 if match[3] in (None, "B") else 8)
    if not 1e6 <= rate <= 1e14:
        raise BadInput(f"{option} must be from 1 MB/s to 100 TB/s, not {shown(text)}")
    return Link(name=name, bytes_per_second=rate)


def shown(text: str) -> str:
    """A text of the user's in a message: quoted, escaped, cut."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")
