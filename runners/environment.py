"""The command and the environment of a job's processes: settled before torch is imported, and without secrets."""

import os
from collections.abc import Mapping, Sequence

from estimators.hardware import Gpu
from estimators.recipe import Recipe
from estimators.strategies.attention.sdpa_no_cudnn import NAME as NO_CUDNN
from runners.host import usable_cores
from runners.job import Job

CARDS = "PLAN_CARDS"
"""The UUIDs of a job's cards, in the order of its ranks: CUDA_VISIBLE_DEVICES may hold numbers."""
_SECRET_NAMES = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS")
_READ_AT_IMPORT = (
    "CUDA", "NVIDIA", "PYTORCH", "TORCH", "NCCL", "OMP", "MKL", "BNB", "BITSANDBYTES", "HF", "TRANSFORMERS", "PYTHON",
    "LD", "PATH", "TRITON",
)  # fmt: skip
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
_ALLOCATOR = (ALLOCATOR, "PYTORCH_ALLOC_CONF")
"""The same variable under its old name, which every torch reads, and the one that it has from 2.10 on."""
CUDNN_LAST = "TORCH_CUDNN_SDPA_DEPRIORITIZED"


def needs_launcher(work: Job) -> bool:
    """Whether the job wants a process group, as several GPUs do, and DeepSpeed and FSDP on one."""
    return work.ranks > 1 or work.recipe.parallelism.kind != "none"


def command_of(child: list[str], work: Job) -> list[str]:
    """What runs the job's ranks, each of which runs `child`."""
    if not needs_launcher(work):
        return child
    launcher = [*child[:1], "-P", "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc-per-node={work.ranks}", "--no-python", *child]


def environment_of(
    work: Job, gpus: Sequence[Gpu], inherited: Mapping[str, str] = os.environ
) -> dict[str, str]:  # fmt: skip
    """The environment of the job's processes: ours without secrets, and what must be set before torch is imported."""
    kept = {name: value for name, value in inherited.items() if not _dropped(name)}
    threads = max((usable_cores() or 1) // work.ranks, 1)
    kept |= {
        **_visible(work, gpus),
        CARDS: ",".join(gpu.uuid or "" for gpu in gpus),
        "OMP_NUM_THREADS": str(threads),  # torchrun's own choice of 1 makes DeepSpeed's Adam on the CPU 8 × slower
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking whether there is a GPU does not touch it
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "WANDB_DISABLED": "true",
    }
    kept |= torch_environment(work.recipe)
    return kept | (dict.fromkeys(_ALLOCATOR, kept[ALLOCATOR]) if ALLOCATOR in kept else {})


def torch_environment(recipe: Recipe) -> dict[str, str]:
    """What torch has of a recipe from its environment alone, by names that every torch reads."""
    allocator = {ALLOCATOR: "expandable_segments:True"} if recipe.expandable_segments else {}
    return allocator | ({CUDNN_LAST: "1"} if recipe.attention == NO_CUDNN else {})


def _visible(work: Job, gpus: Sequence[Gpu]) -> dict[str, str]:
    """The job's cards, by what never changes; DeepSpeed reads numbers only, which are the driver's in the order of the
    bus. The child refuses any card but the one that it was given."""
    numbers = [gpu.index for gpu in gpus if gpu.index is not None and gpu.mig_parent_uuid is None]
    if work.recipe.parallelism.kind.startswith("zero") and len(numbers) == len(gpus):
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, numbers))}
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid or "" for gpu in gpus)}


def settings_of(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The part of an environment that the libraries read as they are imported: two processes alike in it are alike."""
    return tuple(sorted((name, value) for name, value in environment.items() if name.startswith(_READ_AT_IMPORT)))


def _dropped(name: str) -> bool:
    """Secrets, which a job has no use for, and settings of torch that are not the recipe's."""
    upper = name.upper()
    ours = upper in (*_ALLOCATOR, CUDNN_LAST) or upper.startswith(("TORCHELASTIC", "ACCELERATE_"))
    return ours or upper in ("RANK", "LOCAL_RANK", "WORLD_SIZE") or any(word in upper for word in _SECRET_NAMES)
