"""ZeRO stage 3: weights are sharded too, and gathered module by module.

Sources: arXiv 1910.02054 section 5.3; DeepSpeed 0.19.8, with `bf16` on and its defaults elsewhere:
- runtime/zero/partition_parameters.py: every tensor is cut by itself and padded; small ones, up to the persistence
  threshold, stay whole between two optimizer steps; several gathered at once lie in a flat buffer and in copies.
- runtime/zero/stage3.py: one flat buffer for all gradients of the rank and one reduce bucket, there from the start;
  `__avg_scatter_grads` interleaves a bucket into a copy before it reduce-scatters it; the step goes by sub-groups, each
  with its gradients flattened in 16 bits and cast to float32. Frozen weights are sharded and have no float32 copy.
- runtime/zero/partitioned_param_coordinator.py: a module's weights are kept if they are used again within the reuse
  distance, counted in parameters along the recorded order of modules. So at the end of the forward pass the last blocks
  stay, and with checkpointing a block is gathered once for its second forward pass and its backward pass together.
- The same, `_fetch_sub_module_impl`: every module that is called fetches a prefetch bucket more, those without weights
  too (containers, activations, adapters' wrappers), so gathering runs ahead until `stage3_max_live_parameters` are
  there, and past it by the rest of the tensor that crosses the limit.
"""

from dataclasses import dataclass

from estimators.strategies.axes import Exchange, Job, Needs, Phase, Resident
from estimators.strategies.parallelism.offload import (
    optimizer_disk_bytes,
    optimizer_host_bytes,
    parameter_host_bytes,
)
from estimators.strategies.parallelism.shards import MASTER_BYTES, largest_in_block, states_each, tensor_parts
from estimators.strategies.parallelism.zero import ADAMW, NORM_BYTES, READ_AND_WRITE, STEP_COPIES

REUSE_ELEMENTS = 1_000_000_000
"""`stage3_max_reuse_distance`."""
NORM_CHUNK_ELEMENTS = 250_000_000
"""`_constant_buffered_norm2`, under offload."""


