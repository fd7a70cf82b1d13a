"""Counts what the operators of a step do: flops, bytes and launches by class."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.utils import checkpoint

from estimators.work import HOST_ONLY, Class, Load, Work
from runners.dry.replacing import LAUNCHED, replaced

CLASSES: dict[str, Class] = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), "matmul"),
    "gemm_4bit": "nf4",
    **dict.fromkeys(("int8_vectorwise_quant", "int8_mixed_scaled_mm", "int8_scaled_mm", "int8_linear_matmul"), "int8"),
    **dict.fromkeys(("split", "split_with_sizes", "unbind", "chunk"), "view"),
}
LIBRARIES: dict[str, Class] = {"peft": "adapter", "bitsandbytes": "quantized"}
SHORT_SIDE = {2: 128, 4: 15}
"""By item size: with a side this short a product moves more than it computes, on every card of the catalogue."""
EVEN_HEADS = (64, 128, 256)
"""Head sizes that attention was fast with; TracedRates says how that is known."""
COMPUTES: tuple[Class, ...] = ("matmul", "float32", "narrow", "nf4", "int8")
HALF_BYTES = 2
PACKED_DIMENSIONS = 3
"""Sequences end to end have no dimension of their own."""
UNMADE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
"""Room without a kernel."""
UNSEEN = ("_local_scalar_dense", "lift_fresh", "_record_function_enter_new", "_record_function_exit")
"""Neither kernels nor anything that takes time."""
SECOND = 2


class Tally:
    """Adds up a step's operators."""

    def __init__(self) -> None:
        self.loads: dict[tuple[str, Class], Load] = {}
        self.phase = ""
        self.weight = 0.0
        """How many micro-batches are like this one; 0 while nothing is counted."""
        self.accumulation = 0
        self.micro_batches = 0
        self.recomputing = False

    def start(self, accumulation: int) -> None:
        """Count from here on a step of so many micro-batches, of which two are run."""
        self.accumulation = accumulation

    def begin(self, phase: str) -> None:
        self.phase = phase
        if phase == "forward":
            self.micro_batches += 1 if self.accumulation else 0
            self.weight = float(min(self.micro_batches, 1) if self.micro_batches < SECOND else self.accumulation - 1)
        elif phase != "backward":
            self.weight = float(self.micro_batches > 0 and phase == "optimizer")

    def count(self, name: str, args: Sequence[Any], result: Any) -> None:
        """One operator ran."""
        if not self.weight or name in UNMADE or name in UNSEEN:
            return
        inputs, outputs = tensors_of(args), tensors_of((result,))
        kind = self._class(name, inputs, outputs)
        size_bytes = 0 if kind in HOST_ONLY else sum(item.nbytes for item in (*inputs, *outputs))
        if kind == "nf4":  # what is moved before the product: two weights a byte, written out in 16 bits
            size_bytes = (1 + 2 * HALF_BYTES) * inputs[1].numel()
        self.add(kind, _flops(name, inputs) if kind in COMPUTES else 0.0, size_bytes)

    def called(self, module: nn.Module) -> None:
        """A module's forward is called."""
        self.add("module", 0.0, 0)
        library = LIBRARIES.get(type(module).__module__.split(".")[0])
        if library is not None:
            self.add(library, 0.0, 0)

    def attended(self, query: Tensor, key: Tensor, keys: float, backward: bool) -> None:
        """A fused attention kernel ran, over so many keys a query: two products forward and five backward."""
        kind: Class = "attention" if query.shape[-1] in EVEN_HEADS else "uneven attention"
        products, passes = (5, 4) if backward else (2, 2)
        self.add(kind, 2.0 * products * query.numel() * keys, passes * (query.nbytes + key.nbytes))

    def launched(self, arguments: Sequence[Any]) -> None:
        """A Triton kernel ran on these."""
        tensors = [item for item in arguments if isinstance(item, Tensor)]
        self.add("elementwise", 0.0, sum({item.untyped_storage()._cdata: item.nbytes for item in tensors}.values()))

    def add(self, kind: Class, flops: float, size_bytes: float) -> None:
        if not self.weight:
            return
        key = ("recomputation" if self.recomputing else self.phase, kind)
        load = Load(calls=1.0, flops=flops, size_bytes=size_bytes)
        self.loads[key] = self.loads.get(key, Load()).plus(load, self.weight)

    def _class(self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Class:
        if name == "detach":
            return "saved" if self.recomputing else "view"
        if name in CLASSES:
            kind = CLASSES[name]
            return _product(inputs, outputs) if kind == "matmul" else kind
        if self.phase == "optimizer":
            return "optimizer"
        if not name.endswith("_") and len(inputs) == 1 and len(outputs) == 1 and _shared(inputs[0], outputs[0]):
            return "view"
        return "elementwise"

    def work(self) -> Work:
        return Work(loads=dict(self.loads))


def tensors_of(items: Iterable[Any]) -> list[Tensor]:
    """Those among arguments or results, and in lists of them."""
    found = []
    for item in items:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (list, tuple)):
            found += tensors_of(item)
    return found


def attended(query: Tensor, key: Tensor, *, masked: bool, backward: bool = False, sequences: int = 1) -> None:
    """Let a running tally know of a fused attention kernel. Without a mask it is causal: half of the keys count."""
    tally = _CURRENT.get()
    if tally is not None:
        rows = key.shape[-2] if key.dim() > PACKED_DIMENSIONS else key.shape[0] / sequences
        tally.attended(query, key, rows if masked else rows / 2, backward)


@contextmanager
def tallying(tally: Tally) -> Iterator[None]:
    """Let stand-ins for kernels, which no operator shows, find the tally; and tell it of recomputation."""
    token, told = _CURRENT.set(tally), LAUNCHED.set(tally.launched)
    name = "_recomputation_hook"
    try:
        with replaced(checkpoint, name, _watched(tally, getattr(checkpoint, name))):
            yield
    finally:
        _CURRENT.reset(token)
        LAUNCHED.reset(told)


def _watched(tally: Tally, real: Any) -> Any:
    """The context in which checkpointing runs a block again, telling of its begin and end."""

    class Watched(real):  # type: ignore[misc]
        def __enter__(self) -> Any:
            tally.recomputing = True
            return super().__enter__()

        def __exit__(self, *args: object) -> Any:
            tally.recomputing = False
            return super().__exit__(*args)

    return Watched


_CURRENT: ContextVar[Tally | None] = ContextVar("tally", default=None)


def _product(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Class:
    """Which kind of matrix product this is."""
    left, result = [item for item in inputs if item.dim() >= SECOND][-2], outputs[0]
    least = min(left.shape[-1], *result.shape[-2:])
    if least <= SHORT_SIDE.get(left.element_size(), 0):
        return "narrow"
    return "matmul" if left.element_size() == HALF_BYTES else "float32"


def _shared(one: Tensor, other: Tensor) -> bool:
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _flops(name: str, inputs: Sequence[Tensor]) -> float:
    """2 · rows · inner · columns of a product."""
    if name == "gemm_4bit":
        source, packed = inputs[0], inputs[1]
        return 4.0 * source.numel() // source.shape[-1] * packed.numel()  # two weights a byte
    matrices = [item for item in inputs if item.dim() >= SECOND]
    if len(matrices) < SECOND:
        return 0.0
    left, right = matrices[-2:]
    if name.startswith("int8"):
        return 2.0 * left.numel() * right.shape[0]
    return 2.0 * left.numel() * right.shape[-1]
