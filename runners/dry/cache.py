"""Traces on disk, by what they depend on: the job, the model, the card, the libraries, and this package's own code."""

import json
import os
import zlib
from array import array
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from estimators.hardware import Device
from estimators.traced import Traced
from estimators.work import Load, Work

if TYPE_CHECKING:
    from estimators.allocator import Event

KINDS: tuple[Literal["allocate", "free", "empty_cache", "reset_peak"], ...] = (
    "allocate",
    "free",
    "empty_cache",
    "reset_peak",
)
KEPT = 200
"""Traces beyond so many are dropped, the longest unused first. One takes 0.1 to 1 MB."""


def folder() -> Path:
    """$XDG_CACHE_HOME/finetune-plan/traces."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "finetune-plan" / "traces"


def digest(
    recipe: Mapping[str, object], config: Mapping[str, object], device: Device, versions: Mapping[str, str]
) -> str:
    """The name of a trace."""
    card = (device.name, device.compute_capability, device.multiprocessors)
    essence = json.dumps([recipe, dict(config), card, dict(versions), own_code()], sort_keys=True, default=str)
    return _digest(essence.encode())


@cache
def own_code() -> str:
    """A digest of the code that makes a trace: another version of it may see other events."""
    here = Path(__file__).parent
    files = [
        *sorted(here.glob("*.py")),
        *(here.parent / name for name in ("build.py", "losses.py", "tools.py")),
        *sorted((here.parents[1] / "estimators").rglob("*.py")),
    ]
    return _digest(b"".join(path.read_bytes() for path in files))


def _digest(content: bytes) -> str:
    """Of 128 bits. The module behind hashlib: hashlib itself loads OpenSSL, a tenth of the time that a plan takes."""
    try:
        from _blake2 import blake2b
    except ImportError:  # another Python than CPython
        from hashlib import blake2b
    return blake2b(content, digest_size=16).hexdigest()


def load_figures(job: str) -> Traced | None:
    """What was found out about a job; None where it was not traced, or the file is damaged."""
    path = folder() / f"{job}.json"
    try:
        table = json.loads(path.read_text())
        loads = {(phase, kind): Load(calls=c, flops=f, size_bytes=b) for phase, kind, c, f, b in table.pop("work")}
        figures = Traced(**table, work=Work(loads=loads))
        path.touch()
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return figures


def load_events(job: str) -> "tuple[list[Event], int] | None":
    """The events of a job and the index of the first one after loading; None as above."""
    from estimators.allocator import Event

    try:
        raw = zlib.decompress((folder() / f"{job}.events").read_bytes())
        numbers = array("q")
        numbers.frombytes(raw)
        first, codes, sizes = numbers[0], numbers[1::2], numbers[2::2]
        return [Event(KINDS[code & 3], code >> 2, size) for code, size in zip(codes, sizes, strict=True)], first
    except (OSError, ValueError, IndexError, zlib.error):
        return None


def save(job: str, figures: Traced, events: "Sequence[Event]", first_step: int) -> None:
    """Keep a trace; where the disk does not let us, it is made again next time."""
    numbers = array("q", [first_step])
    for kind, key, size_bytes in events:
        numbers.extend((key << 2 | KINDS.index(kind), size_bytes))
    table: dict[str, Any] = {name: getattr(figures, name) for name in Traced.__dataclass_fields__}
    table["work"] = [(*key, load.calls, load.flops, load.size_bytes) for key, load in figures.work.loads.items()]
    try:
        folder().mkdir(parents=True, exist_ok=True)
        _write(folder() / f"{job}.events", zlib.compress(numbers.tobytes(), 1))
        _write(folder() / f"{job}.json", json.dumps(table).encode())
        _drop_oldest()
    except OSError:
        pass


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    import tempfile  # slow to import, and needed only by those who trace

    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(content)
            file.flush()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _drop_oldest() -> None:
    traces = sorted(folder().glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in traces[:-KEPT]:
        path.unlink(missing_ok=True)
        path.with_suffix(".events").unlink(missing_ok=True)
