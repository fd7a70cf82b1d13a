"""Operators whose CUDA kernels allocate otherwise than their meta kernels, or that meta cannot answer at all.

Each handler makes the same allocations as the kernel that it stands for, in order, through `Gpu.born`.
"""

from typing import Any

import torch
from torch import Tensor
from torch._meta_registrations import _create_grouped_mm_output_tensor

from runners.dry import reductions
from runners.dry.acting import Gpu, Handler

COUNT_BYTES, SELECT_BYTES, SCAN_BYTES = 1, 1023, 1279
"""What CUB's reduction or sort, selection and sum of prefixes take for inputs of one tile, as the recorded history of
TRL's head shows. Larger inputs take sixteen bytes a tile of thousands more."""
BOUNDS = ("lt", "ge", "gt", "le")
"""Comparisons by which code checks what it was given; a mask's ones are counted or looked at as a whole."""
FUSED_4BIT_ROWS = 512
"""bitsandbytes 0.50 backends/cuda/ops.py: at most so many rows are multiplied without expanding the weight first."""


def _scalar(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A value that code asks for: whether a mask is all ones, whether a value lies within bounds, or a count: one."""
    if args[0].dtype != torch.bool:
        return 1
    return gpu.asked in BOUNDS or not gpu.padded


def _nothing(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Updates in place."""


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str) -> Any:
    """The dispatcher makes arguments positional where it can."""
    return args[place] if len(args) > place else kwargs.get(name)


