"""A model walked once under a recipe: the memory and the operations of each kind of block, and of head and loss."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from estimators.block import walk_block
from estimators.footprint import Footprint, footprint
from estimators.model import Block, ModelSpec
from estimators.recipe import Adapter, Recipe
from estimators.strategies.axes import Setting
from estimators.tape import HostCall, Node, Tape, Value
from estimators.techniques import ADAPTERS, ATTENTIONS, LOSSES, QUANTIZATIONS, TRL_LOSS, find_law
from estimators.trainable import ITEM_BYTES, adapter_bytes, expert_targets, target_names


@dataclass(frozen=True, kw_only=True, eq=False)
class Stretch:
    """A part of the model on the tape, and how often it occurs."""

    count: int
    nodes: tuple[Node, ...]
    calls: dict[HostCall, int]
    footprint: Footprint
    parameters: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Walk:
    """All stretches of a model under one setting, in forward order of first appearance; the head and loss last."""

    setting: Setting
    blocks: tuple[Stretch, ...]
    kinds: tuple[int, ...]
    """Which of `blocks` each layer is."""
    embedding_kept: int
    """Saved before the first block."""
    first: Stretch
    """The first block: a frozen embedding hands it a stream without gradient, perhaps in a narrower type."""
    head: Stretch
    stream_bytes: int
    """The residual stream between two blocks, which is what activation checkpointing keeps of a block."""
    embedded_bytes: int
    """The same before the first block."""

    @cached_property
    def layers(self) -> int:
        return sum(block.count for block in self.blocks)

    @cached_property
    def kept(self) -> int:
        """Saved by all blocks when the forward pass has left them, without checkpointing."""
        return self.kept_before(self.layers)

    def handed_to(self, layers: int) -> int:
        """What activation checkpointing keeps of so many blocks."""
        return layers * self.stream_bytes - (self.stream_bytes - self.embedded_bytes if layers else 0)

    def kept_before(self, layer: int) -> int:
        """Saved by the blocks before one, without checkpointing."""
        saved = sum(self.blocks[kind].footprint.kept for kind in self.kinds[:layer])
        return saved - self.blocks[0].footprint.kept + self.first.footprint.kept if layer else 0

    @cached_property
    def parameters_from(self) -> tuple[int, ...]:
        """Of each layer and all that follow it; a last entry of zero."""
        sums = [0]
        for kind in reversed(self.kinds):
            sums.append(sums[-1] + self.blocks[kind].parameters)
        return tuple(reversed(sums))

    @cached_property
    def firsts(self) -> tuple[int, ...]:
        """The layer at which each kind of block comes first."""
        return tuple(self.kinds.index(kind) for kind in range(len(self.blocks)))

    @cached_property
    def cached_casts(self) -> int:
        return sum(block.count * block.footprint.cached_casts for block in self.blocks)

    @cached_property
    def pinned(self) -> int:
        return sum(block.count * block.footprint.pinned for block in self.blocks)


def walk(model: ModelSpec, recipe: Recipe) -> Walk:
    """The walk of `model` under `recipe`; recipes that differ elsewhere (optimizer, sharding) share one.

    Raises:
        BadInput: a target is the name of no layer of the model, or a technique is unknown.
    """
    # DeepSpeed casts the whole model, upcast parts too, FSDP 2 hands each block 16-bit weights: no autocast in either.
    casts = recipe.parallelism.kind.startswith(("zero", "fsdp"))
    return _walk(
        model,
        recipe.adapter,
        recipe.quantization,
        recipe.trainer,
        recipe.compute if casts else recipe.weights,
        recipe.compute,
        recipe.compute != "float32" and not casts,
        recipe.upcasts_kbit and not casts,
        recipe.attention,
        recipe.loss,
        recipe.micro_batch,
        recipe.sequence_length,
        recipe.padded,
        recipe.gradient_checkpointing,
    )


@lru_cache(maxsize=4096)
def _walk(
    model: ModelSpec,
    adapter: Adapter,
    quantization: str,
    trainer: str,
    weights: str,
    compute: str,
    autocast: bool,
    upcasts: bool,
    attention: str,
    loss: str,
    micro_batch: int,
    sequence_length: int,
    padded: bool,
    checkpointing: bool,
) -> Walk:
    everything = adapter.trains_everything
    setting = _setting(
        model, adapter, quantization, trainer, weights, compute, autocast, upcasts, attention, loss, micro_batch,
        sequence_length, padded,
    )  # fmt: skip
    # Frozen embeddings hand the first block a stream without gradient, unless checkpointing asks for one.
    asked = checkpointing and trainer == "trl" and not everything
    embedded = _stream(model, setting, setting.stream_bytes, everything or checkpointing)
    first = _stretch(setting, model.layers[0], 1, embedded, checkpointing)
    itemsize = first.nodes[-1].output.itemsize  # a branch of the first block may widen the stream, for all others
    alike = embedded.grad and itemsize == embedded.itemsize
    blocks = tuple(
        replace(first, count=count)
        if alike and block is model.layers[0]
        else _stretch(setting, block, count, _stream(model, setting, itemsize, True), checkpointing)
        for block, count in model.block_counts
    )
    tape, stream = Tape(), _stream(model, setting, itemsize, True)
    law = TRL_LOSS if trainer == "trl" and loss == "plain" else find_law("loss", LOSSES, loss)
    law.walk(tape, setting, model, stream)
    head = Stretch(
        count=1,
        nodes=tuple(tape.nodes),
        calls=tape.calls,
        footprint=footprint(tape, stream),
        parameters=model.vocabulary * model.hidden_size,
    )
    return Walk(
        setting=setting,
        blocks=blocks,
        kinds=model.block_kinds,
        embedding_kept=_embedding_kept(model, setting, everything, asked),
        first=first,
        head=head,
        stream_bytes=stream.size_bytes,
        embedded_bytes=embedded.size_bytes,
    )


def _setting(
    model: ModelSpec,
    adapter: Adapter,
    quantization: str,
    trainer: str,
    weights: str,
    compute: str,
    autocast: bool,
    upcasts: bool,
    attention: str,
    loss: str,
    micro_batch: int,
    sequence_length: int,
    padded: bool,
) -> Setting:
    everything = adapter.trains_everything
    return Setting(
        sequences=micro_batch,
        sequence_length=sequence_length,
        autocast=autocast,
        compute_bytes=ITEM_BYTES[compute],
        weight_bytes=4 if upcasts else ITEM_BYTES[weights],
        stream_bytes=4 if upcasts else ITEM_BYTES[weights],
        trains_base=everything,
        padded=padded,
        fused_kernels=loss == "liger",
        quantization=find_law("quantization", QUANTIZATIONS, quantization),
        adapter=find_law("adapter", ADAPTERS, adapter.method),
        rank=adapter.rank,
        adapter_dropout=adapter.dropout,
        targets=frozenset() if everything else target_names(model, adapter.targets),
        expert_targets=frozenset() if everything else expert_targets(model, adapter.targets),
        # DeepSpeed and FSDP 2 hand over adapters in the compute type, and there is no autocast.
        adapter_bytes=adapter_bytes(trainer, quantization != "none")
        if autocast or compute == "float32"
        else ITEM_BYTES[compute],
        attention=find_law("attention", ATTENTIONS, attention),
    )


def _embedding_kept(model: ModelSpec, setting: Setting, everything: bool, asked: bool) -> int:
    """Dropout's mask, what a projection reads, and a frozen embedding's output where TRL asks for its gradient: a leaf,
    it outlives its use."""
    elements = setting.tokens * model.hidden_size
    if model.extra_linears and everything:
        narrow = setting.compute_bytes if setting.autocast else setting.stream_bytes
        return setting.tokens * model.extra_linears[0].inputs * narrow
    mask = elements if model.embedding_dropout and (everything or asked) else 0
    changed = model.embedding_dropout or model.scaled_embedding or model.learned_positions or model.extra_linears
    return mask + (elements * setting.stream_bytes if asked and changed else 0)


def _stretch(setting: Setting, block: Block, count: int, stream: Value, checkpointing: bool) -> Stretch:
    tape = Tape()
    walk_block(tape, setting, block, stream)
    return Stretch(
        count=count,
        nodes=tuple(tape.nodes),
        calls=tape.calls,
        footprint=footprint(tape, stream, checkpointed=checkpointing),
        parameters=block.parameters,
    )


def _stream(model: ModelSpec, setting: Setting, itemsize: int, grad: bool) -> Value:
    return Value(setting.tokens * model.hidden_size, itemsize, grad)
