"""`plan --from FILE`: whose configuration it is, and what it says as a recipe."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from estimators.errors import BadInput
from estimators.hardware import Cluster
from estimators.model import ModelSpec
from estimators.recipe import Recipe
from planner.emit import read_axolotl, read_llamafactory, read_trl
from planner.emit.read_fsdp import read_arguments
from planner.emit.read_parallel import Spread, of_deepspeed, of_trl, read_accelerate, read_deepspeed
from planner.emit.reading import Fields, Setting
from planner.emit.yaml_read import Document


class Reader(NamedTuple):
    """How a tool's configuration is known, and read."""

    signs: tuple[str, ...]
    harmless: tuple[str, ...]
    read: Callable[[Fields, Setting], Recipe]


READERS: dict[str, Reader] = {
    module.NAME: Reader(module.SIGNS, module.HARMLESS, module.read)
    for module in (read_axolotl, read_llamafactory, read_trl)
}
MODELS = {"axolotl": "base_model", "llamafactory": "model_name_or_path", "trl": "model_name_or_path"}
MASKED = ("hf_token", "hf_hub_token", "ms_hub_token", "wandb_api_key", "hub_token", "swanlab_api_key")
"""Secrets some people keep in such files: never read, shown or copied into a message."""
CHECKPOINTS = "activation_checkpointing"
"""Of FSDP's section; where a configuration has one it is heard before accelerate's (TrainingArguments)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A configuration that was read."""

    tool: str
    document: Document
    recipe: Recipe
    alone: Recipe
    """What the trainer's own keys say, without DeepSpeed's own optimizer and FSDP's own checkpointing."""
    placed_here: bool
    """Whether the configuration itself, or a file that it names and that is here, says how the job is spread."""
    not_understood: tuple[str, ...]
    """Keys that may change what the job takes, and that nobody here has read."""
    assumed: tuple[str, ...]
    meant: Mapping[str, str] = field(default_factory=dict)
    """What some of those that were not understood are nearly called."""


def tool_of(document: Document) -> str:
    """The tool that has most of the words.

    Raises:
        BadInput: none has, or two have as many.
    """
    scores = {name: sum(sign in document.table for sign in reader.signs) for name, reader in READERS.items()}
    best = max(scores.values())
    names = [name for name, score in scores.items() if score == best]
    if best < 2 or len(names) > 1:
        raise BadInput(f"{document.where}: not a configuration of {', '.join(READERS)} that can be told apart")
    return names[0]


def model_of(document: Document, tool: str) -> str:
    """The model as the file names it.

    Raises:
        BadInput: it does not.
    """
    name = document.table.get(MODELS[tool])
    if not isinstance(name, str) or not name:
        raise BadInput(f"{document.where}: {MODELS[tool]} is missing")
    return name


def take(
    document: Document,
    tool: str,
    model: ModelSpec,
    cluster: Cluster,
    accelerate_config: str | None,
    deepspeed_config: str | None,
) -> Taken:
    """
    Raises:
        BadInput: a key is wrong, or names what is not priced here.
    """
    spread, placed_here = _spread(document, tool, model.hidden_size, accelerate_config, deepspeed_config)
    place = spread.parallelism(cluster.size)
    assumed = [] if spread.devices else [f"launched on all {place.devices} GPUs" if place.devices > 1 else "on one GPU"]
    setting = Setting(
        model=model, cluster=cluster, place=place, by_accelerate=accelerate_config is not None,
        fsdp_checkpoints=spread.checkpoints,
    )  # fmt: skip
    fields = Fields(where=document.where, left=dict(document.table), assumed=[*assumed, *spread.assumed])
    bucket = fields.whole("ddp_bucket_cap_mb", spread.buckets.ddp_mib, 1, 1 << 20)
    alone = READERS[tool].read(fields, setting)
    recipe = _with(alone, spread, fields)
    if not recipe.packing:
        fields.assumed.append("rows of the full length, which nothing packs: shorter ones take less memory and time")
    harmless = (*READERS[tool].harmless, *MASKED, MODELS[tool])
    unknown = fields.rest(harmless)
    return Taken(
        tool=tool,
        document=document,
        recipe=replace(recipe, buckets=replace(spread.buckets, ddp_mib=bucket)),
        alone=alone,
        placed_here=placed_here,
        not_understood=(*unknown, *spread.not_understood),
        assumed=tuple(fields.assumed),
        meant={name: near for name in unknown if (near := fields.meant(name, harmless))},
    )


def _with(recipe: Recipe, spread: Spread, fields: Fields) -> Recipe:
    """What the files beside the configuration say in its place."""
    if spread.optimizer and not recipe.optimizer.startswith("adamw_torch"):
        fields.assumed.append(f"DeepSpeed's file names an optimizer of its own, AdamW, in place of {recipe.optimizer}")
        recipe = replace(recipe, optimizer=spread.optimizer)
    if spread.checkpoints and not recipe.gradient_checkpointing:
        fields.assumed.append("FSDP's activation checkpointing is priced as the trainer's own gradient checkpointing")
        recipe = replace(recipe, gradient_checkpointing=True)
    return recipe


def _spread(
    document: Document, tool: str, hidden_size: int, accelerate: str | None, deepspeed: str | None
) -> tuple[Spread, bool]:
    """The files that were given, else those that the configuration names; and whether it was the configuration that
    said it."""
    if accelerate:
        found = read_accelerate(accelerate, hidden_size)
    else:
        found = of_trl(document.table, document.where, hidden_size, lambda name: _beside(name, None, document.where))
    given = deepspeed or found.deepspeed_file
    if named := given or document.table.get("deepspeed"):
        here = not given
        where = "--deepspeed-config" if deepspeed else f"{document.where}: deepspeed"
        if isinstance(named, dict):
            zero = of_deepspeed(dict(named), where, hidden_size)
        else:
            path = _beside(str(named), deepspeed, accelerate or document.where)
            zero = read_deepspeed(path, where, hidden_size)
            here = here and Path(path).exists()  # else it was read as the published one of that name
        unknown = (*found.not_understood, *zero.not_understood)
        return zero._replace(devices=found.devices, not_understood=unknown), here
    if (shards := read_arguments(document.table, document.where, tool)) is None:
        return found, found.kind in (None, "none", "ddp")
    told = found.kind != "fsdp2" or any(
        str(name).endswith(CHECKPOINTS) for name in document.table.get("fsdp_config") or {}
    )
    offload = shards.offload or found.offload
    return found._replace(
        kind="fsdp2", offload=offload, checkpoints=shards.checkpoints if told else found.checkpoints,
        not_understood=(*found.not_understood, *shards.not_understood),
    ), told and offload == shards.offload  # fmt: skip


def _beside(name: str, given: str | None, owner: str) -> str:
    """A file that another names lies beside it, or where the command is run."""
    path = Path(name)
    if given or path.is_absolute():
        return name
    near = Path(owner).parent / path
    return str(near if os.path.exists(near) else path)  # noqa: PTH110 (hears any text)
