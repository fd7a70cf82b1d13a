"""torch's scaled_dot_product_attention, which never stores the score matrix.

Sources: FlashAttention-2 (arXiv 2307.08691): the backward needs q, k, v, the output and a log-sum-exp a row, and
accumulates the queries' gradient in float32; torch aten/native/transformers/cuda for the kernels' workspaces; a padded
batch has an explicit mask, which the flash kernel does not take, so the memory-efficient one runs on repeated keys.
"""

from dataclasses import dataclass

from estimators.model import Attention
from estimators.strategies.attention.common import attention_flops, repeat_heads
from estimators.strategies.attention.eager import EagerAttention
from estimators.strategies.axes import Needs, Setting
from estimators.tape import Node, Tape, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedAttention:
    """A fused kernel."""

    name: str
    explicit_mask: bool = True
    """A padded batch brings a mask along; flash_attention_2 drops the padding instead, and is counted as if full."""
    needs: Needs = Needs()

    def attend(self, tape: Tape, setting: Setting, shape: Attention, query: Value, key: Value, value: Value) -> Value:
        if shape.needs_math and self.explicit_mask:
            return EagerAttention().attend(tape, setting, shape, query, key, value)
        if setting.autocast:
            query, key, value = (tape.cast(item, setting.compute_bytes) for item in (query, key, value))
        masked = setting.padded and self.explicit_mask
        if masked and shape.key_value_heads < shape.heads:
            key, value = (repeat_heads(tape, item, shape) for item in (key, value))
        rows = setting.tokens * shape.heads
        made = Value(rows * shape.value_size, query.itemsize, query.grad or key.grad or value.grad)
        log_sum = Value(rows, 4, False)
        expanded = 2 * rows * shape.head_size * query.itemsize if shape.key_value_heads < shape.heads else 0
        mask_bytes = setting.sequences * setting.sequence_length**2 * query.itemsize if masked else 0
        flops = attention_flops(setting, shape)
        made = tape.add(
            Node(
                "attention",
                (query, key, value),
                made,
                (query, key, value, made, log_sum),
                temporary=log_sum.size_bytes + mask_bytes,
                backward_temporary=rows * (shape.head_size + 1) * 4 + expanded + mask_bytes,
                flops=flops,
                backward_flops=2.5 * flops,
                launches=2 + 2 * int(masked),
                backward_launches=4,
            )
        )
        # The kernel lays its output out as it found the queries; where only part of a head rotates, they were
        # concatenated head by head, and the output is copied token by token.
        return tape.elementwise(made) if 0 < shape.rotary_fraction < 1 else made
