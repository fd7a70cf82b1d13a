"""Liger's fused linear cross-entropy: logits in chunks of tokens, gradients already made in the forward pass.

Sources: arXiv 2410.10989; liger-kernel 0.8.5 ops/fused_linear_cross_entropy.py for the chunk size. transformers'
`use_liger_kernel` also replaces norms, rotary embedding and SwiGLU (Setting.fused_kernels). A model of any other type
than liger-kernel's transformers/monkey_patch.py lists is left as it is, with a line in the log and no error.
"""

from dataclasses import dataclass

from estimators.layers import normalize
from estimators.model import ModelSpec
from estimators.strategies.axes import Needs, Setting
from estimators.strategies.loss.plain import head_layer
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
        source = normalize(tape, setting, stream, model.final_norm) if model.final_norm else stream
        head = head_layer(model)
        weight = head.inputs * head.outputs
        chunk = _chunk_tokens(setting.tokens, head.inputs, head.outputs)
        logits = chunk * head.outputs * source.itemsize
        input_gradient = Value(source.elements, source.itemsize, False)
        weight_gradient = Value(weight, setting.stream_bytes, False)
        flops = 2.0 * setting.tokens * weight * (2 + int(setting.trains_base))
        chunks = -(-setting.tokens // chunk)
        moved = 6.0 * setting.tokens * head.outputs * source.itemsize + 2.0 * chunks * weight * setting.stream_bytes
        tape.add(
            Node(
                "matmul",
                (source,),
                Value(1, 4, source.grad or setting.trains_base),
                (input_gradient, weight_gradient) if setting.trains_base else (input_gradient,),
                temporary=2 * logits,
                flops=flops,
                traffic=moved,
                backward_traffic=2.0 * source.size_bytes,
                launches=6 * chunks,
                backward_launches=2,
            )
        )


def _chunk_tokens(tokens: int, hidden: int, vocabulary: int) -> int:
    """Tokens a chunk: as many as make its logits about as large as the hidden states, rounded up to a power of two."""
    pieces = -(-vocabulary // hidden)
    return min(tokens, 1 << (-(-tokens // pieces) - 1).bit_length())
