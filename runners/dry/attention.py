"""What scaled_dot_product_attention allocates on CUDA, kernel by kernel; the values are not computed.

Sources: torch 2.11 aten/src/ATen/native/transformers/cuda: sdp_utils.cpp (which kernel), flash_attn/flash_api.cpp
(mha_fwd, mha_bwd, num_splits_heuristic), attention.cu and attention_backward.cu (copies, the mask, workspaces). The
files are named from memory of torch's tree; what is said of them is held to measured runs, tests/runners/test_dry.py.
"""

from math import ceil
from typing import Any

import torch
from torch import Tensor

from estimators.hardware import Device
from runners.dry.tally import attended

HALF = (torch.bfloat16, torch.float16)
FLASH_LARGEST_HEAD = 256
FLASH_CAPABILITY = (8, 0)
CUDNN_LARGEST_HEAD = {9: 256, 10: 128}
"""By major capability: Hopper and data-centre Blackwell, where cuDNN's kernel goes before FlashAttention since cuDNN
9.15. Hopper's limit is that of the recorded Gemma 3, with and without a mask."""
CUDNN_LATENT_HEADS = (192, 128)
"""Of queries and of values under latent attention, which cuDNN takes too."""
CUDNN_BYTES = 256
"""cuDNN rounds its workspaces to so many, and asks for as many at least."""
EFFICIENT_ROWS = 32
"""The memory-efficient kernel pads its log-sum-exp to so many rows."""


def kernel_of(
    device: Device, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, grouped: bool, cudnn: bool = True
) -> str:
    """Which kernel CUDA takes: "cudnn", "flash", "efficient" or "math".

    Args:
        cudnn: whether cuDNN's may go first; where it goes last, the plain one goes before it.
    """
    heads = (query.shape[1], key.shape[1], value.shape[1])
    same_heads = len(set(heads)) == 1
    if query.dim() != 4 or not (same_heads or grouped):
        return "math"
    sizes = {query.shape[-1], key.shape[-1], value.shape[-1]}
    if cudnn and query.dtype in HALF and _fits_cudnn(device, query, value):
        return "cudnn"
    flash = query.dtype in HALF and device.compute_capability >= FLASH_CAPABILITY and mask is None
    if flash and len(sizes) == 1 and query.shape[-1] <= FLASH_LARGEST_HEAD:
        return "flash"
    aligned = all(size % (8 if query.dtype in HALF else 4) == 0 for size in sizes)
    return "efficient" if same_heads and aligned else "math"


def _fits_cudnn(device: Device, query: Tensor, value: Tensor) -> bool:
    sizes = (query.shape[-1], value.shape[-1])
    largest = CUDNN_LARGEST_HEAD.get(device.compute_capability[0], 0)
    return bool(largest and sizes == CUDNN_LATENT_HEADS) or all(size <= largest and size % 8 == 0 for size in sizes)


class Cudnn(torch.autograd.Function):
    """cuDNN's fused kernel; the recorded histories show its workspaces."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        attended(query, key, masked=mask is not None)
        bias = _additive(mask, query.dtype)
        random = query.new_empty((), dtype=torch.int64), query.new_empty((), dtype=torch.int64)
        output = _laid_out_as(query, value.shape[-1])
        log_sum = query.new_empty(query.shape[:-1], dtype=torch.float32)
        workspace = query.new_empty(CUDNN_BYTES, dtype=torch.uint8)
        del workspace
        ctx.save_for_backward(query, key, value, output, log_sum, bias, *random)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *others = ctx.saved_tensors  # all of them live until the kernel is done
        attended(query, key, masked=others[2] is not None, backward=True)
        results = tuple(torch.empty_like(item) for item in (query, key, value))
        rows = query.numel() // query.shape[-1]
        size_bytes = CUDNN_BYTES + 4 * rows + 4 * query.numel()  # row sums, and the queries' gradient in float32
        if key.shape[1] != query.shape[1]:  # a gradient for every head, summed over groups afterwards
            size_bytes += query.element_size() * query.shape[1] * (key.numel() + value.numel()) // key.shape[1]
        workspace = query.new_empty(size_bytes, dtype=torch.uint8)
        del workspace
        return *results, None


def _additive(mask: Tensor | None, data_type: torch.dtype) -> Tensor | None:
    """A mask of truths as what is added to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    zero, lowest = (mask.new_empty((), dtype=data_type) for _ in range(2))
    result = torch.empty_like(mask, dtype=data_type)
    del zero, lowest
    return result


def _laid_out_as(query: Tensor, size: int) -> Tensor:
    """A result whose dimensions lie in memory in the query's order."""
    order = sorted(range(query.dim()), key=query.stride, reverse=True)
    shape = (*query.shape[:-1], size)
    back = [order.index(dimension) for dimension in range(query.dim())]
    return query.new_empty([shape[dimension] for dimension in order]).permute(back)


