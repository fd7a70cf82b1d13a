"""Which recipes can run at all: each technique's needs against the rest of the recipe and the hardware."""

from collections.abc import Iterator

from estimators.hardware import Cluster
from estimators.model import ModelSpec
from estimators.placement import used_cluster
from estimators.recipe import ALL_LINEAR, Recipe
from estimators.strategies.adapter.experts import reaches_experts
from estimators.strategies.axes import Needs
from estimators.strategies.parallelism.offload import refusal
from estimators.techniques import ADAPTERS, ATTENTIONS, LOSSES, OPTIMIZERS, PARALLELISMS, QUANTIZATIONS, find_law

BFLOAT16 = (8, 0)


def objections(model: ModelSpec, recipe: Recipe, cluster: Cluster) -> tuple[str, ...]:
    """Why the recipe cannot run on the cluster, one reason each; empty where it can.

    Raises:
        UnknownName: the recipe names a technique that does not exist.
    """
    laws = (
        find_law("adapter", ADAPTERS, recipe.adapter.method),
        find_law("quantization", QUANTIZATIONS, recipe.quantization),
        find_law("optimizer", OPTIMIZERS, recipe.optimizer),
        find_law("parallelism", PARALLELISMS, recipe.parallelism.kind),
        find_law("attention", ATTENTIONS, recipe.attention),
        find_law("loss", LOSSES, recipe.loss),
    )
    used = used_cluster(cluster, recipe.parallelism.devices)
    capability = min(gpu.device.compute_capability for gpu in used.gpus)
    reasons = [reason for law in laws for reason in _unmet(law.name, law.needs, model, recipe, capability)]
    reasons += _data_types(recipe, capability)
    reasons += _placement(recipe, cluster)
    reasons += _libraries(model, recipe)
    if model.learned_positions and recipe.sequence_length > model.max_positions:
        reasons.append(f"{model.name} has no positions beyond {model.max_positions} tokens")
    return tuple(reasons)


def _libraries(model: ModelSpec, recipe: Recipe) -> Iterator[str]:
    """What the libraries refuse of techniques that they have, each for a reason of its own."""
    adapter = recipe.adapter
    if recipe.trainer == "trl" and recipe.loss == "liger":
        yield "liger works with trainer transformers, not trl, whose SFTTrainer has a loss of its own"
    if model.model_type == "falcon" and recipe.quantized:
        yield f"transformers quantises no layer of Falcon (FalconLinear), so {recipe.quantization} would do nothing"
    if not (reaches_experts(model) and adapter.targets == ALL_LINEAR):
        return
    if adapter.method == "dora":
        yield f"peft adapts the experts of {model.name} as parameters (lora.ParamWrapper), which dora cannot be"
    if adapter.dropout:
        yield f"peft adapts the experts of {model.name} as parameters (lora.ParamWrapper), without dropout"
    if recipe.loss == "liger":
        yield f"liger asks the experts of {model.name} for weights that peft's wrapper does not show"


def _unmet(name: str, needs: Needs, model: ModelSpec, recipe: Recipe, capability: tuple[int, int]) -> Iterator[str]:
    if capability < needs.compute_capability:
        wanted, found = (".".join(map(str, pair)) for pair in (needs.compute_capability, capability))
        yield f"{name} needs compute capability {wanted}, the GPU has {found}"
    if needs.model_types is not None and model.model_type not in needs.model_types:
        yield f"{name} has nothing for the model type {model.model_type}"
    for what, allowed, value in (
        ("adapter", needs.adapters, recipe.adapter.method),
        ("quantization", needs.quantizations, recipe.quantization),
        ("optimizer", needs.optimizers, recipe.optimizer),
        ("parallelism", needs.parallelisms, recipe.parallelism.kind),
        ("trainer", needs.trainers, recipe.trainer),
        ("compute type", needs.data_types, recipe.compute),
    ):
        if allowed is not None and value not in allowed:
            yield f"{name} works with {what} {' or '.join(allowed)}, not {value}"


def _data_types(recipe: Recipe, capability: tuple[int, int]) -> Iterator[str]:
    if "bfloat16" in (recipe.weights, recipe.compute) and capability < BFLOAT16:
        yield f"bfloat16 needs compute capability 8.0, the GPU has {capability[0]}.{capability[1]}"
    master = recipe.parallelism.kind.startswith("zero")  # DeepSpeed keeps a float32 copy and scales the loss itself.
    if recipe.adapter.trains_everything and recipe.weights == "float16" and not master:
        yield "float16 weights cannot be trained, for gradients cannot be unscaled: use float32 weights"
    if recipe.compute == "float32" and recipe.weights != "float32":
        yield f"float32 compute needs float32 weights, not {recipe.weights}"
    mixed = {recipe.weights, recipe.compute} == {"bfloat16", "float16"}
    if mixed:
        yield f"{recipe.weights} weights do not go with {recipe.compute} compute"


def _placement(recipe: Recipe, cluster: Cluster) -> Iterator[str]:
    parallelism = recipe.parallelism
    a_node = len(used_cluster(cluster, parallelism.devices).gpus)
    if parallelism.devices > a_node * cluster.nodes:
        divided = any(gpu.mig_parent_uuid for gpu in cluster.gpus)
        alone = ": a job can use one MIG instance, or several GPUs that are not divided" if divided else ""
        yield f"{parallelism.devices} GPUs are asked for, {a_node * cluster.nodes} are there{alone}"
    elif parallelism.devices % a_node:
        yield f"{parallelism.devices} GPUs are no whole nodes of {a_node}"
    if parallelism.kind == "none" and parallelism.devices > 1:
        yield f"{parallelism.devices} GPUs need a parallelism: ddp, zero1, zero2, zero3 or fsdp2"
    if parallelism.kind in ("ddp", "fsdp2") and parallelism.devices == 1:
        yield f"{parallelism.kind} needs at least 2 GPUs"
    if reason := refusal(parallelism.kind, parallelism.offload, parallelism.offload_to):
        yield reason
