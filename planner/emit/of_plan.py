"""From a recipe with its price to the order that the tools' files are made from."""

from pathlib import Path

from estimators.errors import BadInput
from estimators.hardware import Cluster
from estimators.models import Config
from estimators.placement import used_cluster
from estimators.price import Price
from estimators.recipe import Recipe
from estimators.units import format_bytes
from planner.emit.order import Data, Order, steps_of


def order_of(
    recipe: Recipe,
    price: Price,
    cluster: Cluster,
    *,
    weights: str,
    digest: str,
    data: Data | None,
    tokens: int | None = None,
    samples: int | None = None,
    rate_was_said: bool = True,
) -> Order:
    used = used_cluster(cluster, recipe.parallelism.devices)
    size, most = format_bytes(price.process.value), format_bytes(price.process.high)
    return Order(
        recipe=recipe,
        weights=weights,
        digest=digest,
        memory=f"{size} a GPU, at most {most}, by {price.evidence}",
        data=data,
        nodes=used.nodes,
        rate_was_said=rate_was_said,
        steps=steps_of(tokens, samples, recipe),
        devices=tuple(gpu.device.name for gpu in used.gpus),
        gpu_ids=_numbers(cluster, used),
    )


def _numbers(cluster: Cluster, used: Cluster) -> tuple[int, ...]:
    """Of the GPUs that were chosen among those of this machine; none where all are used, or none is known."""
    numbers = [gpu.index for gpu in used.gpus]
    if cluster.hypothetical or len(used.gpus) == len(cluster.gpus):
        return ()
    return () if None in numbers else tuple(number for number in numbers if number is not None)


def weights_of(name: str, config: Config) -> str:
    """What a trainer loads: the Hub id, or the checkpoint's folder.

    Raises:
        BadInput: a configuration alone, which nothing can be trained from.
    """
    if config.hub_id is not None:
        return config.hub_id
    path = Path(name).expanduser().absolute()
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.name != "config.json":
        raise BadInput(f"--emit needs a Hub id or a checkpoint folder, not the configuration {name[:80]!a} alone")
    return str(folder)
