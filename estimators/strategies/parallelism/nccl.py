"""Device memory that communication takes outside torch's allocator.

Evidence: two H200s, torch 2.11, DeepSpeed 0.19.8, NVLS off, device memory beyond what the allocator reserved, against
the same on one GPU (764 MiB): DDP +846 MiB, FSDP2 +842, ZeRO-1 and ZeRO-2 +1334, ZeRO-3 +1044, and with offload 18
more each. The same in every row of a kind, whatever the model. ZeRO-2 with offload on one GPU: +990.

Reading: NCCL opens a pair of connections to each neighbour on every channel, with buffers for its three protocols, each
side rounded up to 2 MiB: 512 KiB (LL) + 4.7 MiB (LL128) + 4 MiB (simple), in all 12 MiB a pair. On 24 channels that is
288 MiB a communicator, and ZeRO-2 differs from ZeRO-3 by 290: it reduces in a clone of the world group (DeepSpeed
utils/groups.py, `_clone_world_group`) and synchronises in the world group itself; ZeRO-3 uses the world group for both.
What is left is the same for each library, and is what the first collective loads: kernels and their stacks. DeepSpeed
opens its communicators on one GPU too, where they have no neighbour.
Unmeasured: more than two GPUs, links other than NVLink (fewer channels, so less).
"""

from estimators.units import MIB

CHANNELS = 24
"""NCCL's choice for two Hopper GPUs on NVLink."""
PAIR_BYTES = 12 * MIB
FIRST_USE_BYTES = 558 * MIB
DEEPSPEED_BYTES = 198 * MIB
"""Beside the communicators: its own kernels and collectives."""
OFFLOAD_BYTES = 18 * MIB
"""What DeepSpeed's offload loads beside: copies and norms on the GPU."""
LONELY_BYTES = 108 * MIB
"""A communicator of one rank."""
COMMUNICATORS = {"ddp": 1, "fsdp2": 1, "zero1": 2, "zero2": 2, "zero3": 1}
SPREAD = 0.3
"""Relative error to expect where nothing was measured."""


def nccl_bytes(kind: str, devices: int, offloads: bool = False) -> int:
    """What one rank's communicators and their kernels take, context not counted."""
    deepspeed = kind.startswith("zero")
    if kind == "none" or (devices == 1 and not deepspeed):
        return 0
    # Of two ranks each is the other's neighbour on both sides; among more, trees run against the rings' direction too.
    pairs = 1 if devices == 2 else 2
    each = CHANNELS * pairs * PAIR_BYTES if devices > 1 else LONELY_BYTES
    own = DEEPSPEED_BYTES + (OFFLOAD_BYTES if offloads else 0) if deepspeed else 0
    return FIRST_USE_BYTES + own + COMMUNICATORS[kind] * each
