"""Sizes and times as people write and read them; everywhere else they are bytes and seconds."""

import math
import re

from estimators.errors import BadInput

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_SUFFIXES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "k": KIB, "m": MIB, "g": GIB, "t": 1 << 40,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": 1 << 40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)
LARGEST_SIZE = 1 << 60


def parse_bytes(text: str, what: str) -> int:
    """Bytes in `text`: "22GiB" is binary, "22GB" decimal, "22G" binary as in nvidia-smi.

    Raises:
        BadInput: not a positive size; `what` names the option in the message.
    """
    match = _SIZE.fullmatch(text)
    scale = _SUFFIXES.get(match.group(2).lower()) if match else None
    if match is None or scale is None:
        raise BadInput(f"{what} must be a size such as 22GiB or 22GB, not {text[:40]!r}")
    size = float(match.group(1)) * scale
    if not 0 < size <= LARGEST_SIZE:
        raise BadInput(f"{what} must be above zero and below 1 EiB, not {text[:40]!r}")
    return round(size)


def format_bytes(size_bytes: float) -> str:
    """ "13.97 GiB", "512 MiB": binary units, at least three significant digits."""
    magnitude = abs(size_bytes)
    if magnitude >= 100 * GIB:
        return f"{size_bytes / GIB:,.1f} GiB"
    if magnitude >= GIB:
        return f"{size_bytes / GIB:.2f} GiB"
    if magnitude >= MIB:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / KIB:.0f} KiB" if magnitude >= KIB else f"{size_bytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """ "1.32 s", "240 ms", "3.4 h": the unit a person would choose."""
    if not math.isfinite(seconds):
        return "never"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 100:
        return f"{seconds:.2f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.1f} days"