# A quantised base is loaded whole (transformers modeling_utils: no zero.Init where a quantiser is), and cutting 8-bit
# layers trains wrongly (bitsandbytes#1451); 4-bit ones need a floating storage type.
NEEDS = Needs(optimizers=ADAMW, quantizations=("none",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Zero3:
    name: str = "zero3"
    needs: Needs = NEEDS

    def resident(self, job: Job, phase: Phase) -> Resident:
        part, rest = tensor_parts(job.trained, job.devices), tensor_parts(job.frozen, job.devices)
        cut = job.compute_bytes * (0 if "parameters" in job.offload else 1)
        base, adapter = (rest * cut, part * cut) if job.adapter else (part * cut, 0)
        if phase == "loaded":
            return Resident(weights=base, adapter=adapter)
        stepped_by_host = "optimizer" in job.offload
        return Resident(
            weights=base,
            adapter=adapter,
            gradient_buffers=0 if stepped_by_host else part * job.compute_bytes,
            optimizer=0 if stepped_by_host else part * (MASTER_BYTES + states_each(job)),
            workspace=_workspace(job, phase, part),
            communication=_communication(job, phase),
            reducing=_interleaved(job) * job.compute_bytes if phase == "backward" else 0,
        )

    def host_bytes(self, job: Job) -> int:
        part = tensor_parts(job.trained, job.devices)
        optimizer = optimizer_host_bytes(job, part, sub_group(job, part)) if "optimizer" in job.offload else 0
        weights = parameter_host_bytes(job, part) if "parameters" in job.offload else 0
        return job.devices * (optimizer + weights)

    def disk_bytes(self, job: Job) -> int:
        if job.offload_to != "nvme":
            return 0
        part, rest = tensor_parts(job.trained, job.devices), tensor_parts(job.frozen, job.devices)
        optimizer = optimizer_disk_bytes(job, part) if "optimizer" in job.offload else 0
        weights = (part + rest) * job.compute_bytes if "parameters" in job.offload else 0
        return job.devices * (optimizer + weights)

    def exchange(self, job: Job) -> Exchange:
        many = job.devices > 1
        whole = sum(group.parameters for group in (*job.trained, *job.frozen))
        gathered = 2 * (whole - persistent_elements(job)) - kept_over_the_turn(job)
        reduces = -(-job.trainable_parameters // job.buckets.reduce_elements)
        return Exchange(
            micro_gathered=float(gathered * job.compute_bytes) if many else 0.0,
            micro_reduced=float(job.trainable_parameters * job.compute_bytes) if many else 0.0,
            gathered=float(persistent_elements(job) * job.compute_bytes) if many else 0.0,
            micro_calls=reduces + _gathers(job, gathered) if many else 0,
            calls=1 if many else 0,
            copied=float(STEP_COPIES * (0 if "optimizer" in job.offload else tensor_parts(job.trained, job.devices))),
            micro_copied=READ_AND_WRITE * 2.0 * (gathered + 2 * job.trainable_parameters) * job.compute_bytes,
            overlaps=True,
            **_host_traffic(job),
        )


def sub_group(job: Job, part: int) -> int:
    """Elements of the largest sub-group of a step: the tensor that crosses the limit still belongs to it."""
    squares = sum(group.count * group.elements**2 for group in job.trained)
    crossing = squares // (2 * max(1, job.trainable_parameters) * job.devices)
    return min(part, job.buckets.sub_group_elements + crossing)


def persistent_elements(job: Job) -> int:
    """Elements of the tensors that stay whole."""
    limit = job.buckets.persistence_elements
    return sum(group.parameters for group in (*job.trained, *job.frozen) if group.elements <= limit)


def kept_over_the_turn(job: Job) -> int:
    """Elements that stay gathered from forward to backward pass.

    Between a weight's use forward and its next use lie the parameters after it once, the head again, and each block
    behind it once more, or twice where blocks recompute.
    """
    reach = (REUSE_ELEMENTS + job.head_parameters) // 3 if job.recomputes else REUSE_ELEMENTS // 2
    whole = sum(group.parameters for group in (*job.trained, *job.frozen))
    return min(whole - persistent_elements(job), max(reach, job.head_parameters))


def live_elements(job: Job, phase: Phase) -> int:
    """Elements gathered at a phase: as many as may be live, and in the backward pass one bucket's copies beside it."""
    groups = (*job.trained, *job.frozen)
    whole, prefetched = sum(group.parameters for group in groups), job.buckets.prefetch_elements
    if not prefetched:
        kept = kept_over_the_turn(job)
        return kept if phase == "loss" else min(whole, max(kept - job.head_parameters, job.block_parameters))
    crossing = max((group.elements for group in groups if group.count >= job.layers), default=0) // 2
    live = min(whole, max(job.buckets.live_elements + crossing, job.head_parameters))
    return live if phase == "loss" else min(whole, live + prefetched)


def _interleaved(job: Job) -> int:
    """Elements of the copy that a full bucket is reduced from."""
    return min(job.buckets.reduce_elements, job.trainable_parameters)


def _communication(job: Job, phase: Phase) -> int:
    bucket = job.buckets.reduce_elements
    if phase == "step":
        return bucket * job.compute_bytes
    elsewhere = job.devices > 1 or "parameters" in job.offload
    gathered = live_elements(job, phase) + persistent_elements(job) if elsewhere else 0
    interleaved = _interleaved(job) if phase == "backward" else 0
    waiting = job.head_parameters if phase == "backward" and job.tied and not job.adapter else 0
    return (bucket + gathered + interleaved + waiting) * job.compute_bytes


def _workspace(job: Job, phase: Phase, part: int) -> int:
    tensor = {"backward": largest_in_block(job), "step": job.largest_tensor}.get(phase, 0)
    largest = -(-tensor // job.devices)
    if "optimizer" in job.offload:
        return largest * job.compute_bytes + NORM_BYTES * min(largest, NORM_CHUNK_ELEMENTS)
    if phase != "step":
        return 0
    return max(NORM_BYTES * largest, sub_group(job, part) * (job.compute_bytes + MASTER_BYTES))


def _gathers(job: Job, elements: int) -> int:
    """All-gathers of so many elements: one a tensor, or one a prefetch."""
    tensors = 2 * sum(group.count for group in (*job.trained, *job.frozen))
    return min(tensors, -(-elements // max(1, job.buckets.prefetch_elements)))


def _host_traffic(job: Job) -> dict[str, float]:
    part, rest = tensor_parts(job.trained, job.devices), tensor_parts(job.frozen, job.devices)
    nvme, traffic = job.offload_to == "nvme", dict.fromkeys(("micro_from_host", "micro_to_host"), 0.0)
    if "optimizer" in job.offload:
        gradients = float(part * job.compute_bytes)
        # A gradient goes to its host buffer and comes back for its norm; at the end of the step once more in float32.
        traffic["micro_to_host"] += gradients
        traffic["micro_from_host"] += gradients
        traffic["to_host"] = float(part * MASTER_BYTES)
        traffic["from_host"] = 0.0 if "parameters" in job.offload else gradients
        traffic["host_optimizer_parameters"] = float(part)
        traffic["disk"] = 2.0 * optimizer_disk_bytes(job, part) if nvme else 0.0
    if "parameters" in job.offload:
        weights = 2.0 * (part + rest) * job.compute_bytes
        traffic["micro_from_host"] += weights
        traffic["micro_disk"] = weights if nvme else 0.0
    return traffic
