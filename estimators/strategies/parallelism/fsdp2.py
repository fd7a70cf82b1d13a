"""FSDP2 (torch's fully_shard through accelerate): float32 shards of what is trained, gathered in 16 bits by block.

Sources: torch 2.13 distributed/fsdp/_fully_shard/ and accelerate 1.15 utils/fsdp_utils.py (fsdp2_prepare_model):
- Trained tensors are cast to float32 before they are cut along their first dimension, frozen ones stay as loaded (older
  versions cast those too: accelerate#3474, #3844). Optimizer states and sharded gradients are float32.
- Each block is one unit; the embedding is another, and final norm and head are one that stays gathered from the end of
  the forward pass on. A tied embedding belongs to that unit and stays gathered throughout.
- `foreach_all_gather` fills a flat buffer and copies it out; in the forward pass it outlives the copy by one unit, in
  the backward pass the next unit's is gathered while a block runs. `foreach_reduce` copies a unit's gradients into a
  flat buffer that lives until the next unit's, and casts the reduced part to float32.
- `_post_forward` of the root frees the last flat buffer when the model returns its loss, so the backward pass of the
  loss runs beside the gathered head alone.
- accelerate's `_prepare_fsdp2` never wraps the model's forward in autocast: the policy's 16-bit weights set the types.
- `fsdp2_prepare_model` holds the whole model by its `state_dict` until every unit is cut. Where the model was built on
  the GPU, whole and shards lie there together; built on the CPU (`from_pretrained` without a device map), they do not.
- While gradients accumulate the Trainer runs under `no_sync`: they stay whole, in 16 bits, until the last micro-batch.
- CPUOffloadPolicy keeps weights, gradients and states in host memory; pinned blocks are powers of two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from estimators.strategies.axes import Exchange, Job, Needs, ParameterGroup, Phase, Resident
from estimators.strategies.parallelism.offload import pinned_bytes
from estimators.strategies.parallelism.shards import MASTER_BYTES, row_parts, states_each, trained_in_block

# accelerate leaves integer-stored 4-bit weights out of the sharding, so nothing of the base would be shared out; 8-bit
# ones lose their class as DTensors. bitsandbytes' optimizers and Adafactor know no DTensor.
NEEDS = Needs(optimizers=("adamw_torch", "adamw_torch_fused", "sgd"), quantizations=("none",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fsdp2:
    name: str = "fsdp2"
    needs: Needs = NEEDS

    def resident(self, job: Job, phase: Phase) -> Resident:
        part, on_host = row_parts(job.trained, job.devices), bool(job.offload)
        base, adapter = (_frozen_bytes(job), part * MASTER_BYTES) if job.adapter else (part * MASTER_BYTES, 0)
        if on_host:
            base = adapter = 0
        if phase == "loaded":
            whole = job.trainable_parameters * (MASTER_BYTES if job.adapter else job.trainable_bytes_loaded)
            upcast = job.trainable_parameters * MASTER_BYTES - whole
            return Resident(
                weights=job.weights_bytes,
                adapter=whole if job.adapter else 0,
                preparation=upcast + base + adapter,
            )
        earlier = job.trainable_parameters * job.compute_bytes if job.accumulates and phase != "step" else 0
        made = 0 if on_host or phase == "loss" else part * MASTER_BYTES
        return Resident(
            weights=base,
            adapter=adapter,
            gradients=max(0, made - earlier),
            gradient_buffers=earlier,
            optimizer=0 if on_host else part * states_each(job),
            workspace=job.step_temporary_bytes // job.devices if phase == "step" and not on_host else 0,
            communication=_communication(job, phase) if job.devices > 1 or on_host else 0,
            forward_only=_last_flat_buffer(job) if phase == "loss" and job.devices > 1 else 0,
        )

    def host_bytes(self, job: Job) -> int:
        if not job.offload:
            return 0
        part = row_parts(job.trained, job.devices)
        frozen_each = -(-job.weights_bytes // max(1, sum(group.parameters for group in job.frozen)))
        trained = _pinned(job.trained, job.devices, MASTER_BYTES)
        frozen = _pinned(job.frozen, job.devices, frozen_each)
        return job.devices * (2 * trained + frozen + part * states_each(job))

    def disk_bytes(self, job: Job) -> int:
        return 0

    def exchange(self, job: Job) -> Exchange:
        many = job.devices > 1
        whole = sum(group.parameters for group in (*job.trained, *job.frozen))
        gathered = 2 * whole - job.head_parameters
        reduced = float(job.trainable_parameters * job.compute_bytes) if many else 0.0
        part = row_parts(job.trained, job.devices) if job.offload else 0
        frozen = _frozen_bytes(job) if job.offload else 0
        units = job.layers + (1 if job.tied else 2)
        return Exchange(
            micro_gathered=float(gathered * job.compute_bytes) if many else 0.0,
            scattered=reduced,
            micro_calls=2 * units - 1 if many else 0,
            calls=units if many else 0,
            to_host=float(part * MASTER_BYTES),
            micro_from_host=2.0 * (part * MASTER_BYTES + frozen),
            host_optimizer_parameters=float(part),
            # Flat buffers filled and copied out, gradients copied in.
            micro_copied=4.0 * (gathered + job.trainable_parameters) * job.compute_bytes if many else 0.0,
        )


def _pinned(groups: Sequence[ParameterGroup], devices: int, item_bytes: int) -> int:
    """Host memory of one rank's parts, each tensor's in a pinned block of its own."""
    return sum(group.count * pinned_bytes(row_parts([group], devices) // group.count * item_bytes) for group in groups)


def _frozen_bytes(job: Job) -> int:
    """One rank's part of the frozen base, in the type it was loaded in."""
    whole = sum(group.parameters for group in job.frozen)
    return job.weights_bytes * row_parts(job.frozen, job.devices) // max(1, whole)


def _communication(job: Job, phase: Phase) -> int:
    block, reduced = job.block_parameters, trained_in_block(job)
    if phase == "loss":
        return job.head_parameters * job.compute_bytes
    if phase != "backward":
        return 0
    gradients = reduced + (0 if job.accumulates else reduced)
    tied = job.head_parameters * (1 if job.adapter else 2) if job.tied else 0
    return (2 * block + gradients + tied) * job.compute_bytes


def _last_flat_buffer(job: Job) -> int:
    """The head's own, or the last block's where a tied head was gathered at the start."""
    return (job.block_parameters if job.tied else job.head_parameters) * job.compute_bytes
