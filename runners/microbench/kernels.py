"""What the GPU's kernels reach: matrix products, attention, copies, dequantisation, optimizer updates."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from runners.microbench.clock import Clock
from runners.microbench.sizes import Sizes
from runners.tools import tool

EVEN_HEADS, UNEVEN_HEADS = (64, 128, 256), (80, 96)
FORWARD_AND_BACKWARD_PRODUCTS = 7
"""Of fused attention: two products forward, five backward."""
QUEUED_KERNELS, QUEUED_PRODUCTS = 200, 4
WIDTH = 64
"""Of the weight that is dequantised: any will do."""
FUSED_PASSES = 7
"""Reads and writes of a parameter's element in a fused AdamW step (estimators/strategies/optimizer/adamw.py)."""
Found = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every microbenchmark is given."""

    clock: Clock
    sizes: Sizes

    @property
    def device(self) -> str:
        return self.clock.device

    def long(self) -> Clock:
        """For what a power limit slows down."""
        return replace(self.clock, round_seconds=self.sizes.power_seconds)

    def random(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=torch.float32).to(dtype)


def products(bench: Bench) -> Found:
    """Flops a second of each type, in the middle of the shapes; float32 as the Trainer leaves it, without TF32."""
    shapes, single = bench.sizes.products, bench.sizes.float32_products
    return {
        "matmul_bfloat16": _rate(bench, torch.bfloat16, shapes),
        "matmul_float16": _rate(bench, torch.float16, shapes[:2]),
        "matmul_float32": _rate(bench, torch.float32, single),
    }


def _rate(bench: Bench, dtype: torch.dtype, shapes: tuple[tuple[int, int, int], ...]) -> float:
    return statistics.median(_product_rate(bench, dtype, *shape) for shape in shapes)


def _product_rate(bench: Bench, dtype: torch.dtype, rows: int, inner: int, columns: int) -> float:
    left, right = bench.random(rows, inner, dtype=dtype), bench.random(columns, inner, dtype=dtype)
    result = torch.empty(rows, columns, device=bench.device, dtype=dtype)
    return 2.0 * rows * inner * columns / bench.long().seconds(lambda: torch.mm(left, right.t(), out=result))


def narrow(bench: Bench) -> Found:
    """Bytes a second of an adapter's two products, which move more than they compute."""
    tokens, width, rank = bench.sizes.narrow
    source, down, up = bench.random(tokens, width), bench.random(rank, width), bench.random(width, rank)
    between = bench.random(tokens, rank)
    moved = sum(item.nbytes for item in (source, down, between))
    first = bench.clock.seconds(lambda: torch.mm(source, down.t()))
    second = bench.clock.seconds(lambda: torch.mm(between, up.t()))
    return {"narrow": 2 * moved / (first + second)}


def memory(bench: Bench) -> Found:
    """Bytes a second, read and written, of a sum and of a copy."""
    one, other = (torch.zeros(bench.sizes.moved_elements, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    result = torch.empty_like(one)
    return {
        "elementwise": 3 * one.nbytes / bench.clock.seconds(lambda: torch.add(one, other, out=result)),
        "copy": 2 * one.nbytes / bench.clock.seconds(lambda: result.copy_(one)),
    }


def launches(bench: Bench) -> Found:
    """Seconds from kernel to kernel where the host is ahead: start, tail and gap of the smallest there is."""
    rows, inner, columns = bench.sizes.products[-1]
    left, right, little = bench.random(rows, inner), bench.random(inner, columns), bench.random(64)

    def ahead() -> None:
        for _ in range(QUEUED_PRODUCTS):
            torch.mm(left, right)

    bench.clock.queued(ahead, lambda: little.add_(1), QUEUED_KERNELS)
    taken = [bench.clock.queued(ahead, lambda: little.add_(1), QUEUED_KERNELS) for _ in range(3)]
    return {"kernel_seconds": min(taken)}


def attention(bench: Bench) -> Found:
    """Flops a second of fused causal attention, forward and backward, in the middle of the head sizes."""
    return {
        "attention": statistics.median(_attention_rate(bench, size) for size in EVEN_HEADS),
        "uneven_attention": statistics.median(_attention_rate(bench, size) for size in UNEVEN_HEADS),
    }


def _attention_rate(bench: Bench, size: int) -> float:
    tokens, heads = bench.sizes.attention_tokens, bench.sizes.attention_heads
    query, key, value = (bench.random(2, heads, tokens, size).requires_grad_() for _ in range(3))
    upstream = bench.random(2, heads, tokens, size)

    def both() -> None:
        out = scaled_dot_product_attention(query, key, value, is_causal=True)
        torch.autograd.grad(out, (query, key, value), upstream)

    flops = 2.0 * FORWARD_AND_BACKWARD_PRODUCTS * query.numel() * tokens / 2
    return flops / bench.clock.seconds(both)


def dequantisation(bench: Bench) -> Found:
    """Bytes a second, read and written, of bitsandbytes' NF4 weights: so many that the host is done before the GPU."""
    functional = tool("bitsandbytes.functional")
    weight = torch.ones(bench.sizes.moved_elements // WIDTH, WIDTH, device=bench.device, dtype=torch.bfloat16)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    moved = packed.nbytes + weight.nbytes
    return {"dequantize": moved / bench.clock.seconds(lambda: functional.dequantize_4bit(packed, state))}


def eight_bits(bench: Bench) -> Found:
    """Operations a second of bitsandbytes' 8-bit product."""
    functional = tool("bitsandbytes.functional")
    rows, inner, columns = bench.sizes.products[0]
    left, right = (
        torch.randint(-127, 127, shape, device=bench.device, dtype=torch.int8)
        for shape in ((rows, inner), (columns, inner))
    )
    seconds = bench.long().seconds(lambda: functional.int8_linear_matmul(left, right))
    return {"int8": 2.0 * rows * inner * columns / seconds}


def updates(bench: Bench) -> Found:
    """Bytes a second of torch's fused AdamW."""
    parameter = torch.nn.Parameter(torch.zeros(bench.sizes.updated_parameters, device=bench.device))
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    return {"update": FUSED_PASSES * parameter.nbytes / bench.clock.seconds(optimizer.step)}


def eight_bit_updates(bench: Bench) -> Found:
    """Seconds for a parameter in bitsandbytes' 8-bit AdamW, whose kernels compute more than they move."""
    parameter = torch.nn.Parameter(torch.zeros(bench.sizes.updated_parameters, device=bench.device))
    parameter.grad = torch.ones_like(parameter)
    optimizer = tool("bitsandbytes.optim").AdamW8bit([parameter])
    return {"bitsandbytes_update_seconds": bench.clock.seconds(optimizer.step) / parameter.numel()}


KERNELS: dict[str, tuple[Callable[[Bench], Found], tuple[str, ...]]] = {
    "matrix products": (products, ("matmul_bfloat16", "matmul_float16", "matmul_float32")),
    "narrow products": (narrow, ("narrow",)),
    "memory": (memory, ("elementwise", "copy")),
    "kernel launches": (launches, ("kernel_seconds",)),
    "fused attention": (attention, ("attention", "uneven_attention")),
    "NF4 dequantisation": (dequantisation, ("dequantize",)),
    "8-bit products": (eight_bits, ("int8",)),
    "AdamW": (updates, ("update",)),
    "8-bit AdamW": (eight_bit_updates, ("bitsandbytes_update_seconds",)),
}
"""By title: the microbenchmark, and the figures that it finds."""
