"""What the attention laws share: the work of the two products, and keys repeated for every query head."""

from estimators.model import Attention
from estimators.strategies.axes import Setting
from estimators.tape import Node, Tape, Value


def attention_flops(setting: Setting, shape: Attention) -> float:
    """Forward flops of the two products, with only the causal half and, under a sliding window, only its band."""
    length = setting.sequence_length
    seen = length * (length + 1) / 2
    if shape.window is not None and shape.window < length:
        seen = shape.window * (length - shape.window) + shape.window * (shape.window + 1) / 2
    return 2.0 * setting.sequences * shape.heads * seen * (shape.head_size + shape.value_size)


def repeat_heads(tape: Tape, source: Value, shape: Attention) -> Value:
    """Keys or values copied so that every query head has its own, as transformers' repeat_kv does."""
    if shape.key_value_heads == shape.heads:
        return source
    elements = source.elements // shape.key_value_heads * shape.heads
    return tape.add(Node("elementwise", (source,), Value(elements, source.itemsize, source.grad)))
