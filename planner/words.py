"""The sentences of a plan: its verdict, why each alternative lost, what was assumed, what to do next."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields

from estimators.calibration import DEFAULT
from estimators.hardware import Cluster
from estimators.model import ModelSpec
from estimators.price import Price
from estimators.units import format_bytes
from planner.change import Change
from planner.goal import Goal
from planner.plan import Candidate
from planner.rules import Rules
from planner.search import default_length, idle_reason, plans_anew

OPTIONS = {
    "methods": "--method",
    "rank": "--rank",
    "alpha": "--alpha",
    "targets": "--targets",
    "dropout": "--dropout",
    "sequence_length": "--seq-len",
    "global_batch": "--global-batch",
    "micro_batch": "--micro-batch",
    "optimizer": "--optimizer",
    "learning_rate": "--learning-rate",
    "precision": "--precision",
    "attention": "--attention",
    "loss": "--loss",
    "gradient_checkpointing": "--checkpointing",
    "expandable_segments": "--expandable-segments",
    "trainer": "--trainer",
    "padded": "--padded",
    "packing": "--packing",
    "objective": "--objective",
    "offload": "--offload",
    "vram_budget_bytes": "--vram-budget",
    "headroom_bytes": "--headroom",
    "assume_idle": "--assume-idle",
    "tokens": "--tokens",
    "samples": "--samples",
    "rules_path": "--rules",
}
DEFAULT_GOAL_VALUES = {field.name: field.default for field in fields(Goal)}

OLDEST_IN_CUDA_13 = (7, 5)

METHOD_WORDS = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA", "dora": "DoRA"}
OPTIMIZER_WORDS = {"adamw_8bit": "8-bit AdamW", "adamw_torch_fused": "AdamW", "adamw_torch": "AdamW"}


def describe_gpus(cluster: Cluster, count: int | None = None) -> str:
    """ "1 × rtx-4090", "2 nodes of 4 × a100-sxm4-80gb", "rtx-3090 and a100-pcie-80gb"."""
    kinds: dict[str, int] = {}
    for gpu in cluster.gpus:
        kinds[gpu.device.name] = kinds.get(gpu.device.name, 0) + 1
    if count is not None and len(kinds) == 1:
        kinds = dict.fromkeys(kinds, count // cluster.nodes)
    words = " and ".join(f"{number} × {name}" for name, number in kinds.items())
    return words if cluster.nodes == 1 else f"{cluster.nodes} nodes of {words}"


def verdict_of(
    goal: Goal, model: ModelSpec, cluster: Cluster, chosen: Candidate | None, best: Sequence[Candidate]
) -> str:
    """One sentence: what to do and what it takes, or what is missing."""
    if chosen is None:
        if not best:
            return f"No recipe can run {model.name} on {describe_gpus(cluster)}: see the reasons below."
        nearest = max(best, key=lambda one: one.price.tightest.spare_bytes)
        return (
            f"Nothing fits: {model.name} on {describe_gpus(cluster)} comes nearest with "
            f"{method_words(nearest.method)}, which {shortfall(nearest)}."
        )
    cost, recipe = chosen.price, chosen.recipe
    share = cost.tightest
    optimizer = OPTIMIZER_WORDS.get(recipe.optimizer, recipe.optimizer)
    fewer = cluster.size > chosen.gpus
    used = f"{chosen.gpus} of the {cluster.size} GPUs" if fewer else describe_gpus(cluster, chosen.gpus)
    return (
        f"Fine-tune {model.name} with {method_words(chosen.method)} and {optimizer} on {used}: "
        f"{format_bytes(cost.process.value)} a GPU (at most {format_bytes(cost.process.high)}) of "
        f"{format_bytes(share.budget_bytes)}, about {cost.tokens_per_second.value:,.0f} tokens/s."
    )


def method_words(label: str) -> str:
    """A method's label with its first word as people write it."""
    method, plus, rest = label.partition(" + ")
    return METHOD_WORDS.get(method, method) + plus + rest


BESIDE_TRAINING = {"evaluation": "evaluating", "save": "saving", "load": "loading"}


