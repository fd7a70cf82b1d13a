"""Elementwise operators whose result is made like their first input: torch works the shapes out in Python, slowly.

What they allocate is the same with and without these shortcuts, which is tested; a dry run takes half the time so.
"""

from typing import Any

import torch
from torch import Tensor

from runners.dry.acting import Gpu, Handler

UNARY = ("neg", "rsqrt", "sqrt", "reciprocal", "exp", "sin", "cos", "tanh", "sigmoid", "silu", "gelu", "relu", "abs")
SCALAR = ("mul.Scalar", "add.Scalar", "sub.Scalar", "div.Scalar", "pow.Tensor_Scalar")
BINARY = ("mul.Tensor", "add.Tensor", "sub.Tensor", "div.Tensor", "silu_backward.default", "gelu_backward.default",
          "tanh_backward.default", "sigmoid_backward.default")  # fmt: skip
IN_PLACE = ("zero_.default", "uniform_.default", "normal_.default", "fill_.Scalar")


def handlers() -> dict[Any, Handler]:
    """By operator overload."""
    table: dict[Any, Handler] = {_operator(f"{name}.default"): _unary for name in UNARY}
    table |= {_operator(name): _unary for name in SCALAR}
    table |= {_operator(name): _binary for name in BINARY}
    table |= {_operator(name): _in_place for name in IN_PLACE}
    return table


def _operator(name: str) -> Any:
    packet, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def _plain(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_meta and tensor.is_floating_point() and tensor.is_contiguous()


def _like(source: Tensor) -> Tensor:
    """torch.empty_like, which is written in Python for meta."""
    return torch.empty_strided(source.size(), source.stride(), dtype=source.dtype, device=source.device)


def _unary(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    source = args[0]
    if not _plain(source) or any(isinstance(other, complex) for other in args[1:]):
        return NotImplemented
    return gpu.born(_like(source))


def _binary(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Of one type and shape, or with a second input that is spread over the first."""
    left, right = args[0], args[1]
    if isinstance(right, (int, float)):
        return _unary(gpu, args, kwargs)
    if not (_plain(left) and _plain(right)) or left.dtype != right.dtype:
        return NotImplemented
    if left.shape != right.shape:
        if right.dim() > left.dim():
            return NotImplemented
        sizes = zip(reversed(left.shape), reversed(right.shape), strict=False)
        if any(ours != theirs and theirs != 1 for ours, theirs in sizes):
            return NotImplemented
    return gpu.born(_like(left))


def _in_place(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """PEFT fills its adapters on the host, and nobody looks at what they start from."""
    unseen = gpu.phase == "load" and args[0].is_floating_point()
    return args[0] if args[0].is_meta or unseen else NotImplemented
