"""What autograd does to memory, replayed over shapes: which tensors a step keeps, and how high it rises in between.

A model's code is walked once with Values in place of tensors. Every operation records what it makes, what it saves for
the backward pass, and the work it is. Two replays then follow autograd's own rules: forward, where a tensor lives until
its last reader unless it was saved, and backward, where gradients are born and saved tensors die. It is the formula's
counterpart of the dry run, which does the same with the real code.

Sources: torch/csrc/autograd (saved variables, input buffers) and derivatives.yaml for what each operation saves.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from estimators.allocation import held_bytes

OpClass = Literal["matmul", "attention", "elementwise", "dequantize"]
HostCall = Literal["adapter", "nf4", "int8", "expert"]
"""Library code whose own Python costs the host time beside the kernels that it launches."""


class Value:
    """A tensor: its size, its item size, whether a gradient flows through it, and whose storage it views."""

    __slots__ = ("elements", "grad", "itemsize", "size_bytes", "storage")

    def __init__(self, elements: int, itemsize: int, grad: bool, view_of: "Value | None" = None) -> None:
        self.elements = elements
        self.itemsize = itemsize
        self.grad = grad
        self.size_bytes = held_bytes(elements * itemsize)
        self.storage: Value = self if view_of is None else view_of.storage


class Node:
    """One operation. `saved` is kept for its backward; the `_temporary` bytes exist only while it runs."""

    __slots__ = (
        "aliases",
        "backward_flops",
        "backward_launches",
        "backward_temporary",
        "backward_traffic",
        "flops",
        "inputs",
        "kind",
        "launches",
        "output",
        "saved",
        "temporary",
        "traffic",
    )

    def __init__(
        self,
        kind: OpClass,
        inputs: Sequence[Value],
        output: Value,
        saved: Sequence[Value] = (),
        *,
        temporary: int = 0,
        backward_temporary: int = 0,
        aliases: bool = False,
        flops: float = 0.0,
        backward_flops: float = 0.0,
        traffic: float | None = None,
        backward_traffic: float | None = None,
        launches: int = 1,
        backward_launches: int | None = None,
    ) -> None:
        self.kind = kind
        self.inputs = inputs
        self.output = output
        self.saved = saved
        self.temporary = temporary
        self.backward_temporary = backward_temporary
        self.aliases = aliases
        self.flops = flops
        self.backward_flops = backward_flops
        moved = output.size_bytes + sum(value.size_bytes for value in inputs)
        self.traffic = moved if traffic is None else traffic
        self.backward_traffic = self.traffic if backward_traffic is None else backward_traffic
        self.launches = launches
        self.backward_launches = launches if backward_launches is None else backward_launches


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a stretch of the model costs in memory, in bytes."""

    kept: int
    """Saved for the backward pass when the forward pass has left the stretch (the input too, where it is saved)."""
    cached_casts: int
    """Of `kept`, copies of trainable weights that autocast made; under checkpointing they live until forward ends."""
    pinned: int
    """Of `kept`, what activation checkpointing does not drop."""
    forward_peak: int
    """Highest total inside the forward pass, counted from nothing but the input."""
    backward_peak: int
    """Highest total inside the backward pass, saved tensors and the incoming gradient included."""


