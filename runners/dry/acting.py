"""What a handler of an operator may know of the GPU that is acted out, and do to it."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from estimators.hardware import Device


class Gpu(Protocol):
    """The GPU that is acted out."""

    device: Device
    padded: bool
    asked: str
    """The operator before this one: a value that code asks for is mostly its result."""

    @property
    def phase(self) -> str:
        """ "load", then those of a step."""

    def born(self, tensor: Tensor) -> Tensor:
        """Reports a tensor that a kernel made."""


Handler = Callable[[Gpu, tuple[Any, ...], dict[str, Any]], Any]
"""Makes the allocations of an operator's CUDA kernel, in order, and returns its result."""
