"""One decoder block, walked as its forward pass runs, for every family that the product knows."""

from estimators.layers import FLOAT32, activate, drop, linear, normalize, product, rotate
from estimators.model import Attention, Block, Experts, FeedForward, Linear, Norm
from estimators.strategies.adapter.experts import ROUTER, expert_shapes
from estimators.strategies.axes import Setting
from estimators.tape import Node, Tape, Value

INDEX_BYTES = 8


def walk_block(tape: Tape, setting: Setting, block: Block, stream: Value) -> Value:
    """Record one block on the tape; returns the residual stream that leaves it."""
    if block.parallel:
        return _walk_parallel(tape, setting, block, stream)
    for made_by, (before, after) in zip(("attention", "feed_forward"), _sides(block), strict=True):
        source = normalize(tape, setting, stream, before) if before else stream
        if made_by == "attention":
            made = _attention(tape, setting, block.attention, source)
        else:
            tape.locals.append(source)  # a variable of the block's code until the feed-forward returns
            made = _feed_forward(tape, setting, block.feed_forward, source)
        if block.norms_sums and after:
            stream = normalize(tape, setting, tape.sum(stream, _branch(tape, block, made)), after)
            continue
        made = normalize(tape, setting, made, after) if after else made
        stream = tape.sum(stream, _branch(tape, block, made))
    return stream


def _sides(block: Block) -> tuple[tuple[Norm | None, Norm | None], tuple[Norm | None, Norm | None]]:
    """The norms before and after attention, and before and after the MLP."""
    if len(block.norms) == 4:  # Gemma 2 and 3 norm what they read and what they return.
        first, second, third, fourth = block.norms
        return (first, second), (third, fourth)
    first, second = block.norms
    after = block.norms_after or block.norms_sums
    return ((None, first), (None, second)) if after else ((first, None), (second, None))


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
        output = Value(gate.elements, gate.itemsize, gate.grad or up.grad)
        return tape.add(Node("elementwise", (gate, up), output, (gate, up), overwrites=True))
    active = activate(tape, setting, gate, activation)
    return tape.elementwise(active, up, saved=(active, up))


def _routed(tape: Tape, setting: Setting, shape: FeedForward, source: Value) -> Value:
    """The routed experts as one grouped product: each token's hidden state is copied for each expert it visits.

    Source: transformers 5 integrations/moe.py (grouped_mm_experts_forward). Autocast does not know the grouped product,
    so it runs in the type of the experts' weights.
    """
    experts = shape.experts
    assert experts is not None
    scores = _route(tape, setting, experts, source)
    visits = setting.tokens * experts.per_token
    tape.call("expert", min(experts.count, visits))
    if setting.fused_kernels:
        return _fused_experts(tape, setting, shape, source, visits)
    hidden = source.elements // setting.tokens
    places = Value(visits, INDEX_BYTES, False)
    gathered = Value(visits * hidden, source.itemsize, source.grad)
    tape.add(Node("elementwise", (source,), gathered, (places,), launches=6))
    joint = _grouped(tape, setting, shape.expert_linears[0], gathered, visits)
    if shape.gated:
        gate, up = _view(tape, joint, joint.elements // 2), _view(tape, joint, joint.elements // 2)
        active = _gate(tape, setting, gate, up, shape.activation)
    else:
        active = activate(tape, setting, joint, shape.activation)
    made = _grouped(tape, setting, shape.expert_linears[1], active, visits)
    # The scores' gradient is a product as large as what they weigh, then summed.
    weighted = Value(made.elements, max(made.itemsize, scores.itemsize), made.grad)
    tape.add(Node("elementwise", (made, scores), weighted, (made,), backward_temporary=weighted.size_bytes))
    placed = tape.elementwise(weighted, saved=(Value(visits, INDEX_BYTES, False),))
    # Autocast sums into float32. The gathered states are a local variable of the code until here.
    merged = Value(source.elements, FLOAT32 if setting.autocast else placed.itemsize, made.grad)
    tape.add(Node("elementwise", (placed, Value(0, 1, False, view_of=gathered)), merged, launches=2))
    return tape.cast(merged, source.itemsize)


def _fused_experts(tape: Tape, setting: Setting, shape: FeedForward, source: Value, visits: int) -> Value:
    """Liger's experts in one function, in their input's type; its backward makes gradients of frozen weights too.

    Source: liger-kernel 0.8.5 ops/fused_moe.py (LigerFusedMoEFunction).
    """
    into, out = shape.expert_linears
    before = Value(visits * into.outputs, source.itemsize, False)
    active_bytes, made_bytes = (visits * width * source.itemsize for width in (out.inputs, out.outputs))
    weights_bytes = (into.parameters + out.parameters) * setting.weight_bytes
    flops = 2.0 * visits * (into.inputs * into.outputs + out.inputs * out.outputs)
    made = Value(source.elements, source.itemsize, source.grad or setting.trains_base)
    return tape.add(
        Node(
            "matmul",
            (source,),
            made,
            (source, before),
            temporary=before.size_bytes + active_bytes + made_bytes,
            backward_temporary=before.size_bytes
            + active_bytes
            + made_bytes
            + (0 if setting.trains_base else weights_bytes),
            flops=flops,
            backward_flops=2 * flops,
            launches=8,
            backward_launches=6,
            weight_gradient=weights_bytes if setting.trains_base else 0,
        )
    )


def _route(tape: Tape, setting: Setting, experts: Experts, source: Value) -> Value:
    """The router's product; returns the scores of the chosen experts."""
    router = experts.router
    if ROUTER in setting.expert_targets:
        merged = Value(router.parameters, setting.weight_bytes, False)
        logits = product(tape, setting, source, router, trainable=False, weight_bytes=setting.weight_bytes)
        tape.nodes[-1].saved = (*tape.nodes[-1].saved, merged)
    else:
        logits = linear(tape, setting, source, router)
    return Value(setting.tokens * experts.per_token, FLOAT32 if experts.wide_scores else logits.itemsize, logits.grad)


def _grouped(tape: Tape, setting: Setting, layer: Linear, source: Value, rows: int) -> Value:
    """One product for all experts, of the weight or of the weight with its adapter merged into a copy."""
    narrow = tape.cast(source, setting.weight_bytes)
    adapted = layer.name in setting.expert_targets
    trainable = setting.trains_base or adapted
    inputs: tuple[Value, ...] = (narrow,)
    saved: tuple[Value, ...] = (narrow,) if trainable else ()
    if adapted:
        merged = Value(layer.parameters, setting.weight_bytes, True)
        factors = sum(outer * inner for outer, inner in expert_shapes(layer, setting.rank, setting.expert_targets))
        cast_bytes = setting.adapter_bytes != setting.weight_bytes
        copies = (Value(factors, setting.weight_bytes, False),) if cast_bytes else ()
        tape.add(Node("matmul", (), merged, copies, launches=4, traffic=2.0 * merged.size_bytes))
        inputs, saved = (narrow, merged), (narrow, merged)
    flops = 2.0 * rows * layer.inputs * layer.outputs
    made = Value(rows * layer.outputs, setting.weight_bytes, source.grad or trainable)
    node = Node("matmul", inputs, made, saved, flops=flops,
                backward_flops=flops * (int(source.grad) + int(trainable)), launches=2,
                backward_launches=int(source.grad) + int(trainable),
                weight_gradient=layer.parameters * setting.weight_bytes if setting.trains_base else 0)  # fmt: skip
    return tape.add(node)
