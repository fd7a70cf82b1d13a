"""Recipes drawn from a fixed seed, such that every two choices of different axes that can go together do so once.

An axis is one dictionary below; what a technique's registry lists is on its axis, so a new technique is drawn at once.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from estimators.catalogue import find_device
from estimators.families import FAMILIES
from estimators.hardware import Cluster, Gpu
from estimators.legality import objections
from estimators.model import ModelSpec
from estimators.models import Config, build, load_config
from estimators.recipe import ALL_LINEAR, Adapter, Parallelism, Recipe
from estimators.techniques import ADAPTERS, ATTENTIONS, LOSSES, OPTIMIZERS, QUANTIZATIONS
from estimators.trainable import default_targets
from tests.estimators.tiny import shallow

SEED, POOL = 20_261_122, 4000
"""So many legal recipes are drawn, and the cover is chosen among them."""
DEVICE = find_device("h200")
CLUSTER = Cluster(gpus=(Gpu(device=DEVICE, total_bytes=DEVICE.total_bytes),))

MODELS = {
    "deepseek_v2": "deepseek-v2-lite", "deepseek_v3": "deepseek-v3", "falcon": "falcon-7b", "gemma": "gemma-2b",
    "gemma2": "gemma-2-2b", "gemma3_text": "gemma-3-1b", "gpt2": "gpt2-large", "gpt_neox": "pythia-410m",
    "granite": "granite-3.3-2b", "llama": "llama-3.2-1b", "mistral": "mistral-7b", "mixtral": "mixtral-8x7b",
    "olmo": "olmo-1b", "olmo2": "olmo-2-1b", "olmo3": "olmo-3-7b", "olmoe": "olmoe-1b-7b", "opt": "opt-350m",
    "phi": "phi-2", "phi3": "phi-3-mini", "qwen2": "qwen2.5-0.5b", "qwen2_moe": "qwen1.5-moe-a2.7b",
    "qwen3": "qwen3-0.6b", "qwen3_moe": "qwen3-30b-a3b", "smollm3": "smollm3-3b", "stablelm": "stablelm-2-1.6b",
    "starcoder2": "starcoder2-3b",
}  # fmt: skip
"""A model of each family: the smallest whose widths are those of a real job."""
DATA_TYPES = (
    ("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("float32", "float32"), ("float32", "float16"),
    ("float16", "float16"),
)  # fmt: skip
"""Weights and compute."""
AXES: dict[str, Sequence[object]] = {
    "family": tuple(FAMILIES),
    "adapter": tuple(ADAPTERS),
    "targets": ("default", ALL_LINEAR),
    "quantization": tuple(QUANTIZATIONS),
    "optimizer": tuple(OPTIMIZERS),
    "attention": tuple(ATTENTIONS),
    "loss": tuple(LOSSES),
    "data types": DATA_TYPES,
    "checkpointing": (True, False),
    "padded": (True, False),
    "dropout": (0.0, 0.1),
    "kbit_upcast": (None, True, False),
    "trainer": ("transformers", "trl"),
    "accumulation": (1, 2),
    "rank": (8, 64),
    "batch": ((8, 256), (3, 640), (2, 1024), (1, 2048)),
    "parallelism": ("none",),
}
"""Batch: sequences and tokens of each. Kinds of parallelism are added once the dry run traces them."""
MUTE_WHEN_FULL = ("targets", "dropout", "rank", "kbit_upcast")
Choice = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """A recipe, and what was chosen on each axis."""

    recipe: Recipe
    choice: Choice

    @property
    def pairs(self) -> frozenset[tuple[object, ...]]:
        return frozenset((*first, *second) for first, second in combinations(self.choice.items(), 2))

    def config(self, layers: int) -> Config:
        return shallow(load_config(self.recipe.model), layers)

    def __str__(self) -> str:
        return " ".join(str(value) for value in self.choice.values())


@cache
def _model(family: str) -> ModelSpec:
    return build(load_config(MODELS[family]))


def recipe_of(choice: Choice) -> Recipe:
    full = choice["adapter"] == "full"
    model = _model(str(choice["family"]))
    targets = ALL_LINEAR if choice["targets"] == ALL_LINEAR else default_targets(model)
    rank = int(str(choice["rank"]))
    adapter = Adapter(
        method=str(choice["adapter"]), rank=rank, alpha=4 * rank, dropout=float(str(choice["dropout"])), targets=targets
    )
    return Recipe(
        model=MODELS[str(choice["family"])],
        adapter=Adapter(method="full") if full else adapter,
        trainer=choice["trainer"],  # type: ignore[arg-type]
        quantization=str(choice["quantization"]),
        weights=choice["data types"][0],  # type: ignore[index]
        compute=choice["data types"][1],  # type: ignore[index]
        optimizer=str(choice["optimizer"]),
        gradient_checkpointing=bool(choice["checkpointing"]),
        attention=str(choice["attention"]),
        loss=str(choice["loss"]),
        micro_batch=choice["batch"][0],  # type: ignore[index]
        sequence_length=choice["batch"][1],  # type: ignore[index]
        gradient_accumulation=int(str(choice["accumulation"])),
        padded=bool(choice["padded"]),
        kbit_upcast=choice["kbit_upcast"],  # type: ignore[arg-type]
        parallelism=Parallelism(kind=str(choice["parallelism"])),
    )


def _refused(model: ModelSpec, recipe: Recipe) -> Iterator[str]:
    """What transformers 5.23 refuses and 5.17 took, so that estimators.legality does not."""
    if model.layers[0].attention.softcap and recipe.attention.startswith("sdpa"):
        yield "transformers has no such attention for models that cap its scores (Gemma2PreTrainedModel)"


def can_run(choice: Choice, recipe: Recipe) -> Choice | None:
    """The choice less what says nothing beside the rest of it; None where the recipe cannot run."""
    model = _model(str(choice["family"]))
    if objections(model, recipe, CLUSTER) or any(_refused(model, recipe)):
        return None
    mute = MUTE_WHEN_FULL if recipe.adapter.trains_everything else () if recipe.quantized else ("kbit_upcast",)
    return {axis: value for axis, value in choice.items() if axis not in mute}


def _legal(generator: random.Random) -> Iterator[Drawn]:
    """Recipes that can run, without end."""
    while True:
        choice: Choice = {axis: generator.choice(values) for axis, values in AXES.items()}
        if choice["adapter"] == "full":  # the only one that it goes with, so that one recipe in three is full
            choice["quantization"] = "none"
        recipe = recipe_of(choice)
        if said := can_run(choice, recipe):
            yield Drawn(recipe=recipe, choice=said)


@cache
def drawn_recipes(count: int) -> tuple[Drawn, ...]:
    """A greedy pairwise cover of the axes, and as many more as make `count`."""
    generator = random.Random(SEED)
    legal = _legal(generator)
    pool = [next(legal) for _ in range(POOL)]
    pairs = [drawn.pairs for drawn in pool]
    missing = set().union(*pairs)
    chosen: dict[int, None] = {}
    while missing:
        sample = generator.sample(range(POOL), 60)
        best = max(sample, key=lambda index: len(pairs[index] & missing))
        if not pairs[best] & missing:  # few are left: look at all
            best = max(range(POOL), key=lambda index: len(pairs[index] & missing))
        chosen[best] = None
        missing -= pairs[best]
    rest = (index for index in range(POOL) if index not in chosen)
    indices = [*chosen, *(next(rest) for _ in range(count - len(chosen)))]
    return tuple(pool[index] for index in indices)
