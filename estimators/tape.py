"""What autograd does to memory, replayed over shapes: which tensors a step keeps, and how high it rises in between.

A model's code is walked once with Values in place of tensors. Every operation records what it makes, what it saves for
the backward pass, and the work it is. Two replays (estimators/footprint.py) then follow autograd's own rules. It is the
formula's counterpart of the dry run, which does the same with the real code.

Sources: torch/csrc/autograd (saved variables, input buffers) and derivatives.yaml for what each operation saves.
"""

from collections.abc import Sequence
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
    """One operation. `saved` is kept for its backward; the `_temporary` bytes exist only while it runs.

    `weight_gradient` is what its backward makes for a trainable weight, in bytes. One that `overwrites` puts the
    gradients of its inputs where what it saved was.
    """

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
        "overwrites",
        "saved",
        "temporary",
        "traffic",
        "weight_gradient",
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
        weight_gradient: int = 0,
        overwrites: bool = False,
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
        self.weight_gradient = weight_gradient
        self.overwrites = overwrites
        self.backward_launches = launches if backward_launches is None else backward_launches


class Tape:
    """The operations of a stretch of a model, in order."""

    __slots__ = ("calls", "casts", "locals", "nodes", "pinned")

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.calls: dict[HostCall, int] = {}
        self.casts: list[Value] = []
        """Copies of trainable weights that autocast keeps until its context ends."""
        self.pinned: list[Value] = []
        """Saved outside autograd's saved tensors, so that activation checkpointing does not drop them."""
        self.locals: list[Value] = []
        """Held by a variable of the stretch's code until it returns."""

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
        return self.add(Node("elementwise", (left, right), output, aliases=True, backward_launches=0))

    def hold(self, *values: Value) -> None:
        """The code has these in its variables until the last operation so far is done."""
        held = tuple(Value(0, 1, False, view_of=value) for value in values)
        self.nodes[-1].inputs = (*self.nodes[-1].inputs, *held)