def beside_training(price: Price) -> str | None:
    """What takes the most of the tightest GPU, where that is not training itself."""
    share = price.tightest
    phases = {name: price.phases[name] for name in BESIDE_TRAINING if name in price.phases}
    if not phases or share.worst_phase.high <= share.process.high:
        return None
    return BESIDE_TRAINING[max(phases, key=lambda name: phases[name])]


def shortfall(candidate: Candidate) -> str:
    """What is missing for a candidate that does not fit, in numbers."""
    cost = candidate.price
    share = cost.tightest
    if share.verdict == "does not fit":
        return f"needs {format_bytes(-share.spare_bytes)} more"
    if share.verdict == "tight":
        return f"is tight: {format_bytes(-share.spare_bytes)} short of surviving without flushing the allocator's cache"
    if cost.host_verdict != "fits":
        return f"needs {format_bytes(cost.host.high)} of host RAM"
    return f"needs {format_bytes(cost.disk.high)} of disk"


def why_lost(candidate: Candidate, chosen: Candidate | None, goal: Goal) -> str:
    """Why a candidate is not the plan, in numbers."""
    if not candidate.price.fits:
        return shortfall(candidate)
    if chosen is None:
        return "fits"
    speed = candidate.price.tokens_per_second.value / chosen.price.tokens_per_second.value - 1
    if speed < -0.5:
        relative = f"{1 / (1 + speed):.1f} × slower"
    else:
        relative = f"{abs(speed) * 100:.0f} % {'faster' if speed > 0 else 'slower'}"
    if goal.objective == "memory":
        more = candidate.price.process.value * candidate.gpus - chosen.price.process.value * chosen.gpus
        return f"takes {format_bytes(more)} more, {relative}"
    if goal.objective == "cost":
        dearer = candidate.gpus / candidate.price.tokens_per_second.value
        cheapest = chosen.gpus / chosen.price.tokens_per_second.value
        return f"{(dearer / cheapest - 1) * 100:.0f} % more GPU time a token, {relative}"
    if goal.objective == "quality" and candidate.rung > chosen.rung:
        return f"lower on the quality ladder, {relative}"
    if candidate.recipe.parallelism.offload and not chosen.recipe.parallelism.offload:
        return f"offload is the last resort: {relative}"
    return relative if round(speed * 100) else "equally fast, more GPUs or memory"


def assumptions_of(
    goal: Goal, model: ModelSpec, cluster: Cluster | None, rules: Rules, chosen: Candidate | None
) -> tuple[str, ...]:
    """What the figures rest on, and what the user did not say."""
    return tuple(_assumed(goal, model, cluster, rules, chosen))


def _assumed(
    goal: Goal, model: ModelSpec, cluster: Cluster | None, rules: Rules, chosen: Candidate | None
) -> Iterator[str]:
    defaults, full = rules.defaults, goal.methods == ("full",)
    taken = [
        text
        for said, text in (
            (goal.sequence_length, f"sequences of {default_length(model, rules)} tokens"),
            (goal.global_batch, f"global batch {defaults.global_batch}"),
            (goal.rank or full, f"rank {defaults.rank}, alpha {defaults.rank * defaults.alpha_per_rank}"),
            (goal.targets or full, "adapters on queries and values"),
        )
        if not said
    ]
    if taken:
        yield "taken because not said: " + ", ".join(taken)
    if goal.sequence_length and goal.sequence_length > model.max_positions:
        yield f"{goal.sequence_length} tokens are beyond the {model.max_positions} that {model.name} was trained on"
    if cluster and (idle := idle_reason(goal, cluster, rules)):
        yield f"not all GPUs can be used: {idle}"
    if not goal.padded:
        yield "every sequence is full: shorter ones need less, none needs more"
    yield from _of_data(goal, model, cluster, chosen)
    if cluster is None or cluster.hypothetical:
        yield "the GPUs are idle; the driver keeps its share of them"
    elif goal.assume_idle:
        yield "the GPUs are taken as idle, whatever runs on them now"
    if cluster and cluster.node_link is not None and cluster.described_link is None:
        yield f"nodes are joined by a {cluster.node_link.name}: say --link"
    if cluster and goal.vram_budget_bytes is not None and (more := _beyond(goal.vram_budget_bytes, cluster)):
        yield more
    unseen = {gpu.device.name for gpu in cluster.gpus} - set(DEFAULT.seen_devices) if cluster else set()
    if unseen:
        names = ", ".join(sorted(unseen))
        yield f"speed on {names} is scaled by the data sheet from other cards; nothing was measured there"
    kinds = [gpu.device for gpu in cluster.gpus] if cluster else []
    old = {device.name for device in kinds if device.compute_capability < OLDEST_IN_CUDA_13}
    if old:
        yield f"torch's CUDA 13 builds have dropped {', '.join(sorted(old))}: it needs a CUDA 12 build"
    if cluster and cluster.hypothetical and cluster.host.memory_bytes is None and goal.offload == "allowed":
        yield "no offload was considered, for nothing is known of the host: say --host-memory"
    if chosen and chosen.recipe.trainer == "transformers":
        yield "the stock Trainer and its loss; TRL's needs less for large vocabularies (--trainer trl)"


