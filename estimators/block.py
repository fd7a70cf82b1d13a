"""One decoder block, walked as its forward pass runs, for every family that the product knows."""

from estimators.layers import activate, drop, linear, normalize, rotate
from estimators.model import Attention, Block, FeedForward, Norm
from estimators.strategies.axes import Setting
from estimators.tape import Node, Tape, Value


def walk_block(tape: Tape, setting: Setting, block: Block, stream: Value) -> Value:
    """Record one block on the tape; returns the residual stream that leaves it."""
    if block.parallel:
        return _walk_parallel(tape, setting, block, stream)
    sides = _sides(block)
    for made_by, (before, after) in zip(("attention", "feed_forward"), sides, strict=True):
        source = normalize(tape, setting, stream, before) if before else stream
        if made_by == "attention":
            made = _attention(tape, setting, block.attention, source)
        else:
            made = _feed_forward(tape, setting, block.feed_forward, source)
        made = normalize(tape, setting, made, after) if after else made
        stream = tape.sum(stream, _branch(tape, block, made))
    return stream


def _sides(block: Block) -> tuple[tuple[Norm | None, Norm | None], tuple[Norm | None, Norm | None]]:
    """The norms before and after attention, and before and after the MLP."""
    if len(block.norms) == 4:  # Gemma 2 and 3 norm what they read and what they return.
        first, second, third, fourth = block.norms
        return (first, second), (third, fourth)
    first, second = block.norms
    return ((None, first), (None, second)) if block.norms_after else ((first, None), (second, None))


def _walk_parallel(tape: Tape, setting: Setting, block: Block, stream: Value) -> Value:
    source = normalize(tape, setting, stream, block.norms[0])
    attended = _branch(tape, block, _attention(tape, setting, block.attention, source))
    second_source = normalize(tape, setting, stream, block.norms[1]) if len(block.norms) > 1 else source
    made = _branch(tape, block, _feed_forward(tape, setting, block.feed_forward, second_source))
    return tape.sum(tape.sum(made, attended), stream)


def _branch(tape: Tape, block: Block, made: Value) -> Value:
    if block.scaled_residual:
        made = tape.elementwise(made)
    return drop(tape, made, block.dropout)


def _attention(tape: Tape, setting: Setting, shape: Attention, source: Value) -> Value:
    projections, output = shape.linears[:-1], shape.linears[-1]
    if shape.latent:
        query, key, value = _latent_projections(tape, setting, shape, source)
    elif shape.fused_projection:
        joint = linear(tape, setting, source, projections[0])
        query, key, value = _split(tape, setting, shape, joint)
    else:
        query, key, value = (linear(tape, setting, source, layer) for layer in projections)
    if shape.query_key_norms and not shape.latent:
        query = normalize(tape, setting, query, shape.query_key_norms[0])
        key = normalize(tape, setting, key, shape.query_key_norms[-1])
    query = rotate(tape, setting, query, shape.rotary_fraction)
    key = rotate(tape, setting, key, shape.rotary_fraction)
    return linear(tape, setting, setting.attention.attend(tape, setting, shape, query, key, value), output)


def _split(tape: Tape, setting: Setting, shape: Attention, joint: Value) -> tuple[Value, Value, Value]:
    """Views of one projection: they share its storage, and their gradients are gathered into one."""
    sizes = (shape.heads * shape.head_size, *(shape.key_value_heads * shape.head_size,) * 2)
    query, key, value = (_view(tape, joint, setting.tokens * size) for size in sizes)
    return query, key, value


def _view(tape: Tape, joint: Value, elements: int) -> Value:
    """A slice of `joint`: free in the forward pass, a copy into a gradient of the whole in the backward pass."""
    view = Value(elements, joint.itemsize, joint.grad, view_of=joint)
    return tape.add(Node("elementwise", (joint,), view, traffic=0.0, backward_traffic=2.0 * view.size_bytes,
                         launches=0, backward_launches=1))  # fmt: skip


