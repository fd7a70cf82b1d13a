"""Liger's fused linear cross-entropy: logits in chunks of tokens, gradients already made in the forward pass.

Sources: arXiv 2410.10989; liger-kernel 0.8.5 ops/fused_linear_cross_entropy.py for the chunk size. transformers'
`use_liger_kernel` also replaces norms, rotary embedding and SwiGLU (Setting.fused_kernels). A model of any other type
than liger-kernel's transformers/monkey_patch.py lists is left as it is, with a line in the log and no error.
"""

from dataclasses import dataclass

from estimators.layers import FLOAT32
from estimators.model import ModelSpec
from estimators.strategies.axes import Needs, Setting
from estimators.strategies.loss.plain import head_input, head_layer, scaled_logits
from estimators.tape import Node, Tape, Value

PATCHED = frozenset({
    "deepseek_v2", "deepseek_v3", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "mixtral", "olmo2",
    "olmo3", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3",
})  # fmt: skip
"""Of the families here, those in liger-kernel 0.8.5's MODEL_TYPE_TO_APPLY_LIGER_FN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LigerLoss:
    """Chunks of logits."""

    name: str = "liger"
    needs: Needs = Needs(compute_capability=(7, 0), model_types=PATCHED)

    def walk(self, tape: Tape, setting: Setting, model: ModelSpec, stream: Value) -> None:
        if model.scaled_logits:
            _whole_logits(tape, setting, model, stream)
        else:
            _chunks(tape, setting, model, head_input(tape, setting, model, stream))


def _chunks(tape: Tape, setting: Setting, model: ModelSpec, source: Value) -> None:
    """A chunk's logits become their own gradient. Under autocast the head's weight is copied for each product."""
    head = head_layer(model)
    weight = head.inputs * head.outputs
    chunk = _chunk_tokens(setting.tokens, head.inputs, head.outputs)
    size = setting.compute_bytes if setting.autocast else source.itemsize
    casts = setting.autocast and setting.stream_bytes != setting.compute_bytes
    copy = Value(weight if casts else 0, size, False)
    if casts and setting.trains_base:
        tape.casts.append(copy)
    logits_bytes = chunk * head.outputs * size
    # In 16 bits a chunk's gradient of the weight is added by the product itself, in float32 it is made first.
    made = weight * FLOAT32 if setting.trains_base and size == FLOAT32 else 0
    input_gradient = Value(source.elements, source.itemsize, False)
    weight_gradient = Value(weight, setting.stream_bytes, False)
    flops = 2.0 * setting.tokens * weight * (2 + int(setting.trains_base))
    chunks = -(-setting.tokens // chunk)
    gradients = (input_gradient, weight_gradient) if setting.trains_base else (input_gradient,)
    moved = 6.0 * setting.tokens * head.outputs * source.itemsize + 2.0 * chunks * weight * setting.stream_bytes
    tape.add(
        Node(
            "matmul",
            (source,),
            Value(1, FLOAT32, source.grad or setting.trains_base),
            gradients,
            temporary=logits_bytes
            + copy.size_bytes
            + chunk * head.inputs * size
            + made
            + sum(value.size_bytes for value in gradients),
            flops=flops,
            traffic=moved,
            backward_traffic=2.0 * source.size_bytes,
            launches=6 * chunks,
            backward_launches=2,
            overwrites=True,
        )
    )


def _whole_logits(tape: Tape, setting: Setting, model: ModelSpec, stream: Value) -> None:
    """Granite, whose logits Liger does not fuse: a float32 copy becomes its own gradient. accelerate copies the
    model's output to float32 too, once autocast's copies of weights are gone: all is as the backward pass finds it."""
    logits = scaled_logits(tape, setting, model, stream)
    wide = tape.cast(logits, FLOAT32)
    held = () if wide is logits else (Value(0, 1, False, view_of=logits),)
    outputs_bytes = wide.size_bytes + (logits.size_bytes if held else 0) if setting.autocast else 0
    tape.add(Node("elementwise", (wide, *held), Value(1, FLOAT32, wide.grad), (wide,),
                  backward_temporary=outputs_bytes, overwrites=True))  # fmt: skip


def _chunk_tokens(tokens: int, hidden: int, vocabulary: int) -> int:
    """Tokens a chunk: as many as make its logits about as large as the hidden states, rounded up to a power of two."""
    pieces = -(-vocabulary // hidden)
    return min(tokens, 1 << (-(-tokens // pieces) - 1).bit_length())
