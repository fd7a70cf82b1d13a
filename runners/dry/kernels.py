"""Operators whose CUDA kernels allocate otherwise than their meta kernels, or that meta cannot answer at all.

Each handler makes the same allocations as the kernel that it stands for, in order, through `Gpu.born`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Gpu(Protocol):
    """The GPU that is acted out."""

    padded: bool

    def born(self, tensor: Tensor) -> Tensor:
        """Reports a tensor that a kernel made."""


Handler = Callable[[Gpu, tuple[Any, ...], dict[str, Any]], Any]

FUSED_4BIT_ROWS = 512
"""bitsandbytes 0.50 backends/cuda/ops.py: at most so many rows are multiplied without expanding the weight first."""


def _scalar(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A value that code asks for: whether a mask is all ones, or a count, which is one."""
    return not gpu.padded if args[0].dtype == torch.bool else 1


def _nothing(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Updates in place."""


def _four_bit(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """bitsandbytes' 4-bit product: scales and weight expanded, then a product."""
    source, _, shape = args[:3]
    rows = source.numel() // source.shape[-1]
    held = []
    if rows > FUSED_4BIT_ROWS:
        nested = kwargs.get("absmax_8bit")
        if nested is not None:
            held = [gpu.born(torch.empty_like(nested, dtype=torch.float32)) for _ in range(2)]
        held.append(gpu.born(source.new_empty(tuple(shape))))
    return gpu.born(source.new_empty((*source.shape[:-1], shape[0])))


def _eight_bit(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """Rows quantised to int8; columns with outliers are looked for, and random inputs have none."""
    source = args[0]
    scales = gpu.born(source.new_empty(source.numel() // source.shape[-1], dtype=torch.float32))
    quantized = gpu.born(torch.empty_like(source, dtype=torch.int8))
    threshold = kwargs.get("threshold", args[1] if len(args) > 1 else 0.0)
    outliers = None
    if threshold > 0:
        absolute = gpu.born(torch.empty_like(source))
        mask = gpu.born(torch.empty_like(source, dtype=torch.bool))
        del absolute
        outliers = gpu.born(source.new_empty(0, dtype=torch.int64))
        del mask
    return quantized, scales, outliers  # type: ignore[return-value]


def _mixed_product(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """int8 rows times int8 weight: an int32 product, a float16 result, then the input's type."""
    source, quantized, weight = args[:3]
    empty = gpu.born(source.new_empty(0))
    shape = (*quantized.shape[:-1], weight.shape[0])
    product = gpu.born(source.new_empty(shape, dtype=torch.int32))
    half = gpu.born(source.new_empty(shape, dtype=torch.float16))
    result = half if source.dtype == torch.float16 else gpu.born(source.new_empty(shape))
    del product, half
    return result, empty


def _safe_softmax(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A softmax, then zeros where a whole row is masked (_safe_softmax of torch's attention, from memory)."""
    source = args[0]
    softmax = gpu.born(torch.empty_like(source))
    masked = gpu.born(torch.empty_like(source, dtype=torch.bool))
    result = gpu.born(torch.empty_like(source))
    del softmax, masked
    return result


def _index(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """source[mask]: the places where the mask is true, which is everywhere, then the rows."""
    source, indices = args
    mask = indices[0] if indices else None
    if mask is None or mask.dtype != torch.bool:
        return NotImplemented
    gpu.born(source.new_empty((mask.numel(), mask.dim()), dtype=torch.int64))
    return gpu.born(source.new_empty((mask.numel(), *source.shape[mask.dim() :])))


def handlers() -> dict[Any, Handler]:
    """By operator overload; bitsandbytes' are there once it is imported."""
    aten = torch.ops.aten
    table: dict[Any, Handler] = {
        aten._local_scalar_dense.default: _scalar,
        aten._fused_adamw_.default: _nothing,
        aten.index.Tensor: _index,
        aten._safe_softmax.default: _safe_softmax,
    }
    own = torch.ops.bitsandbytes
    for name, handler in (
        ("gemm_4bit", _four_bit),
        ("int8_vectorwise_quant", _eight_bit),
        ("int8_mixed_scaled_mm", _mixed_product),
    ):
        if hasattr(own, name):
            table[getattr(own, name).default] = handler
    return table
