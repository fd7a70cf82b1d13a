"""Figures and recipes in words: rounded as a person would, with their error bars; outside names made harmless."""

import math
from unicodedata import category

from estimators.hardware import Cluster
from estimators.price import Interval
from estimators.recipe import Recipe
from estimators.units import GIB, format_bytes, format_seconds
from planner.plan import Candidate

QUANTIZED = {"nf4": "4-bit NF4, double quantisation", "nf4-single": "4-bit NF4", "int8": "8-bit int8"}
ASYMMETRIC = 0.2
"""An error bar is written as one figure where its sides differ by no more than this part of the longer one."""


def clean(text: str) -> str:
    """`text` on one line, without what could move the cursor, colour the screen or reverse the reading direction."""
    return "".join(" " if letter in "\t\n\r" else _harmless(letter) for letter in text)


def _harmless(letter: str) -> str:
    return "?" if category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else letter


def error_bar(interval: Interval) -> str:
    """ "± 3 %", or "−2 % +5 %" where the sides differ; nothing where the figure is exact."""
    if not interval.value or not all(map(math.isfinite, (interval.low, interval.value, interval.high))):
        return ""
    below, above = 1 - interval.low / interval.value, interval.high / interval.value - 1
    widest = max(below, above)
    if widest < 0.0005:
        return ""
    if abs(above - below) <= ASYMMETRIC * widest:
        return f"± {_percent(widest)} %"
    return f"−{_percent(below)} % +{_percent(above)} %"


def _percent(share: float) -> str:
    """One digit behind the point below 1 %, none above."""
    percent = abs(share) * 100
    return f"{percent:.1f}" if 0 < percent < 0.95 else f"{percent:.0f}"


def count(number: float) -> str:
    """ "6.74 B", "4.19 M", "768": parameters and tokens."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= scale * 0.9995:
            return f"{number / scale:.3g} {letter}"
    return f"{number:,.0f}"


def rate(per_second: float) -> str:
    """Tokens a second to three significant digits: "3,120", "41.5"."""
    if not math.isfinite(per_second):
        return "unknown"
    return f"{per_second:.3g}" if per_second < 100 else f"{float(f'{per_second:.3g}'):,.0f}"


def gib(size_bytes: float) -> str:
    """A column of sizes in GiB, without the unit."""
    return f"{size_bytes / GIB:,.1f}"


def spare(size_bytes: float) -> str:
    """ "2.31 GiB spare", or how much is missing."""
    return f"{format_bytes(size_bytes)} spare" if size_bytes >= 0 else f"{format_bytes(-size_bytes)} missing"


def duration(seconds: float) -> str:
    """Three significant digits where that is not more than anyone wants: "17.4 s", "3.3 min", "31 min", "7.1 days"."""
    for limit, size, unit in ((1.0, 1e-3, "ms"), (100.0, 1.0, "s"), (600.0, 60.0, "min")):
        if seconds < limit:
            return f"{seconds / size:.{1 if unit == 'min' else 0}f} {unit}" if unit != "s" else f"{seconds:.3g} s"
    return format_seconds(seconds)


def number_of(amount: int, noun: str) -> str:
    """ "1 GPU", "2 GPUs"."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def joined(names: tuple[str, ...] | str) -> str:
    """ "q_proj and v_proj", "all-linear"."""
    if isinstance(names, str):
        return names
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def machine(cluster: Cluster) -> str:
    """ "2 × NVIDIA A100-SXM4-80GB", kinds in the order of the GPUs."""
    kinds: dict[str, int] = {}
    for gpu in cluster.gpus:
        kinds[gpu.device.title] = kinds.get(gpu.device.title, 0) + 1
    node = " + ".join(f"{number} × {clean(title)}" for title, number in kinds.items())
    return f"{cluster.nodes} nodes of {node}" if cluster.nodes > 1 else node


def describe(recipe: Recipe, parameters: int) -> list[tuple[str, str]]:
    """The recipe as labelled lines."""
    lines = [
        ("method", _method(recipe, parameters)),
        ("weights", _weights(recipe)),
        ("optimizer", recipe.optimizer),
        ("batch", _batch(recipe)),
        ("mechanics", ", ".join(_mechanics(recipe))),
    ]
    if recipe.parallelism.devices > 1 or recipe.parallelism.offload:
        lines.append(("parallelism", _parallelism(recipe)))
    return lines


def in_short(recipe: Recipe) -> str:
    """What the search chose for a recipe, in a table's cell: "4 × 4, checkpointing, adamw_bnb_8bit"."""
    parts = [f"batch {recipe.micro_batch} × {recipe.gradient_accumulation}"]
    parts += ["checkpointing"] * recipe.gradient_checkpointing
    parts += [recipe.optimizer] * (recipe.optimizer not in ("adamw_torch", "adamw_torch_fused"))
    parts += [f"{recipe.loss} loss"] * (recipe.loss != "plain")
    parts += [recipe.attention] * (recipe.attention != "sdpa")
    return ", ".join(parts)


def label(candidate: Candidate) -> str:
    """A candidate's method, with how many GPUs it uses where that is not one."""
    return candidate.method if candidate.gpus == 1 else f"{candidate.method}, {candidate.gpus} GPUs"


def _method(recipe: Recipe, parameters: int) -> str:
    adapter = recipe.adapter
    if adapter.trains_everything:
        return f"full fine-tuning of all {count(parameters)} parameters"
    name = {"lora": "LoRA", "dora": "DoRA"}.get(adapter.method, adapter.method)
    if recipe.quantization.startswith("nf4"):
        name = f"Q{name}"
    dropout = f", dropout {adapter.dropout:g}" if adapter.dropout else ""
    return f"{name} of rank {adapter.rank}, alpha {adapter.alpha}{dropout}, on {clean(joined(adapter.targets))}"


def _weights(recipe: Recipe) -> str:
    base = f"base in {QUANTIZED[recipe.quantization]}; the rest " if recipe.quantization in QUANTIZED else ""
    if recipe.compute == recipe.weights:
        return f"{base}{recipe.weights}"
    how = "gathered" if recipe.parallelism.kind == "fsdp2" else "autocast"
    return f"{base}{recipe.weights}, computed in {recipe.compute} ({how})"


def _batch(recipe: Recipe) -> str:
    factors = f"{recipe.micro_batch} micro-batch × {recipe.gradient_accumulation} accumulated"
    if recipe.parallelism.devices > 1:
        factors += f" × {recipe.parallelism.devices} GPUs"
    return f"{number_of(recipe.global_batch, 'sequence')} of {recipe.sequence_length:,} tokens a step = {factors}"


def _mechanics(recipe: Recipe) -> list[str]:
    parts = ["gradient checkpointing" if recipe.gradient_checkpointing else "no gradient checkpointing"]
    parts += [f"{recipe.attention} attention", f"{recipe.loss} loss"]
    parts += [f"{recipe.trainer} trainer"] * (recipe.trainer != "transformers")
    parts += ["padded batches"] * recipe.padded + ["packing"] * recipe.packing
    return parts + ["expandable segments"] * recipe.expandable_segments


def _parallelism(recipe: Recipe) -> str:
    spread = recipe.parallelism
    text = spread.kind if spread.kind != "none" else "one GPU"
    text += f" over {spread.devices} GPUs" if spread.devices > 1 else ""
    if spread.offload:
        text += f", {joined(spread.offload)} kept in {'host memory' if spread.offload_to == 'cpu' else 'NVMe files'}"
    return text