class Flash(torch.autograd.Function):
    """FlashAttention 2."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, device: Device) -> Tensor:
        attended(query, key, masked=False)
        output = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
        log_sum = query.new_empty(query.shape[:-1], dtype=torch.float32)
        if (splits := _splits(device, query, key)) > 1:  # partial results, when few blocks would fill the GPU
            batch, heads, rows, size = query.shape
            partial_sum = query.new_empty((splits, batch, heads, rows), dtype=torch.float32)
            partial = query.new_empty((splits, batch, heads, rows, round_up(size, 32)), dtype=torch.float32)
            del partial_sum, partial
        random = query.new_empty((2,), dtype=torch.int64), query.new_empty((), dtype=torch.int64)
        ctx.save_for_backward(query, key, value, output, log_sum, *random)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, _, *_ = ctx.saved_tensors
        attended(query, key, masked=False, backward=True)
        batch, heads, rows, size = query.shape
        gradient, output = (item.transpose(1, 2).contiguous() for item in (gradient, output))
        results = tuple(torch.empty_like(item.transpose(1, 2)).transpose(1, 2) for item in (query, key, value))
        padded = round_up(rows, 128)
        delta = query.new_empty((batch, heads, padded), dtype=torch.float32)
        width = round_up(size, 32) if size <= 192 else 256
        accumulator = query.new_empty((batch, padded, heads, width), dtype=torch.float32)
        if key.shape[1] != heads:
            expanded = [query.new_empty((batch, key.shape[2], heads, size)) for _ in range(2)]
            del expanded
        del delta, accumulator, gradient, output
        return *results, None


class Efficient(torch.autograd.Function):
    """The memory-efficient kernel."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        attended(query, key, masked=mask is not None)
        batch, heads, rows, _ = query.shape
        bias = None
        if mask is not None:
            bias = torch.zeros_like(mask, dtype=query.dtype) if mask.dtype == torch.bool else mask
            if mask.dtype == torch.bool:
                torch.logical_not(mask)
        output = query.new_empty((batch, rows, heads, value.shape[-1])).transpose(1, 2)
        log_sum = query.new_empty((batch, heads, round_up(rows, EFFICIENT_ROWS)), dtype=torch.float32)
        random = query.new_empty((), dtype=torch.int64), query.new_empty((), dtype=torch.int64)
        ctx.save_for_backward(query, key, value, output, log_sum, bias, *random)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, _, bias, *_ = ctx.saved_tensors
        attended(query, key, masked=bias is not None, backward=True)
        batch, heads, rows, size = query.shape
        results = tuple(
            item.new_empty((batch, item.shape[2], heads, item.shape[3])).transpose(1, 2) for item in (query, key, value)
        )
        if query.dtype in HALF:
            delta = query.new_empty((batch, heads, rows), dtype=torch.float32)
            width = round_up(size, 64 if size <= 64 else 128)
            accumulator = query.new_empty((batch, heads, round_up(rows, 64), width), dtype=torch.float32)
            del accumulator
        else:
            delta = (gradient.float() * output.float()).sum(-1)
        del delta
        return *results, None


def attend(
    device: Device,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    cudnn: bool = True,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention."""
    kernel = kernel_of(device, query, key, value, attn_mask, enable_gqa, cudnn)
    if kernel == "cudnn":
        return Cudnn.apply(query, key, value, attn_mask)  # type: ignore[no-any-return, no-untyped-call]
    if kernel == "flash":
        return Flash.apply(query, key, value, device)  # type: ignore[no-any-return, no-untyped-call]
    if kernel == "efficient":
        return Efficient.apply(query, key, value, attn_mask)  # type: ignore[no-any-return, no-untyped-call]
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def round_up(size: int, grain: int) -> int:
    return -(-size // grain) * grain


def _splits(device: Device, query: Tensor, key: Tensor) -> int:
    """Into how many pieces the flash kernel cuts the keys so that every multiprocessor has work."""
    batch, heads, rows, size = query.shape
    columns = 256 if size <= 64 else 128 if size <= 128 else 64
    blocks, work, units = -(-key.shape[2] // columns), batch * heads * -(-rows // 64), 2 * device.multiprocessors
    if work >= 0.8 * units:
        return 1
    choices = [
        count
        for count in range(1, min(128, units, blocks) + 1)
        if count == 1 or -(-blocks // count) != -(-blocks // (count - 1))
    ]
    efficiency = {count: (waves := work * count / units) / ceil(waves) for count in choices}
    best = max(efficiency.values())
    return next(count for count in choices if efficiency[count] >= 0.85 * best)
