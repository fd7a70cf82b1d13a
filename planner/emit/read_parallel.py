"""How a job is spread: accelerate's launch file and DeepSpeed's JSON, into the recipe's parallelism and buckets."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from estimators.config_json import parse_config
from estimators.errors import BadInput
from estimators.recipe import Buckets, Parallelism
from planner.emit.read_fsdp import FIRST_VERSION, read_fsdp
from planner.emit.read_published import published
from planner.emit.reading import Fields
from planner.emit.yaml_read import Document, parse, read_file

AUTO = "auto"
DEEPSPEED_HARMLESS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer", "scheduler", "bf16", "fp16",
    "zero_force_ds_cpu_optimizer", "comms_config", "comms_logger", "monitor_config", "csv_monitor", "tensorboard",
    "wandb", "dump_state", "prescale_gradients",
)  # fmt: skip
ZERO_HARMLESS = (
    "overlap_comm", "contiguous_gradients", "stage3_gather_16bit_weights_on_model_save", "stage3_max_reuse_distance",
    "allgather_partitions", "reduce_scatter", "round_robin_gradients", "gather_16bit_weights_on_model_save",
    "max_reuse_distance", "stage3_gather_fp16_weights_on_model_save", "ignore_unused_parameters",
    "load_from_fp32_weights",
)  # fmt: skip
ACCELERATE_HARMLESS = (
    "compute_environment", "debug", "downcast_bf16", "enable_cpu_affinity", "gpu_ids", "machine_rank",
    "main_process_ip", "main_process_port", "main_training_function", "rdzv_backend", "same_network", "use_cpu",
    "mixed_precision", "tpu_env", "tpu_use_cluster", "tpu_use_sudo",
)  # fmt: skip
BACKENDS = {"NO": "none", "MULTI_GPU": "ddp", "FSDP": "fsdp2", "DEEPSPEED": "zero"}
BUCKETS = {
    "reduce_bucket_size": "reduce_elements", "allgather_bucket_size": "allgather_elements",
    "stage3_prefetch_bucket_size": "prefetch_elements", "stage3_param_persistence_threshold": "persistence_elements",
    "stage3_max_live_parameters": "live_elements", "sub_group_size": "sub_group_elements",
    "prefetch_bucket_size": "prefetch_elements", "param_persistence_threshold": "persistence_elements",
    "max_live_parameters": "live_elements",
}  # fmt: skip
"""DeepSpeed hears the last three with and without their prefix (runtime/zero/config.py of 0.19)."""
NEVER_EMPTY, MOST_ELEMENTS = ("reduce_bucket_size", "allgather_bucket_size"), 1 << 40
DEEPSPEED_OPTIMIZERS = {"adam": "adamw_torch", "adamw": "adamw_torch"}
"""What the recipe calls DeepSpeed's own: FusedAdam, or CPUAdam where it is offloaded."""


class Spread(NamedTuple):
    """What the files say; None where they say nothing."""

    kind: str | None = None
    devices: int | None = None
    offload: tuple[str, ...] = ()
    offload_to: str = "cpu"
    buckets: Buckets = Buckets()
    not_understood: tuple[str, ...] = ()
    deepspeed_file: str | None = None
    """That an accelerate file names."""
    optimizer: str | None = None
    """DeepSpeed's own, where its file has one: the trainer's word for it is then not heard."""
    checkpoints: bool = False
    """Whether FSDP checkpoints activations itself."""
    assumed: tuple[str, ...] = ()

    def parallelism(self, devices: int) -> Parallelism:
        """On so many GPUs, where the files do not say how many."""
        number = self.devices or devices
        kind = self.kind or ("none" if number == 1 else "ddp")
        return Parallelism(kind=kind, devices=number, offload=self.offload, offload_to=self.offload_to)  # type: ignore[arg-type]


PRESET_PROCESSES = 8
PRESETS = {
    "single_gpu": Spread(kind="none", devices=1),
    "multi_gpu": Spread(kind="ddp"),
    "zero1": Spread(kind="zero1"),
    "zero2": Spread(kind="zero2"),
    "zero3": Spread(kind="zero3"),
    "fsdp2": Spread(kind="fsdp2"),
}
"""TRL's own launch files, by their names in its YAML; they start eight processes where nothing else is said."""


def of_trl(table: Mapping[str, Any], where: str, hidden_size: int, find: Callable[[str], str]) -> Spread:
    """What TRL's YAML says of its launch, which `trl sft` hands to accelerate."""
    fields = Fields(where=where, left={name: table.get(name) for name in ("accelerate_config", "num_processes")})
    name, number = fields.text("accelerate_config"), fields.whole("num_processes", 0, 0, 65_536) or None
    if name == "fsdp1":
        raise BadInput(f"{where}: {FIRST_VERSION}")
    if name in PRESETS:
        found = PRESETS[name]
        return found._replace(devices=found.devices or number or PRESET_PROCESSES)
    found = read_accelerate(find(name), hidden_size) if name else Spread()
    return found._replace(devices=number or found.devices)


