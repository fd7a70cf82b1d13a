"""What stands in for CUDA while a recipe runs on meta: autocast, attention, dropout, fused optimizers, Triton kernels.

Everything here is put in place for the length of a `with` block and taken out again.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from estimators.hardware import Device
from estimators.recipe import Recipe
from runners.dry.attention import attend
from runners.dry.autocast import AutocastState, MetaAutocast
from runners.dry.replacing import Launch, Replacement, replaced

META = "meta"


class CudaFunctions(TorchFunctionMode):
    """Functions that choose their kernels by device, as they choose on CUDA."""

    def __init__(self, device: Device, autocast: AutocastState, cudnn: bool = True) -> None:
        super().__init__()
        self.device, self.cudnn = device, cudnn
        self.autocast = autocast

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.autocast.enabled:
            args, kwargs = self.autocast.arguments(function, args, kwargs)
        if function is torch.nn.functional.scaled_dot_product_attention:
            return attend(self.device, *args, **kwargs, cudnn=self.cudnn)
        if function is torch.nn.functional.dropout:
            return _dropout(*args, **kwargs)
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == META:
            return function(*args, **kwargs | {"device": "cpu"}).to(META)  # a copy, which can be seen
        return function(*args, **kwargs)


class Dropout(torch.autograd.Function):
    """CUDA's fused dropout, whose mask is a byte an element."""

    @staticmethod
    def forward(ctx: Any, source: Tensor) -> Tensor:
        mask, result = torch.empty_like(source, dtype=torch.bool), torch.empty_like(source)
        ctx.save_for_backward(mask)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (mask,) = ctx.saved_tensors  # where recomputation starts, under checkpointing
        del mask
        return torch.empty_like(gradient)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return input
    return Dropout.apply(input)  # type: ignore[no-any-return, no-untyped-call]


@contextmanager
def cuda_on_meta(device: Device, *, cudnn: bool = True) -> Iterator[None]:
    """Let code that runs on the meta device behave as it would on `device`, with cuDNN's attention or without."""
    state = AutocastState()
    functions = CudaFunctions(device, state, cudnn)
    with ExitStack() as stack:
        for replacement in (*_autocast(state), *_engine(functions), *_optimizers(), *_bitsandbytes(), *_trl()):
            stack.enter_context(replaced(*replacement))
        stack.enter_context(functions)
        yield


@contextmanager
def quantized_on_meta(recipe: Recipe) -> Iterator[None]:
    """PEFT copies 4-bit layers for DoRA: bitsandbytes' weights copy themselves by a constructor that meta refuses."""
    if not recipe.quantized:
        yield
        return
    with replaced(import_module("bitsandbytes.nn").Params4bit, "__deepcopy__", _copied):
        yield


def _copied(weight: Any, memo: dict[int, Any]) -> Any:
    """Params4bit.__deepcopy__: the data and the scales."""
    copy = torch.Tensor._make_subclass(type(weight), weight.data.clone(), weight.requires_grad)
    copy.__dict__.update(weight.__dict__)
    copy.quant_state = deepcopy(weight.quant_state)  # type: ignore[attr-defined]
    return copy


def _autocast(state: AutocastState) -> Iterator[Replacement]:
    real = torch.autocast

    def autocast(device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None) -> Any:
        if device_type in (META, "cuda"):
            return MetaAutocast(state, dtype, enabled)
        return real(device_type, dtype, enabled, cache_enabled)

    def wrapped(real_function: Callable[..., Any], answer: Callable[[], Any]) -> Callable[..., Any]:
        # Without a device the question is about CUDA, which is what meta stands for here.
        return lambda kind=META: answer() if kind in (META, "cuda") else real_function(kind)

    for owner in (torch, torch.amp, torch.amp.autocast_mode):
        yield owner, "autocast", autocast
    yield torch, "is_autocast_enabled", wrapped(torch.is_autocast_enabled, lambda: state.enabled)
    yield torch, "get_autocast_dtype", wrapped(torch.get_autocast_dtype, lambda: state.data_type)
    yield torch.amp, "is_autocast_available", wrapped(torch.amp.is_autocast_available, lambda: True)
    yield from _transformers(autocast)


def _transformers(autocast: Callable[..., Any]) -> Iterator[Replacement]:
    """transformers turns autocast off around rotary embeddings, but thinks that meta has none."""
    real = getattr(sys.modules.get("transformers.utils.generic"), "maybe_autocast", None)

    def maybe_autocast(device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None) -> Any:
        if torch.is_autocast_enabled(device_type) or enabled:
            return autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)
        return nullcontext()

    for module in [*sys.modules.values()] if real is not None else ():
        if vars(module).get("maybe_autocast") is real:
            yield module, "maybe_autocast", maybe_autocast


def _engine(functions: CudaFunctions) -> Iterator[Replacement]:
    """Tensor.backward is itself seen by function modes, which are off while they look: recomputation needs them on."""
    real = getattr(torch.autograd, "_engine_run_backward")  # noqa: B009 (typed as private to graph.py)

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        with functions:
            return real(*args, **kwargs)

    yield torch.autograd, "_engine_run_backward", run_backward


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
        yield kernels, name, Launch()
    yield kernels, "triton", SimpleNamespace(cdiv=lambda size, block: -(-size // block))
    yield kernels, "_addmm_fp32", lambda accumulator, left, right: None
