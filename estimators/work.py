"""What a step asks of the GPU and of the host that feeds it: operations by class, with flops, bytes and launches."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from estimators.errors import BadInput

Class = Literal[
    "matmul",
    "float32",
    "narrow",
    "attention",
    "uneven attention",
    "nf4",
    "int8",
    "elementwise",
    "optimizer",
    "view",
    "module",
    "adapter",
    "quantized",
    "saved",
]
"""What the GPU computes: matrix products in 16 bits, in float32, and with a side so short that memory is their limit;
fused attention, and that over heads of uncommon sizes; 4-bit and 8-bit products of
bitsandbytes; whatever reads and writes tensors; the optimizer's update. What only the host sees: operators that make
views; calls of modules, of PEFT's and of bitsandbytes' among them; tensors that checkpointing saves by hooks."""
HOST_ONLY: tuple[Class, ...] = ("view", "module", "adapter", "quantized", "saved")
PHASES = ("forward", "recomputation", "backward", "optimizer")
"""Recomputation is what a backward pass runs forward again."""
SEPARATOR = ", "


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Operations of one class."""

    calls: float = 0.0
    """Operators that the host dispatches; each but a view launches at least one kernel."""
    flops: float = 0.0
    size_bytes: float = 0.0
    """Read and written, each tensor once."""

    def plus(self, other: "Load", times: float = 1.0) -> "Load":
        return Load(
            calls=self.calls + times * other.calls,
            flops=self.flops + times * other.flops,
            size_bytes=self.size_bytes + times * other.size_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One optimizer step, all its micro-batches together."""

    loads: Mapping[tuple[str, Class], Load] = field(hash=False)
    """By phase and class."""

    def plus(self, other: "Work", times: float = 1.0) -> "Work":
        """Both, the other one so many times; negative times take it away."""
        none = Load()
        keys = [*self.loads, *(key for key in other.loads if key not in self.loads)]
        return Work(loads={key: self.loads.get(key, none).plus(other.loads.get(key, none), times) for key in keys})

    def of(self, phase: str | None = None, kind: Class | None = None) -> Load:
        """The sum over phases and classes that are not named."""
        if phase is not None and kind is not None:
            return self.loads.get((phase, kind), Load())
        total = Load()
        for (when, what), load in self.loads.items():
            if phase in (None, when) and kind in (None, what):
                total = total.plus(load)
        return total

    def by_name(self) -> dict[str, Load]:
        """As it is stored: "forward, matmul" and so on."""
        return {f"{phase}{SEPARATOR}{kind}": load for (phase, kind), load in self.loads.items()}


def work_from_names(table: Mapping[str, Load]) -> Work:
    """
    Raises:
        BadInput: a name is of no phase, or of no class.
    """
    loads: dict[tuple[str, Class], Load] = {}
    for name, load in table.items():
        phase, _, kind = name.partition(SEPARATOR)
        if phase not in PHASES or kind not in get_args(Class):
            raise BadInput(f"no operations are called {name[:60]!a}")
        loads[phase, cast(Class, kind)] = load
    return Work(loads=loads)
