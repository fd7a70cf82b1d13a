"""torch's scaled_dot_product_attention, which never stores the score matrix.

Sources: FlashAttention-2 (arXiv 2307.08691): the backward needs q, k, v, the output and a log-sum-exp a row, and
accumulates the queries' gradient in float32; torch aten/native/transformers/cuda for the kernels' workspaces.

An explicit mask keeps the flash kernel away: transformers 5.23 masking_utils.py (_ignore_causal_mask_sdpa) makes one
for a padded batch, and for a layer whose window the sequence reaches. It is boolean, and one forward pass shares it
among its layers; torch turns it, in each layer anew, into a bias in the queries' type, which autograd saves.
integrations/sdpa_attention.py (use_gqa_in_sdpa) then repeats keys and values, is_causal is off, and the kernel that is
left, the memory-efficient one, takes the whole square. Held to runs of padded Llama 3.2 1B and of Gemma 3 1B.
"""

from dataclasses import dataclass

from estimators.layers import FLOAT32, drop
from estimators.model import Attention
from estimators.strategies.attention.common import attention_flops, repeat_heads
from estimators.strategies.attention.eager import batched_product
from estimators.strategies.axes import Needs, Setting
from estimators.tape import Node, Tape, Value

BACKWARD_FLOPS = 2.5
"""Of the forward's: five products for two."""
MASK_BYTES = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedAttention:
    """A fused kernel."""

    name: str
    explicit_mask: bool = True
    """Padding and windows bring a mask along; flash_attention_2 drops the padding instead (it is counted as if full),
    and knows windows."""
    needs: Needs = Needs()

    def attend(self, tape: Tape, setting: Setting, shape: Attention, query: Value, key: Value, value: Value) -> Value:
        if self.explicit_mask and self._needs_math(setting, shape):
            return _math_attention(tape, setting, shape, query, key, value)
        if setting.autocast:
            query, key, value = (tape.cast(item, setting.compute_bytes) for item in (query, key, value))
        if self._masked(setting, shape):
            made = _masked_attention(tape, setting, shape, query, key, value)
        else:
            made = _causal_attention(tape, setting, shape, query, key, value)
        # The kernel lays its output out as it found the queries; where only part of a head rotates, they were
        # concatenated head by head, and the output is copied token by token.
        return tape.elementwise(made) if 0 < shape.rotary_fraction < 1 else made

    def _needs_math(self, setting: Setting, shape: Attention) -> bool:
        """Grouped queries in float32: the flash kernel takes 16 bits alone, the other fused one no groups. With a mask,
        keys were repeated before."""
        grouped = shape.key_value_heads < shape.heads and not self._masked(setting, shape)
        return shape.needs_math or (grouped and setting.compute_bytes == FLOAT32)

    def _masked(self, setting: Setting, shape: Attention) -> bool:
        """Whether this layer is handed a mask."""
        reached = shape.window is not None and setting.sequence_length >= shape.window
        return self.explicit_mask and (setting.padded or reached)


def _causal_attention(tape: Tape, setting: Setting, shape: Attention, query: Value, key: Value, value: Value) -> Value:
    rows = setting.tokens * shape.heads
    made = Value(rows * shape.value_size, query.itemsize, query.grad or key.grad or value.grad)
    log_sum = Value(rows, 4, False)
    expanded = 2 * rows * shape.head_size * query.itemsize if shape.key_value_heads < shape.heads else 0
    flops = attention_flops(setting, shape)
    return tape.add(
        Node(
            "attention",
            (query, key, value),
            made,
            (query, key, value, made, log_sum),
            temporary=log_sum.size_bytes,
            backward_temporary=_gradient_bytes(rows, shape) + expanded,
            flops=flops,
            backward_flops=BACKWARD_FLOPS * flops,
            launches=2,
            backward_launches=4,
        )
    )


def _masked_attention(tape: Tape, setting: Setting, shape: Attention, query: Value, key: Value, value: Value) -> Value:
    key, value = (repeat_heads(tape, item, shape) for item in (key, value))
    rows, square = setting.tokens * shape.heads, setting.tokens * setting.sequence_length
    made = Value(rows * shape.value_size, query.itemsize, query.grad or key.grad or value.grad)
    log_sum, bias = Value(rows, 4, False), Value(square, query.itemsize, False)
    flops = 2.0 * square * shape.heads * (shape.head_size + shape.value_size)
    moved = float(made.size_bytes + sum(item.size_bytes for item in (query, key, value, bias)))
    return tape.add(
        Node(
            "attention",
            (query, key, value),
            made,
            (query, key, value, made, log_sum, bias),
            temporary=log_sum.size_bytes + bias.size_bytes + MASK_BYTES * square,
            backward_temporary=_gradient_bytes(rows, shape) + MASK_BYTES * square,
            flops=flops,
            backward_flops=BACKWARD_FLOPS * flops,
            traffic=moved,
            launches=4,
            backward_launches=4,
        )
    )


def _math_attention(tape: Tape, setting: Setting, shape: Attention, query: Value, key: Value, value: Value) -> Value:
    """Written out in float32: scaled queries and keys, scores, a softmax that clears rows without a key, a product.

    Source: torch 2.11 aten/native/transformers/attention.cpp (_scaled_dot_product_attention_math, _safe_softmax).
    """
    if setting.autocast:
        query, key, value = (tape.cast(item, setting.compute_bytes) for item in (query, key, value))
    wide_query, wide_key, wide_value = (tape.cast(item, FLOAT32) for item in (query, key, value))
    if not shape.needs_math:
        wide_key, wide_value = (repeat_heads(tape, item, shape) for item in (wide_key, wide_value))
    wide_query, wide_key = tape.elementwise(wide_query), tape.elementwise(wide_key)
    if shape.needs_math and setting.sequences > 1:  # with one sequence the one head is a view for all
        wide_key, wide_value = (repeat_heads(tape, item, shape) for item in (wide_key, wide_value))
    columns = setting.sequence_length * shape.heads
    scores = batched_product(tape, setting, wide_query, wide_key, columns, shape.head_size)
    weights = Value(scores.elements, FLOAT32, scores.grad)
    cleared = scores.elements * MASK_BYTES
    tape.add(Node("elementwise", (scores,), weights, (weights,), temporary=weights.size_bytes + cleared,
                  backward_temporary=weights.size_bytes, launches=3))  # fmt: skip
    weights = drop(tape, weights, shape.dropout)
    made = batched_product(tape, setting, weights, wide_value, shape.heads * shape.value_size, setting.sequence_length)
    return tape.cast(made, query.itemsize)


def _gradient_bytes(rows: int, shape: Attention) -> int:
    """The queries' gradient in float32, and a row's product of output and gradient."""
    return rows * (shape.head_size + 1) * 4
