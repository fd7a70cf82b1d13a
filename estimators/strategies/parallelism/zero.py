"""ZeRO stages 1 and 2: each rank holds all 16-bit weights and its part of gradients, float32 weights and states.

Sources: arXiv 1910.02054 sections 5 and 7 for the idea; DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py for what is
allocated, with `bf16`, `overlap_comm` and `contiguous_gradients` on and gradients accumulated in 16 bits, their default
there:
- `__init__`: a float32 copy of the rank's part of each flat group; frozen weights are in no group and have no copy.
- `setup_buckets`: two reduce buckets of full size, whatever is trained, from the first gradient of a backward pass to
  its epilogue. Stage 1 runs the epilogue at the last micro-batch only, so there they stay in between.
- `allreduce_bucket`: a bucket that several ranks own parts of is flattened into a third buffer. It is all-reduced
  (`use_multi_rank_bucket_allreduce`), so the links carry twice what the paper's reduce-scatter would.
- `copy_grads_in_partition`: one buffer for the rank's gradients, a second one while an earlier micro-batch's exist.
- `average_tensor` makes the main stream wait for the reduction stream and `allreduce_and_copy` the host for the GPU, so
  little of the reduction is hidden.
- `step`: the part's gradients flattened once more and cast to float32; before that, each tensor's norm in float64.
- Offload: a GPU buffer as large as the largest tensor; norms are taken in the backward pass; the rest is on the host.
"""

from dataclasses import dataclass

from estimators.strategies.axes import Exchange, Job, Needs, Phase, Resident
from estimators.strategies.parallelism.offload import flat_host_bytes
from estimators.strategies.parallelism.shards import MASTER_BYTES, flat_part, largest_in_block, states_each

REDUCE_BUCKETS = 2
NORM_BYTES = 8
READ_AND_WRITE = 2
STEP_COPIES = 42
"""Bytes that a step moves beside Adam's own for each parameter of the rank: norm in float64 18, flattening 4, cast to
float32 6, unscaling 8, weights back to 16 bits 6."""
ADAMW = ("adamw_torch", "adamw_torch_fused")
"""DeepSpeed's FusedAdam, or its CPUAdam where offloaded."""
NEEDS = Needs(optimizers=ADAMW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Zero:
    name: str
    partitions_gradients: bool
    """Stage 2."""
    needs: Needs = NEEDS

    def resident(self, job: Job, phase: Phase) -> Resident:
        trained = job.trainable_parameters * job.compute_bytes if job.adapter else 0
        if phase == "loaded":
            return Resident(weights=job.weights_bytes, adapter=trained)
        part = flat_part(job.trainable_parameters, job.devices)
        made, earlier = self._gradients(job, phase, part)
        return Resident(
            weights=job.weights_bytes,
            adapter=trained,
            gradients=made,
            gradient_buffers=earlier,
            optimizer=0 if "optimizer" in job.offload else part * (MASTER_BYTES + states_each(job)),
            workspace=_workspace(job, phase, part),
            communication=self._communication(job, phase),
            reducing=_flattened(job) * job.compute_bytes if phase == "backward" else 0,
        )

    def _gradients(self, job: Job, phase: Phase, part: int) -> tuple[int, int]:
        """Gradients made at a phase, and those kept from earlier micro-batches."""
        own = 0 if "optimizer" in job.offload else part * job.compute_bytes
        if phase == "step":
            return own, 0
        if job.accumulates and not self.partitions_gradients:
            return 0, job.trainable_parameters * job.compute_bytes
        return own if phase == "backward" else 0, own if job.accumulates else 0

    def _communication(self, job: Job, phase: Phase) -> int:
        buckets = REDUCE_BUCKETS * job.buckets.reduce_elements
        if phase == "backward":
            waiting = job.head_parameters if job.tied and not job.adapter else 0
            return (buckets + _flattened(job) + waiting) * job.compute_bytes
        stay = phase == "loss" and job.accumulates and not self.partitions_gradients
        # Offloaded, the epilogue takes the last tensors' norms, the embedding's too, before it frees the buckets.
        stay |= phase == "step" and "optimizer" in job.offload
        return buckets * job.compute_bytes if stay else 0

    def host_bytes(self, job: Job) -> int:
        part = flat_part(job.trainable_parameters, job.devices)
        return job.devices * flat_host_bytes(job, part) if "optimizer" in job.offload else 0

    def disk_bytes(self, job: Job) -> int:
        return 0

    def exchange(self, job: Job) -> Exchange:
        weights = float(job.trainable_parameters * job.compute_bytes) if job.devices > 1 else 0.0
        buckets = -(-job.trainable_parameters // job.buckets.reduce_elements) if job.devices > 1 else 0
        part = flat_part(job.trainable_parameters, job.devices) if "optimizer" in job.offload else 0
        each_micro = self.partitions_gradients
        again = float(part * job.compute_bytes) if each_micro and job.accumulates else 0.0
        return Exchange(
            # An all-reduce is a reduce-scatter and an all-gather.
            micro_reduced=weights if each_micro else 0.0,
            micro_gathered=weights if each_micro else 0.0,
            reduced=0.0 if each_micro else weights,
            gathered=weights,
            calls=bool(buckets) + (0 if each_micro else buckets),
            micro_calls=buckets if each_micro else 0,
            to_host=float(part * MASTER_BYTES),
            from_host=float(part * job.compute_bytes),
            micro_to_host=again,
            micro_from_host=again,
            host_optimizer_parameters=float(part),
            copied=float(STEP_COPIES * (0 if part else flat_part(job.trainable_parameters, job.devices))),
            micro_copied=_bucket_copies(job),
            overlaps=False,
        )


def _flattened(job: Job) -> int:
    """Elements of the third buffer, which a bucket that is full is flattened into."""
    return min(job.buckets.reduce_elements, job.trainable_parameters) if job.devices > 1 else 0


def _bucket_copies(job: Job) -> float:
    """Each gradient into the bucket and divided; flattened and put back; the rank's own once more."""
    moves = 2 + (2 if job.devices > 1 else 0) + 1 / job.devices
    return READ_AND_WRITE * moves * job.trainable_parameters * job.compute_bytes


def _workspace(job: Job, phase: Phase, part: int) -> int:
    tensor = {"backward": largest_in_block(job), "step": job.largest_tensor}.get(phase, 0)
    norm = NORM_BYTES * min(tensor, part)
    if "optimizer" in job.offload:
        return job.largest_tensor * job.compute_bytes + norm
    return max(norm, part * (job.compute_bytes + MASTER_BYTES)) if phase == "step" else 0
