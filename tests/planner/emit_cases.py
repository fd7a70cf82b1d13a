"""Recipes that the tools' files are held to: every method under every parallelism, and each other choice once."""

from collections.abc import Iterator
from typing import Any

from estimators.catalogue import find_device
from estimators.hardware import Cluster, Gpu, Host
from estimators.legality import objections
from estimators.models import load_model
from estimators.recipe import ALL_LINEAR, Adapter, Buckets, Parallelism, Recipe
from estimators.techniques import ADAPTERS, ATTENTIONS, LOSSES, OPTIMIZERS, PARALLELISMS, QUANTIZATIONS
from planner.emit.order import Data, DataKind, Order, Schedule

MODEL, HUB_ID = "llama-3.2-1b", "unsloth/Llama-3.2-1B"
DEVICE = find_device("h100-sxm")
CLUSTER = Cluster(gpus=(Gpu(device=DEVICE, total_bytes=DEVICE.total_bytes),) * 2, host=Host(memory_bytes=1 << 40))
OFFLOADS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("zero1", ("optimizer",), "cpu"), ("zero2", ("optimizer",), "cpu"), ("zero3", ("optimizer",), "cpu"),
    ("zero3", ("optimizer", "parameters"), "cpu"), ("zero3", ("optimizer", "parameters"), "nvme"),
    ("fsdp2", ("optimizer", "parameters"), "cpu"),
)  # fmt: skip
TYPES = (("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("float32", "float32"), ("float16", "float16"))
DIGEST = "0" * 64


def places() -> Iterator[Parallelism]:
    for kind in PARALLELISMS:
        yield Parallelism(kind=kind, devices=1 if kind == "none" else 2)
    for kind, offload, where in OFFLOADS:
        yield Parallelism(kind=kind, devices=2, offload=offload, offload_to=where)  # type: ignore[arg-type]


def adapter_of(method: str, **changes: Any) -> Adapter:
    if method == "full":
        return Adapter(method="full")
    plain: dict[str, Any] = {"rank": 8, "alpha": 32, "targets": ("q_proj", "v_proj")}
    return Adapter(method=method, **(plain | changes))


def recipes() -> Iterator[Recipe]:
    """All that estimators.legality lets through."""
    every = [
        Recipe(model=MODEL, adapter=adapter_of(method), quantization=base, parallelism=place, weights=weights)
        for method in ADAPTERS
        for base in QUANTIZATIONS
        for place in places()
        for weights in ("bfloat16", "float32")
        if weights == "bfloat16" or method == "full" or place.kind == "none"
    ]
    lora = adapter_of("lora")
    changes: list[dict[str, Any]] = [
        *({"optimizer": name} for name in OPTIMIZERS),
        *({"optimizer": name, "parallelism": Parallelism(kind="fsdp2", devices=2)} for name in OPTIMIZERS),
        *({"attention": name} for name in ATTENTIONS),
        *({"loss": name} for name in LOSSES),
        *({"weights": weights, "compute": compute} for weights, compute in TYPES),
        *({"weights": weights, "compute": compute, "adapter": adapter_of("full")} for weights, compute in TYPES),
        {"packing": True}, {"gradient_checkpointing": False}, {"expandable_segments": True}, {"evaluation_batch": 4},
        {"adapter": adapter_of("lora", targets=ALL_LINEAR)}, {"adapter": adapter_of("lora", dropout=0.05)},
        {"micro_batch": 4, "gradient_accumulation": 3, "learning_rate": 2e-4, "seed": 7},
        {"buckets": Buckets(reduce_elements=16_777_216), "parallelism": Parallelism(kind="zero3", devices=2)},
        {"trainer": "trl"}, {"trainer": "trl", "quantization": "nf4"},
        {"trainer": "trl", "parallelism": Parallelism(kind="zero3", devices=2)},
    ]  # fmt: skip
    plain: dict[str, Any] = {"model": MODEL, "adapter": lora}
    every += [Recipe(**(plain | change)) for change in changes]
    model = load_model(MODEL)
    yield from dict.fromkeys(one for one in every if not objections(model, one, CLUSTER))


def order(recipe: Recipe, kind: DataKind = "completion", **changes: Any) -> Order:
    plain: dict[str, Any] = {
        "weights": HUB_ID,
        "digest": DIGEST,
        "memory": "1 GiB a GPU",
        "devices": ("h100-sxm",) * recipe.parallelism.devices,
        "data": Data(path="/data/examples.jsonl", kind=kind),
    }
    return Order(recipe=recipe, **(plain | changes))


def name_of(recipe: Recipe) -> str:
    """Short and unlike any other's."""
    place = recipe.parallelism
    offload = "+".join(place.offload) + (place.offload_to if place.offload else "")
    words = (
        recipe.trainer, recipe.adapter.method, recipe.quantization, place.kind, offload, recipe.weights, recipe.compute,
        recipe.optimizer, recipe.attention, recipe.loss,
    )  # fmt: skip
    return "-".join(word for word in words if word)


SCHEDULES = (
    Schedule(name="linear", warm_up_steps=3),
    Schedule(name="linear", warm_up_steps=0),
    Schedule(name="cosine"),
    Schedule(name="constant", warm_up_steps=5),
    Schedule(name="constant", warm_up_steps=0),
)


def orders() -> Iterator[Order]:
    """Every recipe for both kinds of examples, and once each the schedules and what a job script may start."""
    kinds: tuple[DataKind, ...] = ("completion", "messages")
    yield from (order(recipe, kind) for recipe in recipes() for kind in kinds)
    lora = Recipe(model=MODEL, adapter=adapter_of("lora"))
    yield from (order(lora, schedule=schedule) for schedule in SCHEDULES)
    yield from (order(lora, tool=tool) for tool in ("trl", "axolotl", "llamafactory"))
