"""What `from_pretrained` allocates while it loads a checkpoint to one GPU, weight by weight and quantised as it goes.

transformers 5 first takes and gives back one block of the whole model's size (caching_allocator_warmup), then reads the
checkpoint's tensors in natural order of their names; an 8-bit or 4-bit weight is quantised when it has arrived in full,
before the next one is read (core_model_loading.convert_and_load_state_dict_in_model). Unquantised tensors are read by
several threads, which changes the order of neighbours only.

Held to four measured loads, tests/runners/test_dry_shims.py.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from estimators.models import Config
from estimators.recipe import Adapter, Recipe
from runners import build as building

META: Final = "meta"
BYTES_WARMED = {"nf4": 0.5, "nf4-single": 0.5, "int8": 1.0}
"""Bytes that the warm-up counts for an element of a quantised weight (HfQuantizer.param_element_size)."""


def load(recipe: Recipe, config: Config) -> list[Any]:
    """Makes the loader's tensors in the loader's order, for a recorder to see; returns those that stay.

    Raises:
        BadInput: the recipe names what its tools do not have.
    """
    with building.hollow():
        bare = replace(recipe, quantization="none", adapter=Adapter(method="full"))
        model = building.build_model(bare, config, META)
    layers = _quantized_layers(model, recipe)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    stored = {name: tensor for name, tensor in tensors if name in model.state_dict()}
    _warm_up(stored, layers, recipe)
    kept = [_arrive(stored[name], layers.get(name), recipe) for name in sorted(stored, key=_natural)]
    return [*kept, *_computed(model)]


def _quantized_layers(model: nn.Module, recipe: Recipe) -> dict[str, nn.Module]:
    """By the names of their weights."""
    if not recipe.quantized:
        return {}
    return {f"{name}.weight": module for name, module in model.named_modules() if building.is_quantized(name, module)}


def _warm_up(stored: dict[str, Tensor], layers: dict[str, nn.Module], recipe: Recipe) -> None:
    sizes = (
        tensor.numel() * (BYTES_WARMED[recipe.quantization] if name in layers else tensor.element_size())
        for name, tensor in stored.items()
    )
    block = torch.empty(int(sum(sizes)), dtype=torch.uint8, device=META)
    del block


def _arrive(tensor: Tensor, layer: nn.Module | None, recipe: Recipe) -> Any:
    """One tensor is copied to the GPU, and quantised there where its layer is."""
    arrived = torch.empty(tensor.shape, dtype=tensor.dtype, device=META)
    if layer is None:
        return arrived
    inputs, outputs = building.linear_shape(layer)
    shape = {"input_features": inputs, "output_features": outputs, "bias": False}
    with building.hollow():
        module, parameter = building.BITSANDBYTES_LAYERS[recipe.quantization](shape, recipe)
    return _quantize(parameter, arrived), module  # the module holds the scales


def _quantize(parameter: Callable[[Tensor], Any], arrived: Tensor) -> Any:
    return parameter(arrived)._quantize(torch.device(META))


def _computed(model: Any) -> list[Any]:
    """Rotary frequencies are in no checkpoint."""
    found = []
    for name, module in model.named_modules():
        if name.endswith("rotary_emb"):
            with torch.device(META):
                found.append(type(module)(module.config))
    return found


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Numbers in a name order as numbers, and before words (dot_natural_key)."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
