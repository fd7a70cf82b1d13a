"""From what torch's tensors take to what the process takes: the allocator's slack, the CUDA context, the libraries.

Evidence: 65 runs on an H200 in profiles/measurements. Beyond the context, cuBLAS and torch's kernels take 126 MiB
there in every run, flash attention 16 MiB more, bitsandbytes' 8-bit kernels 64 MiB more, to the MiB.
"""

from functools import lru_cache

from estimators.hardware import Device
from estimators.memory import SHARDING, Memory, job_of
from estimators.model import ModelSpec
from estimators.recipe import Recipe
from estimators.strategies.parallelism.streams import reserved_extra_bytes, step_pieces
from estimators.units import MIB
from estimators.walk import Walk, walk

CONTEXT_BYTES_PER_THREAD = 2388
"""Local memory that the driver reserves for each thread that can be resident: 645,464,064 B on an H200 (132 × 2048),
and within 15 % of the 107, 426 and 555 MiB reported for cards of 34, 142 and 188 multiprocessors of 1536 threads."""
LIBRARY_BYTES, FLASH_BYTES, INT8_BYTES = 126 * MIB, 16 * MIB, 64 * MIB

SLACK_OF_BLOCK, SLACK_OF_LOSS, SLACK_OF_EMBEDDING = 0.40, 0.25, 0.20
"""Cached blocks that the peak cannot use: a block's working set is freed before the loss asks for larger pieces, and
the loss's pieces before the optimizer's. Shares of those sets, chosen so that the interval of 95 % of all measured runs
is narrowest; the allocator's replay (the dry run) replaces them."""


def threads_per_multiprocessor(device: Device) -> int:
    """Source: CUDA C programming guide, table of technical specifications per compute capability."""
    if device.compute_capability in ((7, 5),):
        return 1024
    return 2048 if device.compute_capability in ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0), (10, 3)) else 1536


def context_bytes(device: Device) -> int:
    """The CUDA context alone."""
    return device.multiprocessors * threads_per_multiprocessor(device) * CONTEXT_BYTES_PER_THREAD


def outside_bytes(device: Device, recipe: Recipe) -> int:
    """What the process holds beside torch's allocator: context, libraries and kernels, without communication."""
    flash = FLASH_BYTES if recipe.attention != "eager" and recipe.compute != "float32" else 0
    int8 = INT8_BYTES if recipe.quantization == "int8" else 0
    return context_bytes(device) + LIBRARY_BYTES + flash + int8


def slack_bytes(model: ModelSpec, recipe: Recipe, memory: Memory) -> int:
    """Reserved less allocated at the peak."""
    walked = walk(model, recipe)
    block = max(max(one.footprint.backward_peak, one.footprint.forward_peak) for one in walked.blocks)
    trained = recipe.adapter.trains_everything
    embedding = memory.embedding_bytes if trained else 0
    loss = walked.head.footprint.backward_peak
    # Two runs that asked for expandable segments had as much slack as others: no saving is promised for them.
    alone = round(SLACK_OF_BLOCK * block + SLACK_OF_LOSS * loss + SLACK_OF_EMBEDDING * embedding)
    if recipe.parallelism.kind in ("none", "ddp"):
        return alone
    return max(_sharded_reserved(model, recipe, memory, walked, alone) - memory.allocated_bytes, 0)


def _sharded_reserved(model: ModelSpec, recipe: Recipe, memory: Memory, walked: Walk, alone: int) -> int:
    """Reserved bytes where weights or states are sharded: the largest of what loading and the passes lead to."""
    kind, job = recipe.parallelism.kind, job_of(model, recipe)
    side, largest = reserved_extra_bytes(kind, job), _largest_piece(walked)
    pieces = 0 if recipe.expandable_segments else sum(size for size in step_pieces(kind, job) if size > largest)
    totals = []
    for moment in memory.moments:
        total = moment.total_bytes
        if moment.name == SHARDING:
            # The whole model's blocks are free afterwards, but none is larger than its largest tensor.
            unusable = largest > max(group.elements for group in (*job.trained, *job.frozen)) * job.compute_bytes
            totals.append(total + side + (walked.head.footprint.backward_peak if unusable else 0))
        elif moment.phase == "loss":
            totals.append(total + alone + pieces + side)
        elif moment.phase == "backward":  # The side streams' memory is in use, and counted.
            totals.append(total + alone + pieces)
        else:
            totals.append(total + alone)
    return max(totals)


@lru_cache(maxsize=4096)
def _largest_piece(walked: Walk) -> int:
    """The largest tensor that a pass allocates and frees."""
    return max(
        max(node.output.size_bytes, node.temporary)
        for stretch in (*walked.blocks, walked.head)
        for node in stretch.nodes
    )
