"""A measured run: the recipe, what it took of each GPU and of time, and with which versions."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import profiles
from estimators.document import from_document
from estimators.recipe import Recipe

Outcome = Literal["ok", "out_of_memory", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPeak:
    """What one rank took. The peaks are from after loading to the end of the last step."""

    loaded_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    process_bytes: int | None
    """As NVML shows it for the process; None where it showed none."""
    outside_torch_bytes: int | None
    """Device memory in use less reserved."""
    host_used_bytes: int | None = None
    """Of all ranks of the node together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One run under profiles/measurements."""

    name: str
    recipe: Recipe
    gpu: str
    outcome: Outcome
    ranks: tuple[RankPeak, ...]
    step_seconds: float
    cpu_cores: int | None = None
    """Cores that the launcher dealt out among the ranks; None where it left that to torchrun."""

    @property
    def worst(self) -> RankPeak:
        return max(self.ranks, key=lambda rank: rank.peak_allocated_bytes)


@cache
def measurements(name: str) -> tuple[Measurement, ...]:
    """The runs in profiles/measurements/NAME.jsonl that ended well.

    Raises:
        FileNotFoundError: there is no such file.
    """
    rows = (json.loads(line) for line in profiles.read("measurements", f"{name}.jsonl").splitlines() if line.strip())
    return tuple(_measurement(row) for row in rows if row["outcome"] == "ok")


def _measurement(row: dict[str, Any]) -> Measurement:
    return Measurement(
        name=row["name"],
        recipe=from_document(row["recipe"]),
        gpu=row["gpu"],
        outcome=row["outcome"],
        ranks=tuple(_rank(rank) for rank in row["ranks"]),
        step_seconds=row["step_seconds"],
        cpu_cores=row.get("cpu_cores"),
    )


def _rank(row: dict[str, Any]) -> RankPeak:
    return RankPeak(
        loaded_bytes=row["loaded_bytes"],
        peak_allocated_bytes=row["peak_allocated_bytes"],
        peak_reserved_bytes=row["peak_reserved_bytes"],
        process_bytes=row.get("process_bytes"),
        outside_torch_bytes=row.get("outside_torch_bytes"),
        host_used_bytes=row.get("host_used_bytes"),
    )
