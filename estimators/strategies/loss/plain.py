"""The stock loss: the whole logits, a float32 copy, and cross-entropy over them.

Source: transformers 5 loss/loss_utils.ForCausalLMLoss; torch's cross_entropy keeps the log-probabilities and its
backward makes a dense float32 gradient twice (nll_loss, log_softmax): 12 bytes a logit.
"""

from dataclasses import dataclass

from estimators.layers import FLOAT32, linear, normalize, product
from estimators.model import Linear, ModelSpec
from estimators.strategies.axes import Needs, Setting
from estimators.tape import Node, Tape, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainLoss:
    """Whole logits."""

    name: str = "plain"
    needs: Needs = Needs()

    def walk(self, tape: Tape, setting: Setting, model: ModelSpec, stream: Value) -> None:
        logits = scaled_logits(tape, setting, model, stream)
        if model.logit_softcap:
            bent = tape.elementwise(tape.elementwise(logits))
            tape.nodes[-1].saved = (bent,)
            logits = tape.elementwise(bent)
        wide = tape.cast(logits, FLOAT32)
        # The model's output object holds the 16-bit logits, without a share in the gradient, until the loss is
        # returned.
        held = () if wide is logits else (Value(0, 1, False, view_of=logits),)
        log_probabilities = Value(wide.elements, FLOAT32, wide.grad)
        tape.add(Node("elementwise", (wide,), log_probabilities, (log_probabilities,),
                      backward_traffic=3.0 * wide.size_bytes))  # fmt: skip
        tape.add(Node("elementwise", (log_probabilities, *held), Value(1, FLOAT32, wide.grad), launches=4,
                      traffic=0.0, backward_traffic=float(wide.size_bytes)))  # fmt: skip


def scaled_logits(tape: Tape, setting: Setting, model: ModelSpec, stream: Value) -> Value:
    """The whole logits, as the head makes them and the model scales them."""
    source = head_input(tape, setting, model, stream)
    logits = product(tape, setting, source, head_layer(model), trainable=setting.trains_base,
                     weight_bytes=setting.stream_bytes)  # fmt: skip
    return tape.elementwise(logits) if model.scaled_logits else logits


def head_input(tape: Tape, setting: Setting, model: ModelSpec, stream: Value) -> Value:
    """The stream after the last norm, and as narrow as the embedding where that is narrower."""
    source = normalize(tape, setting, stream, model.final_norm) if model.final_norm else stream
    for layer in model.extra_linears[-1:]:
        source = linear(tape, setting, source, layer)
    return source


def head_layer(model: ModelSpec) -> Linear:
    """The output head as a layer of its own."""
    width = model.embedding_size or model.hidden_size
    return Linear(name=model.head_name, inputs=width, outputs=model.vocabulary, bias=model.head_bias, quantizable=False)
