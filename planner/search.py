"""Every recipe that a goal leaves open: the mechanics, exhaustively, for each rung of the ladder."""

from collections.abc import Iterator
from dataclasses import dataclass

from estimators.errors import BadInput
from estimators.hardware import Cluster
from estimators.model import ModelSpec
from estimators.placement import used_cluster, whole_gpus
from estimators.recipe import Adapter, Parallelism, Recipe
from estimators.strategies.attention.sdpa_no_cudnn import NAME as NO_CUDNN
from estimators.strategies.attention.sdpa_no_cudnn import prefers_cudnn
from estimators.trainable import default_targets
from planner.goal import Goal
from planner.rules import Rules, Rung

SEVERAL_GPUS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
ONLY_STATES = ("zero1", "zero2")
"""Shard gradients and optimizer states alone, which adapters hardly have."""
OFFLOADS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("zero2", ("optimizer",)),
    ("zero3", ("optimizer",)),
    ("zero3", ("optimizer", "parameters")),
)
LEARNING_RATE = float(str(Recipe.__dataclass_fields__["learning_rate"].default))
"""Where none is said."""
PRECISIONS = {
    "amp": ("float32", "half"),
    "bf16": ("bfloat16", "bfloat16"),
    "fp16": ("float16", "float16"),
    "fp32": ("float32", "float32"),
}
"""Stored and compute type by --precision; "half" is bfloat16, or float16 on a card without it."""
MOST_SCORES = 1 << 23
"""Of one head of a micro-batch, rows × tokens²: beyond it cuDNN's faster kernel makes up for its plans. (At so many the
others take about 0.1 s more a step of a 7B by their rates on an H200; a plan takes 0.17 s, once for each width.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A recipe of one rung, but for the micro-batch: `micro_batches` are its possible values, ascending."""

    rung: Rung
    position: int
    recipe: Recipe
    micro_batches: tuple[int, ...]
    varies: bool = False
    """Whether several rows of a batch hold padding."""
    plans: bool = False
    """Whether the card's first choice of attention plans anew for every width, which the recipe is free to avoid."""

    def recipes(self) -> Iterator[Recipe]:
        """The recipes, smallest micro-batch first; the global batch stays what it is."""
        share = self.recipe.micro_batch * self.recipe.gradient_accumulation
        for micro_batch in self.micro_batches:
            padded = self.recipe.padded or (self.varies and micro_batch > 1)
            short = micro_batch * self.recipe.sequence_length**2 <= MOST_SCORES
            attention = NO_CUDNN if self.plans and short else self.recipe.attention
            yield with_micro_batch(self.recipe, micro_batch, share // micro_batch, padded, attention)


def choices(goal: Goal, model: ModelSpec, cluster: Cluster, rules: Rules) -> Iterator[Choice]:
    """All choices, rung by rung.

    Raises:
        BadInput: the micro-batch does not divide the global batch, or offload is required and nothing is known of the
            host.
    """
    batch = goal.global_batch or rules.defaults.global_batch
    if goal.micro_batch is not None and batch % goal.micro_batch:
        raise BadInput(f"micro-batch {goal.micro_batch} does not divide the global batch of {batch}")
    if goal.offload == "required" and cluster.host.memory_bytes is None:
        raise BadInput("--offload required needs --host-memory, for nothing is known of the host")
    plans = plans_anew(goal, model, cluster)
    placements = [place for place in _placements(goal, cluster) if _micro_batches(goal, rules, place.devices)]
    for position, rung in enumerate(rules.rungs(goal.methods)):
        for place in placements:
            if rung.adapter != "full" and _only_helps_states(place):
                continue
            sizes = _micro_batches(goal, rules, place.devices)
            for optimizer in (goal.optimizer,) if goal.optimizer else rung.optimizers:
                for checkpointing in (
                    (False, True) if goal.gradient_checkpointing is None else (goal.gradient_checkpointing,)
                ):
                    recipe = _recipe(goal, model, cluster, rules, rung, place, optimizer, checkpointing)
                    yield Choice(
                        rung=rung, position=position, recipe=recipe, micro_batches=sizes, varies=_varies(goal),
                        plans=plans,
                    )  # fmt: skip


def _only_helps_states(place: Parallelism) -> bool:
    """Whether a placement saves nothing but gradients and optimizer states."""
    return place.offload == ("optimizer",) or (not place.offload and place.kind in ONLY_STATES)


def with_micro_batch(recipe: Recipe, micro_batch: int, accumulation: int, padded: bool, attention: str) -> Recipe:
    """The same recipe with another split of its global batch (a plain copy: faster than dataclasses.replace)."""
    values = {name: getattr(recipe, name) for name in _FIELDS}
    values |= {"micro_batch": micro_batch, "gradient_accumulation": accumulation}
    return Recipe(**(values | {"padded": padded, "attention": attention}))


_FIELDS = tuple(Recipe.__dataclass_fields__)


def device_counts(cluster: Cluster) -> list[int]:
    """How many GPUs a job can use: one, several whole ones of one node, or all whole ones of several nodes."""
    a_node = len(whole_gpus(cluster))
    return [*range(1, max(1, a_node) + 1), *(nodes * a_node for nodes in range(2, cluster.nodes + 1) if a_node)]


def idle_reason(goal: Goal, cluster: Cluster, rules: Rules) -> str | None:
    """Why no recipe uses all GPUs, where the batch is why; None where some recipe does."""
    gpus, batch = device_counts(cluster)[-1], goal.global_batch or rules.defaults.global_batch
    if _micro_batches(goal, rules, gpus):
        return None
    of = f" in micro-batches of {goal.micro_batch}" if goal.micro_batch else ""
    multiple = gpus * (goal.micro_batch or 1)
    enough = -(-batch // multiple) * multiple
    return f"a global batch of {batch} cannot be divided over {gpus} GPUs{of} (try --global-batch {enough})"


def _placements(goal: Goal, cluster: Cluster) -> Iterator[Parallelism]:
    """Every way to spread over some of the GPUs, and to offload where the goal and the host allow it."""
    counts = device_counts(cluster)
    if goal.offload != "required":
        for devices in counts:
            for kind in ("none",) if devices == 1 else SEVERAL_GPUS:
                yield Parallelism(kind=kind, devices=devices)
    if goal.offload == "never" or cluster.host.memory_bytes is None:
        return
    for devices in counts:
        for kind, offload in OFFLOADS:
            yield Parallelism(kind=kind, devices=devices, offload=offload)
            if cluster.host.disk_bytes is not None and kind == "zero3" and cluster.host.nvme:
                yield Parallelism(kind=kind, devices=devices, offload=offload, offload_to="nvme")


def _micro_batches(goal: Goal, rules: Rules, devices: int) -> tuple[int, ...]:
    """Micro-batches that divide one GPU's share of the global batch; none where the share is not whole."""
    share, rest = divmod(goal.global_batch or rules.defaults.global_batch, devices)
    if rest or not share:
        return ()
    divisors = tuple(size for size in range(1, min(share, 512) + 1) if share % size == 0)
    return tuple(size for size in divisors if goal.micro_batch in (None, size))


def _recipe(
    goal: Goal,
    model: ModelSpec,
    cluster: Cluster,
    rules: Rules,
    rung: Rung,
    place: Parallelism,
    optimizer: str,
    checkpointing: bool,
) -> Recipe:
    defaults = rules.defaults
    weights, compute = _types(goal, cluster, rung, place)
    batch = goal.global_batch or defaults.global_batch
    return Recipe(
        model=goal.model,
        adapter=_adapter(goal, model, rules, rung),
        trainer=goal.trainer,
        quantization=rung.quantization,
        weights=weights,
        compute=compute,
        optimizer=optimizer,
        gradient_checkpointing=checkpointing,
        attention=goal.attention or _attention(model),
        loss=goal.loss or "plain",
        micro_batch=1,
        gradient_accumulation=batch // place.devices,
        sequence_length=goal.sequence_length or default_length(model, rules),
        padded=goal.padded,
        packing=goal.packing,
        expandable_segments=_varies(goal) if goal.expandable_segments is None else goal.expandable_segments,
        learning_rate=LEARNING_RATE if goal.learning_rate is None else goal.learning_rate,
        parallelism=place,
    )


def default_length(model: ModelSpec, rules: Rules) -> int:
    """The sequence length where none is said: the rules' own, or all that the model was made for."""
    return min(rules.defaults.sequence_length, model.max_positions)


def _adapter(goal: Goal, model: ModelSpec, rules: Rules, rung: Rung) -> Adapter:
    if rung.adapter == "full":
        return Adapter(method="full")
    rank = goal.rank or rules.defaults.rank
    return Adapter(
        method=rung.adapter,
        rank=rank,
        alpha=goal.alpha or rank * rules.defaults.alpha_per_rank,
        dropout=rules.defaults.dropout if goal.dropout is None else goal.dropout,
        targets=goal.targets if goal.targets is not None else default_targets(model),
    )


def _types(goal: Goal, cluster: Cluster, rung: Rung, place: Parallelism) -> tuple[str, str]:
    """Stored and compute type: 16-bit compute in what all its cards can, float32 weights where the rung trains them."""
    used = used_cluster(cluster, place.devices).gpus
    half = "bfloat16" if all(gpu.device.supports_bfloat16 for gpu in used) else "float16"
    if goal.precision is not None:
        stored, compute = (half if name == "half" else name for name in PRECISIONS[goal.precision])
        if rung.adapter != "full" and goal.precision == "amp":
            stored = compute
    else:
        stored, compute = ("float32", half) if rung.weights == "float32" else (half, half)
    # Under ZeRO the float32 weights are DeepSpeed's own sharded master copy.
    return (compute if place.kind.startswith("zero") else stored), compute


def _attention(model: ModelSpec) -> str:
    """sdpa, but for models that cap attention's scores (Gemma 2): transformers 5 has only their own code for that."""
    return "eager" if any(block.attention.softcap for block, _ in model.block_counts) else "sdpa"


def plans_anew(goal: Goal, model: ModelSpec, cluster: Cluster) -> bool:
    """Whether a card's first choice of attention plans for every width, and the goal leaves another one open. In
    float32 it is never cuDNN's."""
    free = goal.attention is None and _attention(model) == "sdpa" and goal.precision != "fp32"
    return free and _varies(goal) and any(prefers_cudnn(gpu.device) for gpu in cluster.gpus)


def _varies(goal: Goal) -> bool:
    """Whether a batch is as wide as its own longest row. Of such widths torch's usual allocator keeps blocks for each,
    beside growing segments: 13.6 to 15.8 GiB by seed, where 10.3 were allocated (20 steps of a 1B on an H200); with
    growing segments a sweep's trials came within 0.6 % of what was expected.
    """
    return goal.varying and not goal.packing
