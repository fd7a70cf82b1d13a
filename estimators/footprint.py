"""What a tape costs in memory, by autograd's rules: forward, where a tensor lives until its last reader unless it was
saved, and backward, where gradients are born and saved tensors die."""

from collections.abc import Iterable
from dataclasses import dataclass

from estimators.tape import Node, Tape, Value


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
    passing_peak: int
    """The same where activation checkpointing drops what the forward pass saves."""
    recompute_peak: int
    """Highest total while a checkpointed stretch runs again, which begins when its backward pass first asks for what
    was saved and ends with the last of it: gradients on their way, and what was not dropped, included."""
    backward_peak: int
    """Highest total inside the backward pass, saved tensors and the incoming gradient included, weights' gradients
    not."""
    growing_peak: int
    """The same with the gradients of the stretch's own weights, as they are made."""
    accumulating_peak: int
    """The same where a weight's gradient is added at once to that of earlier micro-batches, and freed."""


def footprint(tape: Tape, stretch_input: Value, *, checkpointed: bool = False) -> Footprint:
    """The memory of this stretch: see Footprint."""
    saves = [_storages(node.saved) if node.saved and node.output.grad else [] for node in tape.nodes]
    saved = _unique(value for values in saves for value in values)
    kept = sum(value.size_bytes for value in saved)
    kept += stretch_input.size_bytes if checkpointed and stretch_input not in saved else 0
    all_pinned = _storages(tape.pinned)
    pinned = [value for value in all_pinned if value is not stretch_input or not checkpointed]
    pinned_bytes, held = sum(value.size_bytes for value in pinned), set(map(id, all_pinned))
    unpacks = [any(id(value) not in held for value in values) for values in saves]
    end = len(unpacks) - unpacks[::-1].index(True) if checkpointed and True in unpacks else 0
    variables = set(map(id, tape.locals))
    passes = _Passes(tape, stretch_input, saves)
    stays = set(map(id, saved)) | variables
    recompute_peak, forward_peak = passes.forward(stays, end)
    if checkpointed:  # a checkpoint holds what it was handed, whoever else is done with it
        variables.add(id(stretch_input))
        if not variables <= stays:
            recompute_peak, _ = passes.forward(stays | variables, end)
    backward_peak, growing_peak, accumulating_peak, waiting = passes.backward(kept, unpacks)
    return Footprint(
        kept=kept,
        cached_casts=sum(value.size_bytes for value in tape.casts),
        pinned=pinned_bytes,
        forward_peak=forward_peak,
        passing_peak=passes.forward(held | variables, 0)[1] if checkpointed else forward_peak,
        recompute_peak=recompute_peak + waiting + pinned_bytes if checkpointed else 0,
        backward_peak=backward_peak,
        growing_peak=growing_peak,
        accumulating_peak=accumulating_peak,
    )


class _Passes:
    """The forward and the backward pass over a tape, tensor by tensor."""

    __slots__ = ("last_use", "nodes", "reads", "saves", "stretch_input", "tape")

    def __init__(self, tape: Tape, stretch_input: Value, saves: list[list[Value]]) -> None:
        self.tape = tape
        self.nodes = tape.nodes
        self.stretch_input = stretch_input
        self.saves = saves
        self.reads = [_storages(node.inputs) for node in tape.nodes]
        self.last_use = {id(value): index for index, values in enumerate(self.reads) for value in values}

    def forward(self, stays: set[int], end: int) -> tuple[int, int]:
        """The highest total of the first `end` operations, and of all; `stays` is not freed after its last use."""
        casts, last_use = self.tape.casts, self.last_use
        live = sum(value.size_bytes for value in casts) + self.stretch_input.size_bytes
        counted = {id(value) for value in (*casts, self.stretch_input)} | {id(node.output) for node in self.nodes}
        peak = peak_at_end = live
        for index, node in enumerate(self.nodes):
            if node.output.storage is node.output:
                live += node.output.size_bytes
            beside = 0  # what is saved and is no node's output, as a mask: `temporary` holds it too
            for value in self.saves[index]:
                if id(value) not in counted and id(value) in stays:
                    counted.add(id(value))
                    beside += value.size_bytes
            peak = max(peak, live + max(node.temporary, beside))
            peak_at_end = peak if index < end else peak_at_end
            live += beside
            for value in self.reads[index]:
                if last_use[id(value)] == index and id(value) not in stays:
                    live -= value.size_bytes
        return peak_at_end, peak

    def backward(self, kept: int, unpacks: list[bool]) -> tuple[int, int, int, int]:
        """Footprint's backward_peak, growing_peak and accumulating_peak; then the gradients that are alive when
        something dropped is first asked for."""
        first_saver: dict[int, int] = {}
        for index, values in enumerate(self.saves):
            for value in values:
                first_saver.setdefault(id(value), index)
        gradients = _Gradients()
        gradients.give(self.nodes[-1].output)
        live_saved, made = kept, 0
        peak = growing = accumulating = waiting = 0
        for index in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[index]
            if not node.output.grad:
                continue
            if not waiting and unpacks[index]:
                waiting = gradients.live
            total = live_saved + gradients.live + gradients.through(node) + node.backward_temporary
            made += node.weight_gradient
            peak, growing = max(peak, total), max(growing, total + made)
            accumulating = max(accumulating, total + node.weight_gradient)
            gradients.settle(node)
            for value in self.saves[index]:
                if first_saver[id(value)] == index:
                    live_saved -= value.size_bytes
        return peak, growing, accumulating, waiting


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
        if node.overwrites:
            return 0
        receivers = _unique(value for value in node.inputs if value.grad)
        return sum(value.size_bytes for value in receivers if not _aliased(node, value))

    def settle(self, node: Node) -> None:
        """Pass the gradient on: into new buffers, or added into those that the inputs already have."""
        size = self.buffers.pop(id(node.output), 0)
        receivers = _unique(value for value in node.inputs if value.grad)
        self.live -= size
        shared = False
        for value in receivers:
            if id(value) in self.buffers:
                continue
            # An alias hands one buffer to the first receiver; a second one shares it until it is written.
            owned = 0 if shared and _aliased(node, value) else value.size_bytes
            shared = shared or _aliased(node, value)
            self.buffers[id(value)] = owned
            self.live += owned


def _aliased(node: Node, value: Value) -> bool:
    """The node hands its own gradient to this input; one of another type is cast."""
    return node.aliases and value.itemsize == node.output.itemsize


def _unique(values: Iterable[Value]) -> list[Value]:
    return list({id(value): value for value in values}.values())


def _storages(values: Iterable[Value]) -> list[Value]:
    return _unique(value.storage for value in values)
