"""What sharding reserves beyond the peak: pools of side streams, and pieces of the step that fit into no freed block.

torch's allocator keeps free blocks by stream and never joins segments, so two kinds of memory stay beside a peak of the
passes on the main stream:
- what communication allocates while another stream is current: DeepSpeed 0.19.8 stage_1_and_2.py (`average_tensor` and
  `copy_grads_in_partition` under the reduction stream), stage3.py and partitioned_param_coordinator.py (reduce and
  gather streams; the head, gathered while the last blocks still wait, is the gather pool's peak), torch 2.13
  _fully_shard (copy-in and reduce-scatter streams);
- what the optimizer step allocates in pieces larger than any that the passes free: the rank's gradients flattened, and
  cast to float32.
Evidence: a replay of the allocator over ZeRO-2 of Llama 3.2 3B with two micro-batches ends at 46,894 MiB, the run at
46,944. Under ZeRO-2 offload of Llama 3.2 1B the two ranks' reserved peaks differ by 1,967,128,576 B, which is the
float64 copy of the embedding, owned by one, less that of a 2048 × 8192 matrix, owned by the other.
ZeRO-3 leaves one block more: `_create_fp32_partitions` casts each sub-group and clones the cast, sub-groups differ a
little in size, and a replay over the 7B row ends with one block of a sub-group's float32 size too many.
Not covered: freed blocks that wait for another stream (`record_stream`), of which the host can run buckets ahead.
"""

from estimators.strategies.axes import Job
from estimators.strategies.parallelism.shards import MASTER_BYTES, flat_part, row_parts, tensor_parts, trained_in_block
from estimators.strategies.parallelism.zero import NORM_BYTES
from estimators.strategies.parallelism.zero3 import live_elements, sub_group


def reserved_extra_bytes(kind: str, job: Job) -> int:
    """Bytes in side streams' pools that are free at a peak of the main stream."""
    # With one rank a bucket is one slice, which `flatten` views and does not copy.
    bucket = min(job.buckets.reduce_elements, job.trainable_parameters) * job.compute_bytes if job.devices > 1 else 0
    if kind in ("zero1", "zero2"):
        part = flat_part(job.trainable_parameters, job.devices)
        own = NORM_BYTES * min(job.largest_tensor, part) if "optimizer" in job.offload else part * job.compute_bytes
        return bucket + own
    if kind == "zero3":
        return bucket + _gather_pool(job) + _zero3_step(job)
    if kind == "fsdp2" and job.devices > 1:
        reduced = trained_in_block(job) * job.compute_bytes // job.devices
        own = 0 if job.offload else row_parts(job.trained, job.devices) * MASTER_BYTES
        return max(2 * job.block_parameters, job.head_parameters) * job.compute_bytes + reduced + own
    return 0


def step_pieces(kind: str, job: Job) -> tuple[int, ...]:
    """Sizes of the tensors that the optimizer step allocates on the main stream."""
    if "optimizer" in job.offload or not kind.startswith("zero"):
        return ()
    if kind == "zero3":
        elements = sub_group(job, tensor_parts(job.trained, job.devices))
    else:
        elements = flat_part(job.trainable_parameters, job.devices)
    return elements * job.compute_bytes, elements * MASTER_BYTES


def _gather_pool(job: Job) -> int:
    """The gather stream's peak less what is gathered at the loss."""
    if job.devices == 1:
        return 0
    whole = sum(group.parameters for group in (*job.trained, *job.frozen))
    peak = min(whole, job.buckets.live_elements + job.head_parameters)
    return max(0, peak - live_elements(job, "loss")) * job.compute_bytes


def _zero3_step(job: Job) -> int:
    """Offloaded, the largest part's norm under the reduction stream; else what casting the sub-groups left behind."""
    if "optimizer" in job.offload:
        return NORM_BYTES * -(-job.largest_tensor // job.devices)
    part = tensor_parts(job.trained, job.devices)
    group = sub_group(job, part)
    return MASTER_BYTES * group if part > group else 0
