"""Peak memory of one GPU by formula: what is alive at each moment of a step, and the largest of those moments.

The terms of a moment sum to it exactly. torch's allocator holds `allocated`; what it reserves and what the process
takes beside it are in estimators/process.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from operator import attrgetter

from estimators.hardware import Device
from estimators.model import ModelSpec
from estimators.recipe import Adapter, Buckets, Parallelism, Recipe
from estimators.strategies.axes import Job, Phase, Resident
from estimators.techniques import OPTIMIZERS, PARALLELISMS, find_law
from estimators.trainable import FULL, ITEM_BYTES, adapter_bytes, base_weight_bytes, groups_of, trainable_groups
from estimators.units import MIB
from estimators.walk import Walk, walk

FLOAT32_SHARDS = ("zero1", "zero2", "zero3", "fsdp2")
"""Train in the compute type beside sharded float32 weights: DeepSpeed casts the model, FSDP2 gathers in it."""
FORWARD_END, SHARDING = "end of the forward pass", "sharding of the loaded model"
REDUCED_BY_BUCKET = ("zero1", "zero2", "zero3")
"""Parallelisms whose ranks reduce gradients bucket by bucket while they are made."""
TERMS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "workspace", "communication")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What torch's allocator holds at one instant, by term, in bytes."""

    name: str
    terms: dict[str, int]
    phase: Phase = "loss"

    @cached_property
    def total_bytes(self) -> int:
        return sum(self.terms.values())


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The moments of a step on one GPU."""

    moments: tuple[Moment, ...]
    loaded_bytes: int
    """Held once the model is built, before the first step."""
    evaluation: Moment | None = None
    """The forward pass of an evaluation, where the recipe asks for one; it is no part of the peak."""
    embedding_bytes: int = 0
    """Gradients of embedding and head together, in the type that they are trained in."""
    managed_bytes: int = 0
    """Paged optimizer state: CUDA managed memory, in device or host memory as the driver sees fit."""

    @cached_property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total_bytes)

    @property
    def allocated_bytes(self) -> int:
        return self.peak.total_bytes


def cublas_workspace_bytes(device: Device) -> int:
    """Two workspaces, for the forward and the backward thread's handle.

    Source: torch 2.11 aten/src/ATen/cuda/CublasHandlePool.cpp: 32 MiB on Hopper and later, 8,519,680 B before.
    """
    return 2 * (32 * MIB if device.compute_capability >= (9, 0) else 8_519_680)


_JOB_FIELDS = attrgetter(
    "adapter",
    "quantization",
    "weights",
    "compute",
    "optimizer",
    "parallelism",
    "buckets",
    "trainer",
    "upcasts_kbit",
    "gradient_checkpointing",
)


def job_of(model: ModelSpec, recipe: Recipe) -> Job:
    """The whole-model figures that a parallelism law shards; recipes that differ in their batches alone share one."""
    return _job(model, *_JOB_FIELDS(recipe), recipe.gradient_accumulation > 1)


@lru_cache(maxsize=4096)
def _job(
    model: ModelSpec,
    adapter: Adapter,
    quantization: str,
    weights: str,
    compute: str,
    optimizer: str,
    place: Parallelism,
    buckets: Buckets,
    trainer: str,
    upcasts: bool,
    checkpointing: bool,
    accumulates: bool,
) -> Job:
    law = find_law("optimizer", OPTIMIZERS, optimizer)
    groups, everything = groups_of(model, adapter), adapter.trains_everything
    loaded = ITEM_BYTES[weights] if everything else adapter_bytes(trainer, quantization != "none")
    sharded = place.kind in FLOAT32_SHARDS
    stream_bytes = 4 if upcasts else ITEM_BYTES[weights]
    if place.kind.startswith("zero"):
        stream_bytes = ITEM_BYTES[compute]
    master = 4 if sharded else loaded
    block = max((block for block, _ in model.block_counts), key=lambda block: block.parameters)
    return Job(
        devices=place.devices,
        weights_bytes=base_weight_bytes(model, quantization, stream_bytes, stream_bytes),
        trainable_parameters=sum(group.parameters for group in groups),
        trainable_bytes_each=ITEM_BYTES[compute] if sharded else loaded,
        trainable_bytes_loaded=loaded,
        trainable_tensors=sum(group.count for group in groups),
        adapter=not everything,
        state_bytes=law.state_bytes(groups, master),
        step_temporary_bytes=law.step_temporary_bytes(groups, master),
        largest_tensor=max((group.elements for group in groups), default=0),
        block_parameters=block.parameters,
        embedding_parameters=model.embedding_parameters + model.head_parameters,
        layers=len(model.layers),
        compute_bytes=ITEM_BYTES[compute],
        accumulates=accumulates,
        offload=place.offload,
        offload_to=place.offload_to,
        buckets=buckets,
        trained=groups,
        frozen=() if everything else groups_of(model, FULL),
        head_parameters=model.vocabulary * (model.embedding_size or model.hidden_size),
        tied=model.tied,
        recomputes=checkpointing,
    )


@lru_cache(maxsize=16384)
def _resident(kind: str, job: Job, phase: Phase) -> Resident:
    return find_law("parallelism", PARALLELISMS, kind).resident(job, phase)


def estimate_memory(model: ModelSpec, recipe: Recipe, device: Device) -> Memory:
    """The moments of one step of `recipe` on one GPU of kind `device`.

    Raises:
        BadInput: the recipe names a technique or a target that does not exist.
    """
    kind, job, walked = recipe.parallelism.kind, job_of(model, recipe), walk(model, recipe)
    workspace = cublas_workspace_bytes(device)
    loaded = _resident(kind, job, "loaded")
    moments = tuple(
        _moment(name, phase, _resident(kind, job, phase), workspace, alive, gradient_share)
        for name, phase, alive, gradient_share in _alive(model, recipe, walked, job)
    )
    if loaded.preparation is not None:
        moments = (_moment(SHARDING, "loaded", loaded, loaded.preparation, _Alive(), 0.0), *moments)
    optimizer = find_law("optimizer", OPTIMIZERS, recipe.optimizer)
    managed = optimizer.managed_bytes(trainable_groups(model, recipe), job.trainable_bytes_each)
    return Memory(
        moments=moments,
        loaded_bytes=loaded.weights + loaded.adapter + loaded.optimizer + loaded.communication,
        evaluation=_evaluation(model, recipe, _resident(kind, job, "loss"), workspace),
        embedding_bytes=2 * model.vocabulary * model.hidden_size * job.trainable_bytes_each,
        managed_bytes=managed,
    )


def _evaluation(model: ModelSpec, recipe: Recipe, resident: Resident, workspace: int) -> Moment | None:
    """A forward pass without gradients over that batch: one block at a time, then head and loss."""
    if recipe.evaluation_batch is None:
        return None
    # Liger's loss is for training: it makes whole logits elsewhere (0.8.5, skip_logits).
    evaluated = replace(recipe, micro_batch=recipe.evaluation_batch, gradient_checkpointing=True, loss="plain")
    walked = walk(model, evaluated)
    block, head = max(one.footprint.forward_peak for one in walked.blocks), walked.head.footprint.forward_peak
    alive = _Alive(activations=block) if block > head else _Alive(activations=walked.stream_bytes, logits=head)
    return _moment("evaluation", "loss", resident, workspace, alive, 0.0)


@dataclass(frozen=True, slots=True)
class _Alive:
    """What the passes themselves hold at a moment."""

    activations: int = 0
    logits: int = 0
    workspace: int = 0
    gradients: int = 0
    """Of weights, beyond what the phase's share covers."""
    reduces: bool = True
    """Whether a bucket of gradients is full, and on its way to the other ranks."""


