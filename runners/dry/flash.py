"""The flash-attn package's functions on meta, for `attention` flash_attention_2; it need not be installed.

NOT measured on a GPU: the package could not be installed where this project measures. What is allocated follows the
package's autograd functions (flash_attn_interface.py, csrc/flash_attn/flash_api.cpp, from memory), of which torch's own
FlashAttention kernel is a copy, and that one is measured. Of a padded batch all tokens are taken to be there: how many
are not is known only when the data are.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from estimators.hardware import Device
from estimators.models import Config
from estimators.recipe import Recipe
from runners.build import module_of
from runners.dry.attention import Flash, round_up
from runners.dry.replacing import Replacement, replaced
from runners.dry.tally import attended

PACKAGE = "flash_attn"
ROWS = 128
"""The backward kernel's scratch has so many rows more for each sequence."""


class Varlen(torch.autograd.Function):
    """Sequences of different lengths, end to end."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, sequences: int) -> Tensor:
        attended(query, key, masked=False, sequences=sequences)
        output = torch.empty_like(query)
        log_sum = query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)
        random = query.new_empty((2,), dtype=torch.int64)
        ctx.save_for_backward(query, key, value, output, log_sum, random)
        ctx.sequences = sequences
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        attended(query, key, masked=False, backward=True, sequences=ctx.sequences)
        tokens, heads, size = query.shape
        gradient = gradient.contiguous()
        results = tuple(torch.empty_like(item) for item in (query, key, value))
        rows = tokens + ROWS * ctx.sequences
        delta = query.new_empty((heads, rows), dtype=torch.float32)
        accumulator = query.new_empty((rows, heads, round_up(size, 32)), dtype=torch.float32)
        if key.shape[1] != heads:
            expanded = [query.new_empty((key.shape[0], heads, size)) for _ in range(2)]
            del expanded
        del delta, accumulator, gradient
        return *results, None


def _functions(device: Device) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """flash_attn_func and flash_attn_varlen_func; transformers asks their signatures what they can do."""

    def dense(q: Tensor, k: Tensor, v: Tensor, softcap: float = 0.0, **kwargs: Any) -> Tensor:
        apply: Any = Flash.apply
        result: Tensor = apply(*(item.transpose(1, 2) for item in (q, k, v)), device)
        return result.transpose(1, 2)

    def varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, softcap: float = 0.0, **kwargs: Any) -> Tensor:
        apply: Any = Varlen.apply
        result: Tensor = apply(q, k, v, cu_seqlens_q.numel() - 1)
        return result

    return dense, varlen


@contextmanager
def flash_on_meta(recipe: Recipe, config: Config, device: Device) -> Iterator[None]:
    """Let a recipe with this attention be built and run on meta; nothing where it has another."""
    if recipe.attention != "flash_attention_2":
        yield
        return
    with ExitStack() as stack:
        for replacement in (*_replacements(device), *_imported(config)):
            stack.enter_context(replaced(*replacement))
        package = sys.modules.get(PACKAGE)
        stack.callback(_put_back, package)
        sys.modules[PACKAGE] = ModuleType(PACKAGE)
        yield


def _put_back(package: ModuleType | None) -> None:
    if package is None:
        del sys.modules[PACKAGE]
    else:
        sys.modules[PACKAGE] = package


def _replacements(device: Device) -> Iterator[Replacement]:
    utilities = import_module("transformers.modeling_flash_attention_utils")
    dense, varlen = _functions(device)
    packed = utilities._is_packed_sequence
    yield utilities, "_lazy_imports", lambda *args, **kwargs: (dense, varlen, None, utilities._pad_input, None)
    yield utilities, "_get_unpad_data", _unpadded
    yield utilities, "_is_packed_sequence", lambda *args, **kwargs: bool(packed(*args, **kwargs)) and False
    for name in [name for name in vars(utilities) if name.endswith("_fn") or name == "_loaded_implementation"]:
        yield utilities, name, None  # what transformers remembers of the package
    yield PreTrainedModel, "_flash_attn_import_error", lambda self, *args, **kwargs: None


def _imported(config: Config) -> Iterator[Replacement]:
    """Falcon's module imports the function only where the package is installed."""
    name = "_flash_attention_forward"
    if not hasattr(module := module_of(config), name):
        yield module, name, getattr(import_module("transformers.modeling_flash_attention_utils"), name)


def _unpadded(mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """Where the tokens are, where each sequence begins, and the longest one."""
    lengths = mask.sum(dim=-1, dtype=torch.int32)
    places = mask.new_empty(mask.numel(), dtype=torch.int64)
    starts = torch.nn.functional.pad(torch.cumsum(lengths, dim=0, dtype=torch.int32), (1, 0))
    return places, starts, mask.shape[-1]
