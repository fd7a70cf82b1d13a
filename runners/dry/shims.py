"""What stands in for CUDA while a recipe runs on meta: autocast, attention, dropout, fused optimizers, Triton kernels.

Everything here is put in place for the length of a `with` block and taken out again.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from estimators.hardware import Device
from runners.dry.attention import Efficient, Flash, attend
from runners.dry.autocast import AutocastState, MetaAutocast

META = "meta"


class CudaFunctions(TorchFunctionMode):
    """Functions that choose their kernels by device, as they choose on CUDA."""

    def __init__(self, device: Device, autocast: AutocastState) -> None:
        super().__init__()
        self.device = device
        self.autocast = autocast

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.autocast.enabled:
            args, kwargs = self.autocast.arguments(function, args, kwargs)
        if function is torch.nn.functional.scaled_dot_product_attention:
            return attend(self.device, *args, **kwargs)
        if function is torch.nn.functional.dropout:
            return _dropout(*args, **kwargs)
        return function(*args, **kwargs)


class Dropout(torch.autograd.Function):
    """CUDA's fused dropout, whose mask is a byte an element."""

    @staticmethod
    def forward(ctx: Any, source: Tensor) -> Tensor:
        result, mask = torch.empty_like(source), torch.empty_like(source, dtype=torch.bool)
        ctx.save_for_backward(mask)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.empty_like(gradient)


KERNELS = (Dropout, Flash, Efficient)
"""Autograd functions that are written in C++ on CUDA."""


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return input
    return Dropout.apply(input)  # type: ignore[no-any-return, no-untyped-call]


class _Launch:
    """A Triton kernel that does nothing."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@contextmanager
def cuda_on_meta(device: Device) -> Iterator[None]:
    """Let code that runs on the meta device behave as it would on `device`."""
    state = AutocastState()
    functions = CudaFunctions(device, state)
    with ExitStack() as stack:
        for replacement in (*_autocast(state), *_engine(functions), *_optimizers(), *_bitsandbytes(), *_trl()):
            stack.enter_context(replaced(*replacement))
        stack.enter_context(functions)
        yield


_MISSING = object()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute in place of `owner.name`, for the length of a block."""
    before = getattr(owner, name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


Replacement = tuple[Any, str, Any]


def _autocast(state: AutocastState) -> Iterator[Replacement]:
    real = torch.autocast

    def autocast(device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None) -> Any:
        if device_type == META:
            return MetaAutocast(state, dtype, enabled)
        return real(device_type, dtype, enabled, cache_enabled)

    def wrapped(real_function: Callable[..., Any], answer: Callable[[], Any]) -> Callable[..., Any]:
        # Without a device the question is about CUDA, which is what meta stands for here.
        return lambda kind=META: answer() if kind in (META, "cuda") else real_function(kind)

    yield torch, "autocast", autocast
    yield torch.amp, "autocast", autocast
    yield torch, "is_autocast_enabled", wrapped(torch.is_autocast_enabled, lambda: state.enabled)
    yield torch, "get_autocast_dtype", wrapped(torch.get_autocast_dtype, lambda: state.data_type)
    yield torch.amp, "is_autocast_available", wrapped(torch.amp.is_autocast_available, lambda: True)


def _engine(functions: CudaFunctions) -> Iterator[Replacement]:
    """Tensor.backward is itself seen by function modes, which are off while they look: recomputation needs them on.

    A gradient that a Python function made is marked: its Python object counts as a second holder.
    """
    real = getattr(torch.autograd, "_engine_run_backward")  # noqa: B009 (typed as private to graph.py)

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        with functions:
            return real(*args, **kwargs)

    function = torch.autograd.function.BackwardCFunction
    apply = function.apply

    def marked(node: Any, *gradients: Any) -> Any:
        results: Any = apply(node, *gradients)  # type: ignore[no-untyped-call]
        if node._forward_cls not in KERNELS:
            for result in results if isinstance(results, tuple) else (results,):
                if isinstance(result, Tensor):
                    result.seen_by_python = True  # type: ignore[attr-defined]
        return results

    yield torch.autograd, "_engine_run_backward", run_backward
    yield function, "apply", marked


def _optimizers() -> Iterator[Replacement]:
    """torch's fused and list-wise kernels are there for meta tensors too."""
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    for owner in (optimizer, _foreach_utils):
        for name in ("_get_foreach_kernels_supported_devices", "_get_fused_kernels_supported_devices"):
            supported = [*getattr(owner, name)(), META]
            yield owner, name, lambda supported=supported: list(supported)


def _bitsandbytes() -> Iterator[Replacement]:
    """Paged state lives in managed memory, which torch's allocator does not count; kernels update in place."""
    functional = sys.modules.get("bitsandbytes.functional")
    if functional is None:
        return

    def paged(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
        state = torch.empty(1, dtype=dtype, device="cpu").expand(shape)  # only its shape is ever asked for
        state.is_paged = True  # type: ignore[attr-defined]
        return state

    yield functional, "get_paged", paged
    for name in ("fill", "prefetch_tensor", "optimizer_update_32bit", "optimizer_update_8bit_blockwise"):
        yield functional, name, lambda *args, **kwargs: None
    yield import_module("bitsandbytes.optim.optimizer"), "sync_gpu", lambda tensor: None


def _trl() -> Iterator[Replacement]:
    """TRL's fused head takes the way with Triton kernels, which work in place."""
    kernels = sys.modules.get("trl.kernels.chunked_logprob")
    if kernels is None:
        return
    for owner in (kernels, import_module("trl.trainer.utils")):
        yield owner, "_use_triton", lambda device: True
    for name in ("_forward_kernel", "_backward_kernel"):
        yield kernels, name, _Launch()
    yield kernels, "triton", SimpleNamespace(cdiv=lambda size, block: -(-size // block))
    yield kernels, "_addmm_fp32", lambda accumulator, left, right: None
