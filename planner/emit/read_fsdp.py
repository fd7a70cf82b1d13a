"""FSDP as accelerate, axolotl and TrainingArguments spell it: what it means for the memory and the speed of a job."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from estimators.errors import BadInput
from planner.emit.reading import Fields

HARMLESS = (
    "auto_wrap_policy", "transformer_layer_cls_to_wrap", "transformer_cls_names_to_wrap", "state_dict_type",
    "final_state_dict_type", "cpu_ram_efficient_loading", "sync_module_states", "use_orig_params", "limit_all_gathers",
    "forward_prefetch", "backward_prefetch", "cpu_offload_pin_memory", "xla", "xla_fsdp_v2", "xla_fsdp_grad_ckpt",
)  # fmt: skip
"""How it is loaded and saved, and words of the first version that the second does not hear."""
UNSAID_VERSION = {"axolotl": 1, "llamafactory": 1, "trl": 2, "accelerate": 1}
"""axolotl 0.19 (check_fsdp_version_in_fsdp_config); transformers has 2 from 5.10 on, and llamafactory 0.9.5 takes
those up to 5.6."""
FIRST_VERSION = "FSDP's first version is not priced here; transformers is about to drop it (fsdp_version: 2)"


class Sharded(NamedTuple):
    """What the section says."""

    offload: tuple[str, ...]
    checkpoints: bool
    """Whether it checkpoints activations itself."""
    not_understood: tuple[str, ...]


def read_fsdp(table: Mapping[str, Any], where: str, tool: str, words: str = "", version: object = None) -> Sharded:
    """
    Raises:
        BadInput: FSDP's first version, which nobody prices here, or weights that stay together.
    """
    inner = {str(name).removeprefix("fsdp_"): value for name, value in table.items()}
    fields = Fields(where=f"{where}: fsdp_config", left=inner)
    said = fields.take("version", UNSAID_VERSION[tool])
    if str(version or said) != "2":
        raise BadInput(f"{where}: {FIRST_VERSION}")
    if fields.take("reshard_after_forward", True) in (False, "false", "NO_SHARD", "SHARD_GRAD_OP"):
        raise BadInput(f"{where}: fsdp reshard_after_forward false is not priced here")
    if fields.take("sharding_strategy", "FULL_SHARD") not in ("FULL_SHARD", 1, "1"):
        raise BadInput(f"{where}: of FSDP's sharding strategies only FULL_SHARD is priced here")
    offloads = [fields.flag(name, False) for name in ("offload_params", "cpu_offload")]
    checkpoints = fields.flag("activation_checkpointing", False)
    unknown = tuple(f"fsdp_config.{name}" for name in fields.rest(HARMLESS))
    everything = any(offloads) or "offload" in words
    return Sharded(("optimizer", "parameters") if everything else (), checkpoints, unknown)


def read_arguments(document: Mapping[str, Any], where: str, tool: str) -> Sharded | None:
    """Of a configuration; None where it does not ask for FSDP."""
    asked, table = document.get("fsdp"), document.get("fsdp_config")
    if not asked and (tool != "axolotl" or not table):  # TrainingArguments read the section only where it is asked for
        return None
    if table is not None and not isinstance(table, dict):
        raise BadInput(f"{where}: fsdp_config must be a table here")
    words = " ".join(map(str, asked)) if isinstance(asked, list) else str(asked or "")
    return read_fsdp(table or {}, where, tool, words, document.get("fsdp_version"))