def _four_bit(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """bitsandbytes' 4-bit product: scales and weight expanded, then a product."""
    source, _, shape = args[:3]
    rows = source.numel() // source.shape[-1]
    held = []
    if rows > FUSED_4BIT_ROWS:
        nested = _argument(args, kwargs, 7, "absmax_8bit")
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
        found = gpu.born(source.new_empty((), dtype=torch.bool))
        reductions.share(gpu, mask, None, mask.element_size())
        del found
        gpu.born(source.new_empty((), dtype=torch.bool))  # a condition is copied before it is read
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
    """source[mask], whose every place is true, or source[places, ...], places being copied to lie alike."""
    source, indices = args
    masks = [index for index in indices if index is not None and index.dtype == torch.bool]
    if masks:
        return _selected(gpu, source, masks[0])
    broadcast: Any = torch.broadcast_tensors
    places = broadcast(*(index for index in indices if index is not None))
    alike = len({place.stride() for place in places}) == 1
    copies = [gpu.born(torch.empty(place.shape, dtype=place.dtype, device=place.device))
              for place in places if not (alike or place.is_contiguous())]  # fmt: skip
    result = gpu.born(torch.ops.aten.index.Tensor(source, indices))
    del copies
    return result


def _places(gpu: Gpu, mask: Tensor) -> Tensor:
    """Where a mask is true, which is everywhere: counted first, then written down."""
    count = gpu.born(mask.new_empty((), dtype=torch.int32))
    gpu.born(mask.new_empty(COUNT_BYTES, dtype=torch.uint8))
    places = gpu.born(mask.new_empty((mask.numel(), mask.dim()), dtype=torch.int64))
    gpu.born(mask.new_empty(SELECT_BYTES, dtype=torch.uint8))
    del count
    return places


def _selected(gpu: Gpu, source: Tensor, mask: Tensor) -> Tensor:
    """source[mask]."""
    places = _places(gpu, mask)
    result = gpu.born(source.new_empty((mask.numel(), *source.shape[mask.dim() :])))
    del places
    return result


def _index_put(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The gradient of an index: autograd adds into zeros of its own, where a dispatch mode makes it copy them.

    Places become offsets, which are sorted so that equal ones are added in order (index_put_with_sort_kernel).
    """
    target, indices = args[:2]
    if torch.is_grad_enabled() or not _argument(args, kwargs, 3, "accumulate"):
        return NotImplemented
    masks = [index for index in indices if index is not None and index.dtype == torch.bool]
    places = _places(gpu, masks[0]) if masks else None
    whole = list(places.unbind(1)) if places is not None else [index for index in indices if index is not None]
    broadcast: Any = torch.broadcast_shapes
    shape = broadcast(*(index.shape for index in whole))
    offsets: Tensor | None = None
    for _ in range(len(whole)):
        wrapped = gpu.born(target.new_empty(shape, dtype=torch.int64))
        times = gpu.born(torch.empty_like(wrapped))
        offsets = times if offsets is None else offsets
        del wrapped, times
    del whole, places
    held = [gpu.born(target.new_empty(shape, dtype=torch.int64)) for _ in range(3)]
    held.append(gpu.born(target.new_empty(COUNT_BYTES, dtype=torch.uint8)))
    while held:
        held.pop()
    return target


def _masked_scatter(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """How many places are before each one is counted first."""
    result = gpu.born(torch.empty_like(args[0]))
    before = gpu.born(torch.empty_like(args[0], dtype=torch.int64))
    gpu.born(result.new_empty(SCAN_BYTES, dtype=torch.uint8))
    del before
    return result


def _masked_scatter_backward(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The gradient where the mask is true."""
    return _selected(gpu, args[0], args[1]).view(args[2])


def _grouped_product(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Products of groups of rows with a matrix each; meta's kernel takes bfloat16 alone, CUDA's every type."""
    left, right = args[:2]
    data_type = _argument(args, kwargs, 4, "out_dtype") or left.dtype
    made: Any = _create_grouped_mm_output_tensor
    return gpu.born(made(left, right, _argument(args, kwargs, 2, "offs"), data_type))


def _where(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Plain numbers are moved to the GPU first."""
    result = torch.ops.aten.where.self(*args, **kwargs)
    moved = [gpu.born(result.new_empty(())) for item in args[1:] if item.device.type == "cpu"]
    gpu.born(result)
    del moved
    return result  # type: ignore[no-any-return]


def _softmax_backward(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The gradient times the output is worked out on the side (softmax_backward_cuda_out of SoftMax.cu)."""
    result = gpu.born(torch.ops.aten._softmax_backward_data.default(*args, **kwargs))
    product = gpu.born(torch.empty_like(args[1]))
    del product
    return result


def _equal(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Never: it is asked of gradients and the number one."""
    alike = gpu.born(torch.empty_like(args[0], dtype=torch.bool))
    gpu.born(alike.new_empty(()))
    return False


def _added_product(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A product added in place, in a wider type than its factors'."""
    return kwargs["out"]  # type: ignore[no-any-return]


UNSORTED_TOKENS = 3072
"""Up to so many tokens the gradient of an embedding is summed as it lies (embedding_dense_backward_cuda)."""


def _embedding_backward(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Tokens are sorted, and the rows of equal ones summed in float32, here as many as there are tokens."""
    gradient, tokens = args[:2]
    result = torch.ops.aten.embedding_dense_backward.default(*args, **kwargs)
    if tokens.numel() <= UNSORTED_TOKENS:
        return gpu.born(result)
    held = [gpu.born(torch.empty_like(tokens)) for _ in range(2)]
    gpu.born(result)
    held += [gpu.born(torch.empty_like(tokens)) for _ in range(3)]
    held.append(gpu.born(gradient.new_empty((tokens.numel(), gradient.shape[-1]), dtype=torch.float32)))
    while held:
        held.pop()
    return result  # type: ignore[no-any-return]


def _infinite(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The absolute value is compared with infinity."""
    absolute = gpu.born(torch.empty_like(args[0]))
    result = gpu.born(torch.empty_like(args[0], dtype=torch.bool))
    del absolute
    return result


NORM_CHUNK = 65536
"""Elements that one block of threads takes in the list-wise kernels (kChunkSize of MultiTensorApply.cuh)."""


def _norms(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """A norm of each tensor: partial norms of all their chunks first (foreach_tensor_norm_cuda, from memory)."""
    tensors = args[0]
    groups = sum(1 for tensor in tensors if tensor.numel())
    chunks = max(-(-tensor.numel() // NORM_CHUNK) for tensor in tensors)
    partial = gpu.born(tensors[0].new_empty(groups * chunks, dtype=torch.float32))
    results = [gpu.born(tensor.new_empty(())) for tensor in tensors]
    del partial
    return results


def handlers() -> dict[Any, Handler]:
    """By operator overload; bitsandbytes' are there once it is imported."""
    aten = torch.ops.aten
    table: dict[Any, Handler] = {
        **reductions.handlers(),
        aten._local_scalar_dense.default: _scalar,
        aten._fused_adamw_.default: _nothing,
        aten._foreach_norm.Scalar: _norms,
        aten.isinf.default: _infinite,
        aten.embedding_dense_backward.default: _embedding_backward,
        aten.equal.default: _equal,
        aten.addmm.dtype_out: _added_product,
        aten._softmax_backward_data.default: _softmax_backward,
        aten.where.self: _where,
        aten.index.Tensor: _index,
        aten.index_put.default: _index_put,
        aten.masked_scatter.default: _masked_scatter,
        aten.masked_scatter_backward.default: _masked_scatter_backward,
        aten._grouped_mm.default: _grouped_product,
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
    return {operator: _of_gpu(handler) for operator, handler in table.items()}


def _of_gpu(handler: Handler) -> Handler:
    """Tensors on the host are worked on for real."""

    def handle(gpu: Gpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
        return NotImplemented if first.device.type == "cpu" else handler(gpu, args, kwargs)

    return handle