class Tape:
    """The operations of a stretch of a model, in order."""

    __slots__ = ("calls", "casts", "nodes", "pinned")

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.calls: dict[HostCall, int] = {}
        self.casts: list[Value] = []
        """Copies of trainable weights that autocast keeps until its context ends."""
        self.pinned: list[Value] = []
        """Saved outside autograd's saved tensors, so that activation checkpointing does not drop them."""

    def add(self, node: Node) -> Value:
        self.nodes.append(node)
        return node.output

    def call(self, name: HostCall, times: int = 1) -> None:
        """Count a call into library code that is slow on the host."""
        self.calls[name] = self.calls.get(name, 0) + times

    def cast(self, value: Value, itemsize: int) -> Value:
        """`value.to(dtype)`: itself where it already has that size, a copy otherwise; nothing is saved."""
        if value.itemsize == itemsize:
            return value
        return self.add(Node("elementwise", (value,), Value(value.elements, itemsize, value.grad)))

    def elementwise(self, *inputs: Value, saved: Sequence[Value] = (), itemsize: int | None = None) -> Value:
        """A pointwise operation: the result has the first input's elements and the widest item size."""
        size = itemsize or max(value.itemsize for value in inputs)
        output = Value(inputs[0].elements, size, any(value.grad for value in inputs))
        return self.add(Node("elementwise", inputs, output, tuple(saved) if output.grad else ()))

    def sum(self, left: Value, right: Value) -> Value:
        """left + right: its backward hands the same gradient to both, so nothing is allocated there."""
        output = Value(left.elements, max(left.itemsize, right.itemsize), left.grad or right.grad)
        aliases = left.itemsize == right.itemsize
        return self.add(Node("elementwise", (left, right), output, aliases=aliases, backward_launches=0))

    def footprint(self, stretch_input: Value) -> Footprint:
        """The memory of this stretch: see Footprint."""
        saved = _storages(value for node in self.nodes if node.output.grad for value in node.saved)
        kept = sum(value.size_bytes for value in saved)
        return Footprint(
            kept=kept,
            cached_casts=sum(value.size_bytes for value in self.casts),
            pinned=sum(value.size_bytes for value in _storages(self.pinned)),
            forward_peak=self._forward_peak(stretch_input, set(map(id, saved))),
            backward_peak=self._backward_peak(kept),
        )

    def _forward_peak(self, stretch_input: Value, saved: set[int]) -> int:
        last_use = {id(value.storage): index for index, node in enumerate(self.nodes) for value in node.inputs}
        live = sum(value.size_bytes for value in self.casts) + stretch_input.size_bytes
        peak = live
        for index, node in enumerate(self.nodes):
            if node.output.storage is node.output:
                live += node.output.size_bytes
            peak = max(peak, live + node.temporary)
            for value in _storages(node.inputs):
                if last_use[id(value)] == index and id(value) not in saved:
                    live -= value.size_bytes
        return peak

    def _backward_peak(self, kept: int) -> int:
        first_saver: dict[int, int] = {}
        for index, node in enumerate(self.nodes):
            for value in node.saved if node.output.grad else ():
                first_saver.setdefault(id(value.storage), index)
        gradients = _Gradients()
        gradients.give(self.nodes[-1].output)
        live_saved, peak = kept, 0
        for index in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[index]
            if not node.output.grad:
                continue
            added = gradients.through(node)
            peak = max(peak, live_saved + gradients.live + added + node.backward_temporary)
            gradients.settle(node)
            for value in _storages(node.saved):
                if first_saver[id(value)] == index:
                    live_saved -= value.size_bytes
        return peak


class _Gradients:
    """The gradients that are alive at one moment of the backward pass."""

    __slots__ = ("buffers", "live", "shared")

    def __init__(self) -> None:
        self.live = 0
        self.buffers: dict[int, int] = {}
        self.shared: dict[int, int] = {}

    def give(self, value: Value) -> None:
        self.buffers[id(value)] = value.size_bytes
        self.live += value.size_bytes

    def through(self, node: Node) -> int:
        """Bytes that the backward of `node` allocates for its inputs' gradients, before its output's is freed."""
        if node.aliases:
            return 0
        return sum(value.size_bytes for value in _unique(node.inputs) if value.grad)

    def settle(self, node: Node) -> None:
        """Pass the gradient on: into new buffers, or added into those that the inputs already have."""
        size = self.buffers.pop(id(node.output), 0)
        receivers = [value for value in _unique(node.inputs) if value.grad]
        self.live -= size
        for position, value in enumerate(receivers):
            if id(value) in self.buffers:
                continue
            # An alias hands one buffer to the first receiver; a second one shares it until it is written.
            owned = 0 if node.aliases and position else value.size_bytes
            self.buffers[id(value)] = owned
            self.live += owned


def _unique(values: Iterable[Value]) -> list[Value]:
    return list({id(value): value for value in values}.values())


def _storages(values: Iterable[Value]) -> list[Value]:
    return _unique(value.storage for value in values)