def _alive(model: ModelSpec, recipe: Recipe, walked: Walk, job: Job) -> Iterator[tuple[str, Phase, _Alive, float]]:
    """Each moment: its name, its phase, what the passes hold, and the share of its phase's gradients that exist."""
    checkpointing, stream = recipe.gradient_checkpointing, walked.stream_bytes
    head, last = walked.head.footprint, walked.blocks[walked.kinds[-1]].footprint
    kept = walked.handed_to(walked.layers) + walked.pinned if checkpointing else walked.kept + stream
    kept += walked.embedding_kept
    casts = walked.cached_casts if checkpointing else 0
    own = stream if walked.layers > 1 else walked.embedded_bytes
    before_last = kept - (own + last.pinned if checkpointing else last.kept)
    other_casts = casts - (last.cached_casts if checkpointing else 0)
    yield "forward pass of the last block", "loss", _Alive(before_last + last.passing_peak, 0, other_casts), 1.0
    yield FORWARD_END, "loss", _Alive(kept, head.forward_peak, casts), 1.0
    yield "start of the backward pass", "loss", _Alive(kept, head.backward_peak), 1.0
    yield from _blocks_alive(model, recipe, walked, job)
    yield from _embedding_alive(model, recipe, stream, job)
    yield "optimizer step", "step", _Alive(), 1.0


