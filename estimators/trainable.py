"""What a recipe trains and what rests on the GPU: weights, adapters, and the tensors that the optimizer steps
through."""

from functools import lru_cache

from estimators.errors import BadInput
from estimators.model import Linear, ModelSpec
from estimators.recipe import ALL_LINEAR, Adapter, Recipe
from estimators.strategies.adapter.experts import (
    DOWN,
    GATE_UP,
    INTO_EXPERTS,
    ROUTER,
    expert_shapes,
    reaches_experts,
)
from estimators.strategies.adapter.lora import ADAPTER_BYTES
from estimators.strategies.axes import ParameterGroup
from estimators.techniques import ADAPTERS, QUANTIZATIONS

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@lru_cache(maxsize=256)
def target_names(model: ModelSpec, targets: tuple[str, ...] | str) -> frozenset[str]:
    """The names of the layers that an adapter is put beside."""
    named = _named(model, targets)
    return named - set(INTO_EXPERTS) if reaches_experts(model) else named


@lru_cache(maxsize=256)
def expert_targets(model: ModelSpec, targets: tuple[str, ...] | str) -> frozenset[str]:
    """The names of the expert weights, and of the router, that an adapter is put on.

    Raises:
        BadInput: half of a fused weight is named.
    """
    if not reaches_experts(model):
        return frozenset()
    if targets == ALL_LINEAR:
        return frozenset((GATE_UP, DOWN, ROUTER))
    named = _named(model, targets)
    if len(named & {"gate_proj", "up_proj"}) == 1:
        raise BadInput(f"{model.name} has gate_proj and up_proj of its experts in one weight: name both, or neither")
    return frozenset(INTO_EXPERTS[name] for name in named if name in INTO_EXPERTS)


def _named(model: ModelSpec, targets: tuple[str, ...] | str) -> frozenset[str]:
    known = {layer.name for block, _ in model.block_counts for layer in block.linears if layer.quantizable}
    if targets == ALL_LINEAR:
        return frozenset(known | {layer.name for layer in model.extra_linears})
    named = (targets,) if isinstance(targets, str) else targets
    for name in named:
        if name not in known:
            raise BadInput(
                f"{model.name} has no layer {name[:60]!r} to put an adapter on; it has {', '.join(sorted(known))}"
            )
    return frozenset(named)


@lru_cache(maxsize=256)
def default_targets(model: ModelSpec) -> tuple[str, ...]:
    """Queries and values where they are layers of their own, else the layer that makes them both."""
    names = [layer.name for layer in model.layers[0].attention.linears[:-1]]
    wanted = tuple(name for name in names if name in ("q_proj", "v_proj"))
    return wanted if len(wanted) == 2 else tuple(names[:1])


@lru_cache(maxsize=1024)
def base_weight_bytes(model: ModelSpec, quantization: str, weight_bytes: int, stream_bytes: int) -> int:
    """Bytes of the base model as it rests on the GPU: stored layers, and the rest in the stream's type."""
    law = QUANTIZATIONS[quantization]
    total = 0
    for block, count in model.block_counts:
        stored = sum(
            law.stored_bytes(layer, weight_bytes) if layer.quantizable else layer.parameters * weight_bytes
            for layer in block.linears
        )
        total += count * (stored + stream_bytes * (block.parameters - sum(layer.parameters for layer in block.linears)))
    outside = model.parameters - sum(block.parameters * count for block, count in model.block_counts)
    for layer in model.extra_linears:
        total += law.stored_bytes(layer, weight_bytes) - layer.parameters * stream_bytes
    return total + outside * stream_bytes


def trainable_groups(model: ModelSpec, recipe: Recipe) -> tuple[ParameterGroup, ...]:
    """The tensors that the optimizer steps through, equal ones together."""
    return groups_of(model, recipe.adapter)


def groups_of(model: ModelSpec, adapter: Adapter) -> tuple[ParameterGroup, ...]:
    """The tensors that an adapter adds, or all of the model's where everything is trained."""
    if adapter.trains_everything:
        return _all_groups(model)
    return _adapter_groups(model, adapter.method, adapter.rank, adapter.targets)


FULL = Adapter(method="full")


def trainable_bytes_each(recipe: Recipe) -> int:
    """Item size of a trainable parameter."""
    everything = recipe.adapter.trains_everything
    return ITEM_BYTES[recipe.weights] if everything else adapter_bytes(recipe.trainer, recipe.quantized)


def adapter_bytes(trainer: str, quantized: bool) -> int:
    """Item size of an adapter: float32 is PEFT's default, and trl 1.16 casts those of a quantised base to bfloat16."""
    return 2 if trainer == "trl" and quantized else ADAPTER_BYTES


@lru_cache(maxsize=1024)
def _adapter_groups(
    model: ModelSpec, method: str, rank: int, targets: tuple[str, ...] | str
) -> tuple[ParameterGroup, ...]:
    names, law = target_names(model, targets), ADAPTERS[method]
    groups = []
    for block, count in (*model.block_counts, (None, 1)):
        for layer in block.linears if block else model.extra_linears:
            if layer.name in names and layer.quantizable:
                shapes = law.shapes(layer, rank)
                groups += [ParameterGroup(count * layer.copies, *shape) for shape in shapes]
        if block and (experts := block.feed_forward.experts):
            reached = expert_targets(model, targets)
            for layer in (*block.feed_forward.expert_linears, experts.router):
                groups += [ParameterGroup(count, *shape) for shape in expert_shapes(layer, rank, reached)]
    return tuple(groups)


@lru_cache(maxsize=256)
def _all_groups(model: ModelSpec) -> tuple[ParameterGroup, ...]:
    groups = []
    for block, count in model.block_counts:
        for layer in block.linears:
            groups += _layer_groups(layer, count)
        for norm in (*block.norms, *block.attention.query_key_norms):
            groups.append(ParameterGroup(count * (norm.weight + norm.bias), norm.size))
    width = model.embedding_size or model.hidden_size
    groups.append(ParameterGroup(1, model.vocabulary, width, embedding=True))
    if model.learned_positions:
        groups.append(ParameterGroup(1, model.learned_positions, model.hidden_size, embedding=True))
    if not model.tied:
        groups.append(ParameterGroup(1, model.vocabulary, width))
    if model.head_bias:
        groups.append(ParameterGroup(1, model.vocabulary))
    groups += [
        ParameterGroup(norm.weight + norm.bias, norm.size) for norm in (model.final_norm, model.embedding_norm) if norm
    ]
    for layer in model.extra_linears:
        groups += _layer_groups(layer, 1)
    return tuple(group for group in groups if group.count)


def _layer_groups(layer: Linear, count: int) -> list[ParameterGroup]:
    copies = 1 if not layer.quantizable and layer.copies > 1 else layer.copies
    rows = layer.outputs * (layer.copies // copies)
    groups = [ParameterGroup(count * copies, rows, layer.inputs)]
    return [*groups, ParameterGroup(count * copies, rows)] if layer.bias else groups
