"""A model walked once under a recipe: the memory and the operations of each kind of block, and of head and loss."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

from estimators.block import walk_block
from estimators.model import Block, ModelSpec
from estimators.recipe import Adapter, Recipe
from estimators.strategies.axes import Setting
from estimators.tape import Footprint, HostCall, Node, Tape, Value
from estimators.techniques import ADAPTERS, ATTENTIONS, LOSSES, QUANTIZATIONS, TRL_LOSS, find_law
from estimators.trainable import ITEM_BYTES, target_names


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
    first_kept: int
    """What the first block saves; under a frozen embedding it is less than its like."""
    head: Stretch
    stream_bytes: int
    """The residual stream between two blocks, which is what activation checkpointing keeps of a block."""

    @cached_property
    def layers(self) -> int:
        return sum(block.count for block in self.blocks)

    @cached_property
    def kept(self) -> int:
        """Saved by all blocks when the forward pass has left them, without checkpointing."""
        return sum(b.count * b.footprint.kept for b in self.blocks) - self.blocks[0].footprint.kept + self.first_kept

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
        recipe.compute if casts else recipe.weights,
        recipe.compute,
        recipe.compute != "float32" and not casts,
        recipe.upcasts_kbit and not casts,
        recipe.attention,
        "trl" if recipe.trainer == "trl" and recipe.loss == "plain" else recipe.loss,
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
    setting = Setting(
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
        attention=find_law("attention", ATTENTIONS, attention),
    )
    blocks = tuple(_stretch(model, setting, block, count, True) for block, count in model.block_counts)
    # Frozen embeddings hand the first block a stream without gradient, unless checkpointing asks for one.
    first = blocks[0] if everything or checkpointing else _stretch(model, setting, model.layers[0], 1, False)
    tape, stream = Tape(), _stream(model, setting, True)
    law = TRL_LOSS if loss == "trl" else find_law("loss", LOSSES, loss)
    law.walk(tape, setting, model, stream)
    head = Stretch(
        count=1,
        nodes=tuple(tape.nodes),
        calls=tape.calls,
        footprint=tape.footprint(stream),
        parameters=model.vocabulary * model.hidden_size,
    )
    return Walk(
        setting=setting, blocks=blocks, first_kept=first.footprint.kept, head=head, stream_bytes=stream.size_bytes
    )


def _stretch(model: ModelSpec, setting: Setting, block: Block, count: int, grad: bool) -> Stretch:
    tape, stream = Tape(), _stream(model, setting, grad)
    walk_block(tape, setting, block, stream)
    return Stretch(
        count=count,
        nodes=tuple(tape.nodes),
        calls=tape.calls,
        footprint=tape.footprint(stream),
        parameters=block.parameters,
    )


def _stream(model: ModelSpec, setting: Setting, grad: bool) -> Value:
    return Value(setting.tokens * model.hidden_size, setting.stream_bytes, grad)