def read_accelerate(path: str, hidden_size: int) -> Spread:
    """
    Raises:
        BadInput: not such a file, or FSDP's first version, which nobody prices here.
    """
    document: Document = parse(read_file(path, "--accelerate-config"), path)
    fields = Fields(where=path, left=dict(document.table))
    backend = fields.one_of("distributed_type", BACKENDS, "NO")
    number = fields.whole("num_processes", 1, 1, 65_536)
    fields.take("num_machines")
    nested: dict[str, Any] = {"deepspeed_config": fields.table("deepspeed_config")}
    sharding = fields.table("fsdp_config")
    unknown = fields.rest(ACCELERATE_HARMLESS)
    if backend == "zero":
        found = _inline(nested["deepspeed_config"], path, hidden_size)
        return found._replace(devices=number, not_understood=(*unknown, *found.not_understood))
    if backend != "fsdp2":
        return Spread(kind="none" if number == 1 else backend, devices=number, not_understood=unknown)
    shards = read_fsdp(sharding, path, "accelerate")
    return Spread(
        kind="fsdp2", devices=number, offload=shards.offload, checkpoints=shards.checkpoints,
        not_understood=(*unknown, *shards.not_understood),
    )  # fmt: skip


def _inline(table: dict[str, Any], path: str, hidden_size: int) -> Spread:
    """DeepSpeed as accelerate spells it, or the file that it names."""
    if name := table.get("deepspeed_config_file"):
        return Spread(deepspeed_file=str(name))
    fields = Fields(where=f"{path}: deepspeed_config", left=dict(table))
    section: dict[str, Any] = {"stage": fields.whole("zero_stage", 2, 0, 3)}
    for part in ("optimizer", "param"):
        if (device := fields.text(f"offload_{part}_device", "none")) != "none":
            section[f"offload_{part}"] = {"device": device}
    harmless = (
        "zero3_init_flag", "zero3_save_16bit_model", "gradient_accumulation_steps", "gradient_clipping",
        "deepspeed_multinode_launcher", "deepspeed_hostfile", "offload_optimizer_nvme_path", "offload_param_nvme_path",
    )  # fmt: skip
    found = _zero({"zero_optimization": section}, path, hidden_size)
    return found._replace(not_understood=(*found.not_understood, *fields.rest(harmless)))


def read_deepspeed(path: str, option: str, hidden_size: int) -> Spread:
    """
    Raises:
        BadInput: not such a file.
    """
    if (known := published(path)) and not os.path.exists(path):  # noqa: PTH110 (hears any text)
        found = _zero({"zero_optimization": known}, path, hidden_size)
        here = f"{path} is not here: read as the file of that name that its tool publishes"
        return found._replace(assumed=(here, *found.assumed))
    text = read_file(path, option)
    try:
        table = dict(parse_config(text.encode(), path))
    except (RecursionError, json.JSONDecodeError):
        raise BadInput(f"{path}: not JSON") from None
    return of_deepspeed(table, path, hidden_size)


def of_deepspeed(table: dict[str, Any], path: str, hidden_size: int) -> Spread:
    """A file's contents, or what stands in its place in a configuration."""
    optimizer = table.pop("optimizer", None)
    found = _zero(table, path, hidden_size)
    if not optimizer:
        return found
    kind = str(optimizer.get("type") if isinstance(optimizer, dict) else optimizer)
    if kind.lower() not in DEEPSPEED_OPTIMIZERS:
        raise BadInput(f"{path}: the optimizer {kind[:20]!a} of DeepSpeed's own is not priced here (AdamW is)")
    return found._replace(optimizer=DEEPSPEED_OPTIMIZERS[kind.lower()])


def _zero(table: dict[str, Any], path: str, hidden_size: int) -> Spread:
    fields = Fields(where=path, left=dict(table))
    zero = Fields(where=f"{path}: zero_optimization", left=fields.table("zero_optimization"))
    stage = zero.whole("stage", 0, 0, 3)
    offload, where = [], "cpu"
    for key, part in (("offload_optimizer", "optimizer"), ("offload_param", "parameters")):
        device = zero.table(key).get("device", "none")
        if device not in ("none", "cpu", "nvme"):
            raise zero.wrong(key, "for the device none, cpu or nvme", device)
        if device != "none":
            offload.append(part)
            where = device
    sizes = {name: size for key, name in BUCKETS.items() if (size := _bucket(zero, key, name, hidden_size)) is not None}
    unknown = (*fields.rest(DEEPSPEED_HARMLESS), *zero.rest(ZERO_HARMLESS))
    kind = f"zero{stage}" if stage else None
    told = () if stage else (f"{path}: DeepSpeed's stage 0 is priced as plain data parallelism",)
    return Spread(
        kind=kind,
        assumed=told,
        offload=tuple(offload),
        offload_to=where,
        buckets=Buckets(**sizes),
        not_understood=unknown,
    )


def _bucket(zero: Fields, key: str, name: str, hidden_size: int) -> int | None:
    value = zero.take(key)
    if value is None or value == AUTO:
        return _automatic(name, hidden_size) if value else None
    try:
        size = int(float(value))  # people write 5e8
    except (TypeError, ValueError, OverflowError):
        size = -1
    if type(value) is bool or not (key in NEVER_EMPTY) <= size <= MOST_ELEMENTS:
        raise zero.wrong(key, "a number or auto", value)
    return size


def _automatic(name: str, hidden_size: int) -> int | None:
    """What transformers puts in place of "auto" (HfTrainerDeepSpeedConfig.trainer_config_finalize)."""
    return {
        "reduce_elements": hidden_size * hidden_size,
        "prefetch_elements": int(0.9 * hidden_size * hidden_size),
        "persistence_elements": 10 * hidden_size,
    }.get(name)