def _latent_projections(tape: Tape, setting: Setting, shape: Attention, source: Value) -> tuple[Value, Value, Value]:
    """DeepSeek's multi-head latent attention: keys and values are expanded from a normed low-rank projection."""
    *query_layers, compress, expand = shape.linears[:-1]
    norms = list(shape.query_key_norms)
    query = linear(tape, setting, source, query_layers[0])
    if len(query_layers) == 2:
        query = linear(tape, setting, normalize(tape, setting, query, norms.pop(0)), query_layers[1])
    latent = normalize(tape, setting, linear(tape, setting, source, compress), norms.pop(0))
    joint = linear(tape, setting, latent, expand)
    key = Value(setting.tokens * shape.heads * shape.head_size, joint.itemsize, joint.grad)
    value = Value(setting.tokens * shape.heads * shape.value_size, joint.itemsize, joint.grad)
    tape.add(Node("elementwise", (joint,), key, launches=2))
    tape.add(Node("elementwise", (joint,), value, launches=1))
    return query, key, value


def _feed_forward(tape: Tape, setting: Setting, shape: FeedForward, source: Value) -> Value:
    if shape.experts is None:
        return _dense(tape, setting, shape, source)
    routed = _routed(tape, setting, shape, source)
    return tape.sum(routed, _dense(tape, setting, shape, source)) if shape.linears else routed


def _dense(tape: Tape, setting: Setting, shape: FeedForward, source: Value) -> Value:
    *into, out = shape.linears
    if not shape.gated:
        return linear(
            tape, setting, activate(tape, setting, linear(tape, setting, source, into[0]), shape.activation), out
        )
    if shape.fused_gate:
        joint = linear(tape, setting, source, into[0])
        gate, up = _view(tape, joint, joint.elements // 2), _view(tape, joint, joint.elements // 2)
    else:
        gate, up = linear(tape, setting, source, into[0]), linear(tape, setting, source, into[1])
    return linear(tape, setting, _gate(tape, setting, gate, up, shape.activation), out)


def _gate(tape: Tape, setting: Setting, gate: Value, up: Value, activation: str) -> Value:
    """activation(gate) · up. Liger's kernel keeps its two inputs and recomputes the rest."""
    if setting.fused_kernels:
        return tape.elementwise(gate, up, saved=(gate, up))
    active = activate(tape, setting, gate, activation)
    return tape.elementwise(active, up, saved=(active, up))


def _routed(tape: Tape, setting: Setting, shape: FeedForward, source: Value) -> Value:
    """The routed experts as one grouped product: each token's hidden state is copied for each expert it visits."""
    experts = shape.experts
    assert experts is not None
    linear(tape, setting, source, experts.router)
    visits = setting.tokens * experts.per_token
    tape.call("expert", min(experts.count, visits))
    hidden = source.elements // setting.tokens
    size = setting.compute_bytes if setting.autocast else source.itemsize
    gathered = tape.add(Node("elementwise", (source,), Value(visits * hidden, size, source.grad), launches=6))
    joint = _grouped(tape, setting, gathered, visits, hidden, (2 if shape.gated else 1) * experts.intermediate)
    if shape.gated:
        gate, up = _view(tape, joint, joint.elements // 2), _view(tape, joint, joint.elements // 2)
        active = _gate(tape, setting, gate, up, shape.activation)
    else:
        active = activate(tape, setting, joint, shape.activation)
    made = _grouped(tape, setting, active, visits, experts.intermediate, hidden)
    weighted = tape.elementwise(made, saved=(made,))
    merged = Value(source.elements, source.itemsize, made.grad)
    return tape.add(Node("elementwise", (weighted,), merged, launches=3))


def _grouped(tape: Tape, setting: Setting, source: Value, rows: int, inputs: int, outputs: int) -> Value:
    trainable = setting.trains_base
    flops = 2.0 * rows * inputs * outputs
    made = Value(rows * outputs, source.itemsize, source.grad or trainable)
    node = Node("matmul", (source,), made, (source,) if trainable else (), flops=flops,
                backward_flops=flops * (int(source.grad) + int(trainable)), launches=2,
                backward_launches=int(source.grad) + int(trainable))  # fmt: skip
    return tape.add(node)
