"""The layers that decoder blocks are made of, as the operations that transformers' code runs for each."""

from estimators.model import Linear, Norm
from estimators.strategies.axes import Setting
from estimators.tape import Node, Tape, Value

FLOAT32 = 4


def product(tape: Tape, setting: Setting, source: Value, layer: Linear, *, trainable: bool, weight_bytes: int) -> Value:
    """source @ weight, in the compute type: what torch.nn.functional.linear does, under autocast or not.

    Autocast copies a float32 input for every product that reads it, and caches its copy of a trainable float32 weight
    until its context ends (torch/csrc/autocast_mode.cpp); the product saves its input for the weight's gradient and
    the weight for the input's.
    """
    elements = layer.inputs * layer.outputs
    narrow = tape.cast(source, setting.compute_bytes) if setting.autocast else source
    saved: list[Value] = [narrow] if trainable else []
    temporary = backward_temporary = 0
    casts = setting.autocast and weight_bytes != setting.compute_bytes
    if casts:
        copy = Value(elements, setting.compute_bytes, False)
        if source.grad or trainable:
            saved.append(copy)
        if trainable:
            tape.casts.append(copy)
            backward_temporary = elements * setting.compute_bytes
        else:
            temporary = copy.size_bytes
    rows = narrow.elements // layer.inputs
    flops = 2.0 * rows * elements
    output = Value(rows * layer.outputs, narrow.itemsize, narrow.grad or trainable)
    backward_products = int(narrow.grad) + int(trainable)
    moved = narrow.size_bytes + output.size_bytes + elements * narrow.itemsize
    return tape.add(
        Node(
            "matmul",
            (narrow,),
            output,
            saved if output.grad else (),
            temporary=temporary,
            backward_temporary=backward_temporary,
            flops=flops,
            backward_flops=flops * backward_products,
            traffic=moved + (elements * (weight_bytes + setting.compute_bytes) if casts else 0),
            backward_traffic=moved * backward_products
            + (elements * (weight_bytes + setting.compute_bytes) if casts and trainable else 0),
            launches=1 + int(casts),
            backward_launches=backward_products + (int(casts) if trainable else 0) + int(layer.bias and trainable),
            weight_gradient=elements * weight_bytes if trainable else 0,
        )
    )


def linear(tape: Tape, setting: Setting, source: Value, layer: Linear) -> Value:
    """A linear layer of a block: its stored weight, quantised or not, and the adapter beside a target."""
    if layer.quantizable:
        base = setting.quantization.product(tape, setting, source, layer)
    else:
        base = product(tape, setting, source, layer, trainable=setting.trains_base, weight_bytes=setting.weight_bytes)
    if layer.name in setting.targets:
        return setting.adapter.beside(tape, setting, source, base, layer)
    return base


def normalize(tape: Tape, setting: Setting, source: Value, norm: Norm, elements: int | None = None) -> Value:
    """A norm over `source`; its weight has the residual stream's type.

    LlamaRMSNorm computes in float32 and keeps that copy for two of its operations; torch's layer_norm runs in float32
    under autocast. Liger's kernel keeps its input as it is.
    """
    trainable = setting.trains_base and norm.weight
    if norm.restores:
        wide = tape.cast(source, FLOAT32)
        return tape.cast(tape.elementwise(wide, saved=(wide,)), source.itemsize)
    if norm.kind == "layernorm":
        wide = tape.cast(source, FLOAT32) if setting.autocast else source
        return tape.elementwise(wide, saved=(wide,))
    if setting.fused_kernels:
        # Liger hands the gradient on in place, but for the norms that apply their weights in float32.
        output = Value(source.elements, source.itemsize, source.grad)
        return tape.add(Node("elementwise", (source,), output, (source,), aliases=not norm.offset))
    wide = tape.cast(source, FLOAT32)
    rows = max(1, wide.elements // norm.size)
    scale = tape.add(
        Node(
            "elementwise",
            (wide,),
            Value(rows, FLOAT32, wide.grad),
            (wide,),
            launches=3,
            temporary=wide.size_bytes,
            backward_temporary=wide.size_bytes,
            backward_launches=5,
        )
    )
    normal = tape.add(
        Node(
            "elementwise",
            (wide, scale),
            Value(wide.elements, FLOAT32, wide.grad),
            (wide, scale),
            backward_temporary=wide.size_bytes,
            backward_launches=3,
        )
    )
    if norm.offset:
        weighted = tape.elementwise(normal, saved=(normal,) if trainable else ())
        return tape.cast(weighted, source.itemsize)
    normal = tape.cast(normal, source.itemsize)
    weighted = Value(normal.elements, max(normal.itemsize, setting.stream_bytes), normal.grad or trainable)
    return tape.add(
        Node(
            "elementwise", (normal,), weighted, (normal,) if trainable else (), backward_launches=1 + 2 * int(trainable)
        )
    )


def rotate(tape: Tape, setting: Setting, source: Value, fraction: float) -> Value:
    """Rotary position embedding of queries or keys: x·cos + rotate_half(x)·sin; nothing of x is saved."""
    if not fraction:
        return source
    turned = round(source.size_bytes * fraction)
    temporary = 0 if setting.fused_kernels else 3 * turned
    launches = 1 if setting.fused_kernels else 6 + (2 if fraction < 1 else 0)
    return tape.add(
        Node(
            "elementwise",
            (source,),
            Value(source.elements, source.itemsize, source.grad),
            temporary=temporary,
            backward_temporary=temporary,
            traffic=2 * source.size_bytes if setting.fused_kernels else 8 * turned,
            launches=launches,
            backward_launches=launches + 2,
        )
    )


def activate(tape: Tape, setting: Setting, source: Value, name: str) -> Value:
    """The MLP's activation. The "new" GELU of GPT-2 and Phi is a chain of eight operations, partly in float32."""
    if name != "gelu_new":
        output = Value(source.elements, source.itemsize, source.grad)
        kept = output if name == "relu" else source
        return tape.add(Node("elementwise", (source,), output, (kept,)))
    wide_bytes = FLOAT32 if setting.autocast else source.itemsize
    wide = tape.cast(source, wide_bytes)
    cubed = tape.elementwise(wide, saved=(wide,))
    inner = tape.elementwise(source, tape.elementwise(cubed), itemsize=wide_bytes)
    scaled = tape.elementwise(inner)
    bent = Value(source.elements, wide_bytes, source.grad)
    tape.add(Node("elementwise", (scaled,), bent, (bent,)))
    half = tape.elementwise(source)
    shifted = tape.elementwise(bent)
    return tape.elementwise(shifted, half, saved=(shifted, half))


def drop(tape: Tape, source: Value, probability: float) -> Value:
    """Dropout in training: a one-byte mask is kept; at probability 0 torch returns its input."""
    if not probability:
        return source
    mask = Value(source.elements, 1, False)
    output = Value(source.elements, source.itemsize, source.grad)
    return tape.add(Node("elementwise", (source,), output, (mask,), temporary=mask.size_bytes))
