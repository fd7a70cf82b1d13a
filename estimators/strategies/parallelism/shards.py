"""How tensors are cut into equal parts, one a rank, and what the padding costs."""

from collections.abc import Sequence

from estimators.strategies.axes import Job, ParameterGroup

MASTER_BYTES = 4
"""A float32 weight, which the optimizer steps in place of the 16-bit one."""
FLAT_ALIGNMENT = 2
"""Elements to which DeepSpeed pads each rank's part of a flat buffer (`nccl_start_alignment_factor`)."""


def flat_part(elements: int, devices: int) -> int:
    """Elements of one rank's part of all tensors laid end to end (ZeRO-1 and ZeRO-2)."""
    return -(-elements // (FLAT_ALIGNMENT * devices)) * FLAT_ALIGNMENT


def tensor_parts(groups: Sequence[ParameterGroup], devices: int) -> int:
    """Elements of one rank's parts where every tensor is cut by itself (ZeRO-3)."""
    return sum(group.count * -(-group.elements // devices) for group in groups)


def row_parts(groups: Sequence[ParameterGroup], devices: int) -> int:
    """Elements of the first rank's parts where every tensor is cut along its first dimension (FSDP2)."""
    return sum(group.count * group.columns * -(-group.rows // devices) for group in groups)


def states_each(job: Job) -> int:
    """Bytes of optimizer state for one trained parameter: 8 for Adam's two float32 moments."""
    return job.state_bytes // max(1, job.trainable_parameters)


def largest_in_block(job: Job) -> int:
    """Elements of a block's largest trained tensor: embedding and head occur once, a block's in all layers."""
    return max((group.elements for group in job.trained if group.count >= job.layers), default=0)


def trained_in_block(job: Job) -> int:
    """Trained elements of one block."""
    return -(-job.trainable_parameters // job.layers) if job.adapter else job.block_parameters
