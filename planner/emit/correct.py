"""The cheapest change that makes a given recipe fit: first what changes nothing that is learned, then what does."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from estimators.errors import BadInput
from estimators.hardware import Cluster
from estimators.legality import objections
from estimators.model import ModelSpec
from estimators.price import Price
from estimators.recipe import Adapter, Parallelism, Recipe
from estimators.trainable import default_targets
from planner.change import SHORTER, SHORTEST
from planner.search import OFFLOADS

Quote = Callable[[Recipe], Price]
SHARDED = ("zero2", "zero3", "fsdp2")
MOST_CONFIRMED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """A recipe that fits, and what was changed, in words."""

    recipe: Recipe
    price: Price
    changes: tuple[str, ...]
    changes_learning: bool


def correct(
    recipe: Recipe,
    model: ModelSpec,
    cluster: Cluster,
    quote: Quote,
    confirm: Quote,
    expressible: Callable[[Recipe], bool],
) -> Correction | None:
    """The first tier in which something fits, and the fastest of it; what is found is held to `confirm`."""
    for learned, changed in _learned(recipe, model):
        found = []
        for one in _mechanics(changed, cluster):
            if one != recipe and not objections(model, one, cluster) and expressible(one):
                price = quote(one)
                if price.fits:
                    found.append((one, price))
        found.sort(key=lambda pair: _cost(recipe, *pair))
        for one, _ in found[:MOST_CONFIRMED]:
            try:
                price = confirm(one)
            except BadInput:
                continue
            if price.fits:
                words = (*learned, *_words(changed, one))
                return Correction(recipe=one, price=price, changes=words, changes_learning=bool(learned))
    return None


def _cost(before: Recipe, after: Recipe, price: Price) -> tuple[bool, bool, int, int]:
    """What leaves training alone first, offload as the last resort; then speed, in steps of a twentieth; then as little
    change as possible."""
    pace = round(math.log(max(price.tokens_per_second.value, 1e-9), 1.05))
    moved = sum(getattr(before, name) != getattr(after, name) for name in Recipe.__dataclass_fields__)
    trains_otherwise = replace(after, evaluation_batch=before.evaluation_batch) != before
    return trains_otherwise, bool(after.parallelism.offload), -pace, moved


def _learned(recipe: Recipe, model: ModelSpec) -> Iterator[tuple[tuple[str, ...], Recipe]]:
    """Nothing first; then what changes what is learned, one at a time, the mildest first."""
    yield (), recipe
    if not recipe.adapter.trains_everything and recipe.weights != recipe.compute:
        yield (f"the frozen base in {recipe.compute}",), replace(recipe, weights=recipe.compute)
    if recipe.optimizer.startswith("adamw_torch") and recipe.adapter.trains_everything:
        yield ("8-bit AdamW",), replace(recipe, optimizer="adamw_8bit")
    lengths = [int(recipe.sequence_length * share) for share in SHORTER]
    shorter = [length for length in lengths if length >= SHORTEST]
    yield from (((f"sequences of {n:,} tokens",), replace(recipe, sequence_length=n)) for n in shorter[:2])
    smaller = recipe
    if recipe.adapter.trains_everything:
        lora = Adapter(method="lora", rank=16, alpha=64, targets=default_targets(model))
        smaller = replace(recipe, adapter=lora, weights=recipe.compute, optimizer="adamw_torch_fused")
        yield ("LoRA of rank 16",), smaller
    if not recipe.quantized:
        words = ("LoRA of rank 16", "a 4-bit base (QLoRA)") if smaller is not recipe else ("a 4-bit base (QLoRA)",)
        smaller = replace(smaller, quantization="nf4", weights=recipe.compute)
        yield words, smaller
        yield from (((*words, f"sequences of {n:,} tokens"), replace(smaller, sequence_length=n)) for n in shorter)
    else:
        yield from (((f"sequences of {n:,} tokens",), replace(smaller, sequence_length=n)) for n in shorter[2:])


def _mechanics(recipe: Recipe, cluster: Cluster) -> Iterator[Recipe]:
    """The same job in other ways: micro-batches, checkpointing, loss, sharding and offload; rows that are evaluated."""
    share = recipe.micro_batch * recipe.gradient_accumulation
    sizes = [size for size in range(1, recipe.micro_batch + 1) if share % size == 0]
    saving = list(dict.fromkeys((recipe.gradient_checkpointing, True)))
    losses = ("plain", "liger") if (recipe.loss, recipe.trainer) == ("plain", "transformers") else (recipe.loss,)
    for place in _places(recipe.parallelism, cluster):
        # Under ZeRO the float32 weights are DeepSpeed's own sharded master copy.
        weights = recipe.compute if place.kind.startswith("zero") else recipe.weights
        for checkpointing, loss, micro_batch in product(saving, losses, sizes):
            for rows in _evaluations(recipe, micro_batch):
                yield replace(
                    recipe, parallelism=place, weights=weights, gradient_checkpointing=checkpointing, loss=loss,
                    micro_batch=micro_batch, gradient_accumulation=share // micro_batch, evaluation_batch=rows,
                )  # fmt: skip


def _evaluations(recipe: Recipe, micro_batch: int) -> Sequence[int | None]:
    """As many rows as before, as many as are trained at a time, or one."""
    before = recipe.evaluation_batch
    return list(dict.fromkeys((before, min(before, micro_batch), 1))) if before else [before]


def _places(place: Parallelism, cluster: Cluster) -> Sequence[Parallelism]:
    found = [place]
    if place.devices > 1:
        found += [Parallelism(kind=kind, devices=place.devices) for kind in SHARDED]
    if cluster.host.memory_bytes is not None:
        found += [Parallelism(kind=kind, devices=place.devices, offload=parts) for kind, parts in OFFLOADS]
    return list(dict.fromkeys(found))


def _words(before: Recipe, after: Recipe) -> Iterator[str]:
    if before.micro_batch != after.micro_batch:
        yield (
            f"micro-batches of {after.micro_batch} instead of {before.micro_batch}, {after.gradient_accumulation} "
            "accumulated"
        )
    if before.evaluation_batch != after.evaluation_batch:
        yield f"evaluations of {after.evaluation_batch} instead of {before.evaluation_batch} rows at a time"
    if before.gradient_checkpointing != after.gradient_checkpointing:
        yield "gradient checkpointing"
    if before.loss != after.loss:
        yield f"the loss {after.loss}"
    if before.parallelism != after.parallelism:
        place = after.parallelism
        offload = f" with offload of {' and '.join(place.offload)}" if place.offload else ""
        yield place.kind + (offload or (" without offload" if before.parallelism.offload else ""))