def _of_data(goal: Goal, model: ModelSpec, cluster: Cluster | None, chosen: Candidate | None) -> Iterator[str]:
    if not goal.varying or goal.packing:
        return
    yield "rows of --data differ in length: several of one batch hold padding (--packing: they are of one width)"
    if chosen and cluster and chosen.recipe.attention == "sdpa" and plans_anew(goal, model, cluster):
        yield (
            "cuDNN's attention plans anew for every width, 0.15 s and more, which is in no figure here: a --seq-len no "
            "longer than your rows need avoids it, or --attention sdpa_no_cudnn"
        )


def _beyond(budget_bytes: int, cluster: Cluster) -> str | None:
    """That a budget is no limit, where no card has so much."""
    largest = max(gpu.total_bytes for gpu in cluster.gpus)
    if budget_bytes <= largest:
        return None
    return f"--vram-budget is more than the {format_bytes(largest)} of the card: what the card has is what counts"


def next_command_of(goal: Goal, cluster: Cluster, chosen: Candidate | None, change: Change | None) -> str:
    """A command to copy: keep this plan with its recipe as a document; where nothing fits, plan what would; where
    nothing is known that would, ask without restrictions. Empty where rows of data decided too: that plan is written
    with its job."""
    machine = ["plan", "--model", goal.model, *_machine_options(cluster)]
    if chosen is not None:
        if goal.varying and not goal.packing:
            return ""
        return shlex.join([*machine, *_goal_options(goal), "--json"]) + " > plan.json"
    if change is not None and change.goal is not None:
        return shlex.join([*machine, *_goal_options(change.goal)])
    if change is not None and change.card is not None:
        return shlex.join(["plan", "--model", goal.model, "--gpus", change.card, *_goal_options(goal)])
    return shlex.join(machine)


def _machine_options(cluster: Cluster) -> Iterator[str]:
    if not cluster.hypothetical:
        yield from ("--gpus", "auto")
        if cluster.nodes > 1:
            yield from ("--nodes", str(cluster.nodes))
        if cluster.described_link is not None:
            yield from ("--link", f"{cluster.described_link.bytes_per_second / 1e9:g}GB/s")
        return
    kinds: dict[str, int] = {}
    for gpu in cluster.gpus:
        kinds[gpu.device.name] = kinds.get(gpu.device.name, 0) + 1
    yield from ("--gpus", ",".join(f"{count}x{name}" for name, count in kinds.items()))
    if cluster.nodes > 1:
        yield from ("--nodes", str(cluster.nodes))
    for option, size_bytes in (("--host-memory", cluster.host.memory_bytes), ("--host-disk", cluster.host.disk_bytes)):
        if size_bytes is not None:
            yield from (option, f"{size_bytes}B")
    if cluster.described_link is not None:
        yield from ("--link", f"{cluster.described_link.bytes_per_second / 1e9:g}GB/s")


def _goal_options(goal: Goal) -> Iterator[str]:
    """The options that make a goal what it is, those at their default left out."""
    for field, option in OPTIONS.items():
        value = getattr(goal, field)
        if value == DEFAULT_GOAL_VALUES[field]:
            continue
        if value is True or value is False:
            yield option if value else option.replace("--", "--no-", 1)
        elif isinstance(value, tuple):
            yield from (option, ",".join(value))
        elif field.endswith("_bytes"):
            yield from (option, f"{value}B" if value else "0")
        else:
            yield from (option, str(value))
