"""Which shallow models stand for a deep one: how many blocks to trace, and which of them to repeat."""

from collections.abc import Hashable
from dataclasses import dataclass, replace

from estimators.model import ModelSpec
from estimators.models import Config
from runners.dry.depth import Window

DEPTH_FIELDS = ("num_hidden_layers", "n_layer", "num_layers")
LONGEST_PERIOD, LONGEST_PREFIX = 8, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Depths:
    """A model is traced with `depth` blocks, and checked with a window less; `copies` windows more make it whole."""

    depth: int
    window: Window
    copies: int

    @property
    def check(self) -> int:
        return self.depth - self.window.period


def depths_of(model: ModelSpec, config: Config) -> Depths | None:
    """How to trace a model without tracing it whole; None where that would not be less work.

    Alike blocks may differ where they are the first or the last of their kind, and in what they free of a neighbour:
    so the window starts where each kind has been seen, and two blocks come after it.
    """
    kinds = _kinds(model, config)
    layers = len(kinds)
    for period in range(1, LONGEST_PERIOD + 1):
        prefix = next((start for start in range(layers) if _repeats(kinds[start:], period)), layers)
        if prefix > LONGEST_PREFIX:
            continue
        window = Window(start=max(2, prefix + period), period=period)
        depth = window.end + 2
        depth += (layers - depth) % period
        if 2 * depth - period < layers:
            return Depths(depth=depth, window=window, copies=(layers - depth) // period)
    return None


def _repeats(kinds: list[Hashable], period: int) -> bool:
    return all(first == later for first, later in zip(kinds, kinds[period:], strict=False))


def _kinds(model: ModelSpec, config: Config) -> list[Hashable]:
    """What each block is: its shapes, and what the config's lists say of it."""
    layers = len(model.layers)
    lists = [value for value in config.fields.values() if isinstance(value, list) and len(value) == layers]
    return [(block, *(repr(values[index]) for values in lists)) for index, block in enumerate(model.layers)]


def shallow(config: Config, layers: int) -> Config:
    """The same model cut to its first blocks."""
    depth = next(value for key in DEPTH_FIELDS if isinstance(value := config.fields.get(key), int))
    fields = {
        key: layers
        if key in DEPTH_FIELDS
        else value[:layers]
        if isinstance(value, list) and len(value) == depth
        else value
        for key, value in config.fields.items()
    }
    return replace(config, fields=fields)
