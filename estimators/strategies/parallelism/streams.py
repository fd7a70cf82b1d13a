"""Reserved memory that the main stream cannot reuse: what communication allocates while another stream is current.

torch's allocator keeps free blocks by stream, so at a peak on the main stream these pools are reserved beside it.
Sources: DeepSpeed 0.19.8 stage_1_and_2.py (`reduce_ipg_grads` and `average_tensor` run under the reduction stream),
stage3.py and partitioned_param_coordinator.py (reduce and gather streams), torch 2.13 _fully_shard (copy-in and
reduce-scatter streams).
Evidence: under ZeRO-2 offload of Llama 3.2 1B the two ranks' reserved peaks differ by 1,967,128,576 B, which is the
float64 copy of the embedding, owned by one, less that of a 2048 × 8192 matrix, owned by the other.
ZeRO-3 leaves one block more: `_create_fp32_partitions` casts each sub-group and clones the cast, sub-groups differ a
little in size, and a replay of the allocator over the 7B row's start, passes and steps (allocated peak right to 0.3 MB)
ends with one block of a sub-group's float32 size too many.
Not covered: freed blocks that wait for another stream (`record_stream`), of which the host can run buckets ahead. The
rows' gaps are 5.9 (ZeRO-2), 5.9 (offloaded), 13.8 GB (ZeRO-3, 7B); this gives 2.2, 3.1 and 6.0, and a single GPU's own
slack on these models is about 2, so ZeRO-3's stays short by 6 GB.
"""

from estimators.strategies.axes import Job
from estimators.strategies.parallelism.shards import MASTER_BYTES, flat_part, row_parts, tensor_parts, trained_in_block
from estimators.strategies.parallelism.zero import NORM_BYTES
from estimators.strategies.parallelism.zero3 import kept_over_the_turn, sub_group


def reserved_extra_bytes(kind: str, job: Job) -> int:
    """Bytes in side streams' pools that are free at a peak of the main stream."""
    if job.devices == 1:
        return 0
    bucket = min(job.buckets.reduce_elements, job.trainable_parameters) * job.compute_bytes
    if kind in ("zero1", "zero2"):
        part = flat_part(job.trainable_parameters, job.devices)
        own = NORM_BYTES * min(job.largest_tensor, part) if "optimizer" in job.offload else part * job.compute_bytes
        return bucket + own
    if kind == "zero3":
        part, gathered = tensor_parts(job.trained, job.devices), kept_over_the_turn(job) + job.buckets.prefetch_elements
        group = 0 if "optimizer" in job.offload else sub_group(job, part)
        return bucket + gathered * job.compute_bytes + (MASTER_BYTES * group if part > group else 0)
    if kind == "fsdp2":
        reduced = trained_in_block(job) * job.compute_bytes // job.devices
        own = 0 if job.offload else row_parts(job.trained, job.devices) * MASTER_BYTES
        return 2 * job.block_parameters * job.compute_bytes + reduced + own
    return 0
