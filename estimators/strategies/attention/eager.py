"""Attention written out in torch: the score matrix is stored, and grows with the square of the sequence.

Source: transformers 5 modeling_llama.eager_attention_forward (softmax in float32, cast back, matrix product) and
modeling_gemma2's soft cap (division, tanh, product).
"""

from dataclasses import dataclass

from estimators.layers import drop
from estimators.model import Attention
from estimators.strategies.attention.common import repeat_heads
from estimators.strategies.axes import Needs, Setting
from estimators.tape import Node, Tape, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class EagerAttention:
    """Products, softmax and all."""

    name: str = "eager"
    needs: Needs = Needs()

    def attend(self, tape: Tape, setting: Setting, shape: Attention, query: Value, key: Value, value: Value) -> Value:
        result_bytes = query.itemsize
        if setting.autocast:
            query, key, value = (tape.cast(item, setting.compute_bytes) for item in (query, key, value))
        key, value = repeat_heads(tape, key, shape), repeat_heads(tape, value, shape)
        query, key, value = (_own(tape, item) for item in (query, key, value))
        scores = batched_product(tape, setting, query, key, setting.sequence_length * shape.heads, shape.head_size)
        scores = tape.elementwise(scores)
        if shape.softcap:
            bent = tape.elementwise(tape.elementwise(scores))
            tape.nodes[-1].saved = (bent,)
            scores = tape.elementwise(bent)
        masked = tape.elementwise(scores)
        wide = tape.cast(masked, 4)
        weights = tape.elementwise(wide)
        tape.nodes[-1].saved = (weights,) if weights.grad else ()
        # CUDA's softmax backward starts from the product of the gradient and the result.
        tape.nodes[-1].backward_temporary = weights.size_bytes
        # The code casts to the queries' own type; autocast then copies for the product.
        dropped = drop(tape, tape.cast(weights, result_bytes), shape.dropout)
        tape.locals.append(dropped)  # attention returns its weights too
        narrow = tape.cast(dropped, query.itemsize)
        made = batched_product(tape, setting, narrow, value, shape.heads * shape.value_size, setting.sequence_length)
        return tape.elementwise(made)


def _own(tape: Tape, source: Value) -> Value:
    """Batched products copy what is only a view, and save the copy."""
    if source.storage is source:
        return source
    return tape.add(Node("elementwise", (source,), Value(source.elements, source.itemsize, source.grad)))


def batched_product(tape: Tape, setting: Setting, left: Value, right: Value, columns: int, inner: int) -> Value:
    """left @ right, head by head: both are saved."""
    made = Value(setting.tokens * columns, left.itemsize, left.grad or right.grad)
    flops = 2.0 * made.elements * inner
    saved = (left, right) if made.grad else ()
    return tape.add(
        Node("matmul", (left, right), made, saved, flops=flops, backward_flops=2 * flops, backward_launches=2)
    )