def _embedding_alive(
    model: ModelSpec, recipe: Recipe, stream: int, job: Job
) -> Iterator[tuple[str, Phase, _Alive, float]]:
    """A tied embedding's gradient is added to the head's, and both to that of earlier micro-batches. DeepSpeed keeps
    those apart, and reduces the last full bucket when the embedding's gradient is summed, which no longer fits."""
    shards = recipe.parallelism.kind in REDUCED_BY_BUCKET
    sums = int(model.tied) + (0 if shards else int(job.accumulates) + int(_sums_apart(model, recipe)))
    again = _embedding_bytes(model, job) * sums
    yield "gradient of the embedding", "backward", _Alive(stream, 0, 0, again, reduces=not shards), 1.0
    if shards:
        yield "reduction of the last bucket", "backward", _Alive(stream), 1.0


def _sums_apart(model: ModelSpec, recipe: Recipe) -> bool:
    """Whether a tied embedding's two gradients are summed into a third tensor: the head's is then a transposed view,
    which autograd does not add to in place (as recorded on a Llama 3.2 1B). Where autocast copied the weight, or the
    loss has its own head, it is a tensor of its own."""
    own = recipe.trainer == "transformers" and recipe.loss == "plain" and recipe.weights == recipe.compute
    return model.tied and own and recipe.parallelism.kind in ("none", "ddp")


def _blocks_alive(
    model: ModelSpec, recipe: Recipe, walked: Walk, job: Job
) -> Iterator[tuple[str, Phase, _Alive, float]]:
    """The backward pass of the last block and of the first of each kind: all later blocks have their gradients."""
    checkpointing, stream, everything = recipe.gradient_checkpointing, walked.stream_bytes, not job.adapter
    trained = max(1, job.trainable_parameters * job.trainable_bytes_each)
    head = model.vocabulary * model.hidden_size * job.trainable_bytes_each if everything else 0
    inside = trained - head - (0 if model.tied else _embedding_bytes(model, job))
    alone = recipe.parallelism.kind in ("none", "ddp")
    # Beside the gradient of a tied head, which waits for the embedding's.
    waiting = head if model.tied and job.accumulates and alone else 0
    reduced = _reduced_in(walked, recipe, job, head) if recipe.parallelism.kind in REDUCED_BY_BUCKET else []
    for layer in dict.fromkeys((walked.layers - 1, *walked.firsts, *reduced[:1], *reduced[-1:])):
        block = (walked.blocks[walked.kinds[layer]] if layer else walked.first).footprint
        made = block.accumulating_peak if job.accumulates else block.growing_peak
        working = max(made if alone else block.backward_peak, block.recompute_peak)
        before = walked.handed_to(layer) + walked.pinned * layer // walked.layers
        before = walked.embedding_kept + (before if checkpointing else walked.kept_before(layer) + stream)
        start = layer + 1 if alone else layer
        later = walked.parameters_from[start] / walked.parameters_from[0] if everything else 1 - start / walked.layers
        share = (head + inside * later) / trained
        alive = _Alive(before + working, 0, 0, waiting, reduces=layer in reduced)
        yield _block_moment(layer, walked.layers), "backward", alive, share


def _reduced_in(walked: Walk, recipe: Recipe, job: Job, head_bytes: int) -> list[int]:
    """The blocks in whose backward pass a bucket of gradients fills, last first. Of adapters none does: what they have
    is reduced when the passes are over."""
    if job.adapter:
        return []
    size, head = recipe.buckets.reduce_elements, 0 if job.tied else head_bytes // job.trainable_bytes_each
    made = [(head + elements) // size for elements in walked.parameters_from]
    return [layer for layer in reversed(range(walked.layers)) if made[layer] > made[layer + 1]]


def _block_moment(layer: int, layers: int) -> str:
    if 0 < layer < layers - 1:
        return f"backward pass of block {layer + 1}"
    return f"backward pass of the {'first' if not layer and layers > 1 else 'last'} block"


def _embedding_bytes(model: ModelSpec, job: Job) -> int:
    """Gradients of the embedding and of learned positions."""
    return 0 if job.adapter else model.embedding_parameters * job.trainable_bytes_each


def _moment(name: str, phase: Phase, resident: Resident, cublas: int, alive: _Alive, gradient_share: float) -> Moment:
    return Moment(
        name=name,
        phase=phase,
        terms={
            "weights": resident.weights,
            "adapter": resident.adapter,
            "gradients": round(resident.gradients * gradient_share) + resident.gradient_buffers + alive.gradients,
            "optimizer": resident.optimizer,
            "activations": alive.activations,
            "logits": alive.logits,
            "workspace": cublas + resident.workspace + alive.workspace,
            "communication": resident.communication
            - (0 if alive.reduces else resident.reducing)
            + (resident.forward_only if name == FORWARD_END else 0),
        },
    )
