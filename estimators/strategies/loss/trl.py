"""TRL's own loss: the head and the log-probabilities tile by tile, the logits never whole.

Source: trl 1.16 kernels/chunked_logprob.py: tiles of 4096 tokens × 32768 entries in the compute type, recomputed in the
backward pass; gradients accumulated in float32; only positions with a label are projected.
"""

from dataclasses import dataclass

from estimators.layers import FLOAT32
from estimators.model import ModelSpec
from estimators.strategies.axes import Needs, Setting
from estimators.strategies.loss.plain import head_input, head_layer
from estimators.tape import Node, Tape, Value

TOKENS, ENTRIES = 4096, 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledLoss:
    """Tiles of logits."""

    name: str = "trl"
    needs: Needs = Needs(trainers=("trl",))

    def walk(self, tape: Tape, setting: Setting, model: ModelSpec, stream: Value) -> None:
        source = head_input(tape, setting, model, stream)
        labelled = tape.elementwise(source)
        head = head_layer(model)
        size = setting.compute_bytes if setting.autocast else source.itemsize
        rows, entries = min(setting.tokens, TOKENS), min(head.outputs, ENTRIES)
        tile = rows * ENTRIES * size
        weight = head.inputs * head.outputs
        # A tile of the weight in the compute type; in the backward pass the next one is made beside it.
        copies = entries * head.inputs * size * int(size != setting.stream_bytes)
        beside = min(ENTRIES, max(head.outputs - ENTRIES, 0)) * head.inputs * size * int(size != setting.stream_bytes)
        more = beside + rows * head.inputs * size * int(size != labelled.itemsize)
        trained = weight * FLOAT32 + (weight * setting.stream_bytes if setting.stream_bytes != FLOAT32 else 0)
        flops = 2.0 * setting.tokens * weight
        projected = flops * (2 + int(setting.trains_base))
        tiles = -(-setting.tokens // TOKENS) * -(-head.outputs // ENTRIES)
        logits_bytes = setting.tokens * head.outputs * size
        tape.add(
            Node(
                "matmul",
                (labelled,),
                Value(setting.tokens, FLOAT32, labelled.grad or setting.trains_base),
                (labelled,),
                temporary=tile + copies,
                backward_temporary=tile
                + copies
                + more
                + labelled.elements * FLOAT32
                + (trained if setting.trains_base else 0),
                flops=flops,
                backward_flops=projected,
                traffic=2.0 * logits_bytes + weight * size,
                backward_traffic=5.0 * logits_bytes + 2 * weight * size,
                launches=3 * tiles + 12,
                backward_launches=6 * tiles + 12,
            )
        )
