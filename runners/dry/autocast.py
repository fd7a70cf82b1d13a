"""torch.autocast for the meta device, by CUDA's lists: torch itself offers autocast for real devices only.

Source: torch 2.11 aten/src/ATen/autocast_mode.h (the lists) and autocast_mode.cpp: the cast of a leaf weight that needs
a gradient is kept until the outermost context ends.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

LOWER = frozenset({
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "addbmm", "addmv", "mv",
    "einsum", "conv1d", "conv2d", "prelu", "chain_matmul", "scaled_dot_product_attention",
})  # fmt: skip
"""Run in the lower precision."""
FLOAT32 = frozenset({
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt",
    "sinh", "tan", "pow", "__pow__", "__rpow__", "softplus", "layer_norm", "group_norm", "cosine_similarity",
    "nll_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss",
    "binary_cross_entropy_with_logits", "dist", "logsumexp", "renorm",
})  # fmt: skip
"""Run in float32."""
FLOAT32_RESULT = frozenset(["prod", "softmax", "log_softmax", "cumprod", "cumsum", "sum"])
"""Computed into float32 unless a type is asked for."""
WIDEST = frozenset(["cat", "stack", "index_put", "scatter_add", "addcdiv", "addcmul", "dot", "tensordot"])
"""Run in the widest type among their inputs."""
LOW_TYPES = (torch.bfloat16, torch.float16)


class AutocastState:
    """What torch keeps per thread: whether autocast is on, its type, and the casts of weights."""

    def __init__(self) -> None:
        self.enabled = False
        self.data_type = torch.bfloat16
        self.nesting = 0
        self.casts: dict[int, tuple[Tensor, Tensor]] = {}

    def arguments(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments that `function` sees under autocast."""
        if kwargs.get("out") is not None or kwargs.get("out_dtype") is not None:  # not on the lists
            return args, kwargs
        name = getattr(function, "__name__", "")
        if name in LOWER:
            return _from_the_last(self.lower, args, kwargs)
        if name in FLOAT32:
            return _from_the_last(_widen, args, kwargs)
        if name in FLOAT32_RESULT and _is_low(args[0]) and kwargs.get("dtype") is None:
            return args, {**kwargs, "dtype": torch.float32}
        if name in WIDEST and _mixed(args):
            return tree_map(_widen, args), kwargs
        return args, kwargs

    def lower(self, value: Any) -> Any:
        """Autocast's cached cast."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == self.data_type:
            return value
        if value.dtype == torch.float64:
            return value
        if not (value.dtype == torch.float32 and value.requires_grad and value.is_leaf and not value._is_view()):
            return value.to(self.data_type)
        if id(value) not in self.casts:
            self.casts[id(value)] = (value, value.to(self.data_type))
        return self.casts[id(value)][1]


class MetaAutocast:
    """Stands in for torch.autocast while a dry run lasts."""

    def __init__(self, state: AutocastState, data_type: torch.dtype | None, enabled: bool) -> None:
        self.state = state
        self.data_type = data_type or state.data_type
        self.enabled = enabled

    def __enter__(self) -> "MetaAutocast":
        self.before = (self.state.enabled, self.state.data_type)
        self.state.enabled, self.state.data_type = self.enabled, self.data_type
        self.state.nesting += 1
        return self

    def __exit__(self, *error: object) -> None:
        self.state.enabled, self.state.data_type = self.before
        self.state.nesting -= 1
        if not self.state.nesting:
            self.state.casts.clear()


def _from_the_last(cast: Callable[[Any], Any], args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Casts as torch's compiler orders them: arguments of a C++ call are made from the last to the first."""
    named = {name: tree_map(cast, kwargs[name]) for name in reversed(kwargs)}
    return tuple(reversed([tree_map(cast, value) for value in reversed(args)])), {name: named[name] for name in kwargs}


def _widen(value: Any) -> Any:
    return value.float() if _is_low(value) else value


def _is_low(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in LOW_TYPES


def _mixed(args: Any) -> bool:
    flat = [item for value in args for item in (value if isinstance(value, (list, tuple)) else (value,))]
    types = {item.dtype for item in flat if isinstance(item, Tensor) and item.is_floating_point()}
    return len(types) > 1 and torch.float32 in types
