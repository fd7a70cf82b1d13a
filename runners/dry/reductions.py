"""The scratch memory of CUDA's reductions: partial results where one output is shared by several blocks of threads.

Source: torch's aten/src/ATen/native/cuda/Reduce.cuh (setReduceConfig, ReduceConfig.global_memory_size and
semaphore_size) and aten/src/ATen/native/ReduceOpsUtils.h (which inputs are cast first).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runners.dry.acting import Gpu, Handler

LARGEST_BLOCK = 512
WARP = 32
THREADS_PER_MULTIPROCESSOR = 2048
"""Of the data-centre cards; others have 1536, which moves only where the split is at its limit."""
VECTOR = 4
FEW_VALUES, MANY_VALUES = 16, 256
"""Each thread should be left with at least so many values, and at most so many."""
SEMAPHORE_BYTES = 4
ACCUMULATED_BYTES = 4
"""Halves are accumulated in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is reduced, as TensorIterator sees it: reduced and kept dimensions, each by ascending stride."""

    inputs: int
    """Values for each output."""
    outputs: int
    reduced_stride: int
    kept_stride: int
    kept_sizes_and_strides: tuple[tuple[int, int], ...]
    one_stretch: bool
    """Whether everything is reduced and lies together."""

    @property
    def along_fastest(self) -> bool:
        return not self.kept_sizes_and_strides or self.reduced_stride < self.kept_stride


def shape_of(source: Tensor, dimensions: Sequence[int] | None) -> Shape:
    chosen = {dimension % source.dim() for dimension in dimensions} if dimensions else set(range(source.dim()))
    wide = [index for index in range(source.dim()) if source.shape[index] > 1]
    places = sorted(wide, key=source.stride)
    reduced = [index for index in places if index in chosen]
    kept = [index for index in places if index not in chosen]
    inputs = 1
    for index in reduced:
        inputs *= source.shape[index]
    return Shape(
        inputs=inputs,
        outputs=source.numel() // max(1, inputs),
        reduced_stride=source.stride(reduced[0]) if reduced else 0,
        kept_stride=source.stride(kept[0]) if kept else 0,
        kept_sizes_and_strides=tuple((source.shape[index], source.stride(index)) for index in kept),
        one_stretch=not kept and torch.ops.aten.is_non_overlapping_and_dense.default(source),
    )


def scratch_bytes(shape: Shape, multiprocessors: int, accumulated_bytes: int = ACCUMULATED_BYTES) -> tuple[int, int]:
    """Bytes of partial results and of the semaphores that guard them; zeros where each output has one block."""
    width_limit, height_limit, vector = _block_limits(shape)
    width, height = _block(width_limit, height_limit, LARGEST_BLOCK // vector)
    step_input, step_output = (width, 1) if shape.along_fastest else (1, width)
    values = -(-shape.inputs // step_input)
    if not (values >= height * FEW_VALUES or values >= MANY_VALUES):
        return 0, 0
    values = -(-shape.inputs // (step_input * height))
    grid = -(-(shape.outputs // vector) // step_output)
    target = multiprocessors * (THREADS_PER_MULTIPROCESSOR // (width * height))
    if values < MANY_VALUES or grid > target:
        return 0, 0
    blocks = max(min(-(-target // grid), -(-values // FEW_VALUES)), -(-values // MANY_VALUES))
    if blocks < 2:  # an output with a block of its own shares nothing
        return 0, 0
    size = accumulated_bytes * shape.outputs * blocks
    return size * (1 if shape.along_fastest else width * vector), SEMAPHORE_BYTES * grid


def _block_limits(shape: Shape) -> tuple[int, int, int]:
    """How wide and high a block may be, and how many outputs a thread takes at once."""
    if shape.along_fastest:
        vectorized = shape.one_stretch and shape.inputs > 128 and shape.reduced_stride == 1
        return shape.inputs // (VECTOR if vectorized else 1), shape.outputs, 1
    if shape.kept_stride != 1:
        return shape.outputs, shape.inputs, 1
    vector = VECTOR
    for number in (shape.kept_sizes_and_strides[0][0], *(stride for _, stride in shape.kept_sizes_and_strides[1:])):
        while number % vector:
            vector //= 2
    return shape.outputs // vector, shape.inputs, vector


def _block(width_limit: int, height_limit: int, threads: int) -> tuple[int, int]:
    wide, high = (min(threads, 1 << (max(1, limit).bit_length() - 1)) for limit in (width_limit, height_limit))
    height = min(high, threads // min(wide, WARP))
    return min(wide, threads // height), height


def _sum(operator: Any) -> Handler:
    """A reduction whose whole-number inputs are cast to int64 first, once the result is there."""

    def handler(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        source, dimensions = args[0], args[1] if len(args) > 1 else None
        result = gpu.born(operator(*args, **kwargs))
        copy = None
        if not source.is_floating_point() and source.dtype != result.dtype:
            copy = gpu.born(torch.empty_like(source, dtype=result.dtype))
        share(gpu, source, dimensions, max(ACCUMULATED_BYTES, result.element_size()))
        del copy
        return result  # type: ignore[no-any-return]

    return handler


def share(gpu: Gpu, source: Tensor, dimensions: Sequence[int] | None, accumulated_bytes: int) -> None:
    """Take and give back the scratch memory of a reduction."""
    sizes = scratch_bytes(shape_of(source, dimensions), gpu.device.multiprocessors, accumulated_bytes)
    held = [gpu.born(source.new_empty(size, dtype=torch.uint8)) for size in sizes if size]
    while held:
        held.pop()


def handlers() -> dict[Any, Handler]:
    aten = torch.ops.aten
    reductions = (aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim)
    return {operator: _sum(operator) for operator in reductions}
