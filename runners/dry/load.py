"""What `from_pretrained` allocates while it loads a checkpoint to one GPU, weight by weight and quantised as it goes.

transformers 5 first takes and gives back one block of the whole model's size (caching_allocator_warmup), then reads the
checkpoint's tensors in natural order of their names; an 8-bit or 4-bit weight is quantised when it has arrived in full,
before the next one is read (core_model_loading.convert_and_load_state_dict_in_model). Unquantised tensors are read by
several threads, which changes the order of neighbours only. Tensors that the checkpoint holds in other pieces than the
model, like the experts of a mixture, are put together by transformers' own converters.

Held to four measured loads, tests/runners/test_dry_shims.py.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.pytorch_utils import Conv1D

from estimators.models import Config
from estimators.recipe import Adapter, Recipe
from runners import build as building
from runners.tools import row

META: Final = "meta"
BYTES_WARMED = {"nf4": 0.5, "nf4-single": 0.5, "int8": 1.0}
"""Bytes that the warm-up counts for an element of a quantised weight (HfQuantizer.param_element_size)."""


def load_to_train(recipe: Recipe, config: Config) -> nn.Module:
    """A checkpoint loaded as `runners.weights` does, with its adapters, as the recipe's trainer gets it.

    Raises:
        BadInput: the recipe names what its tools do not have.
    """
    model: nn.Module = building.adapted(load(recipe, config), recipe)
    row("trainer", building.TRAINERS, recipe.trainer)(model, recipe)
    return model


def load(recipe: Recipe, config: Config) -> Any:
    """Makes the loader's tensors in the loader's order, for a recorder to see; returns the model that keeps them.

    Raises:
        BadInput: the recipe names what its tools do not have.
    """
    with building.hollow():
        bare = replace(recipe, quantization="none", adapter=Adapter(method="full"))
        model: Any = building.build_model(bare, config, META)
    layers = _quantized_layers(model, recipe)
    state = model.state_dict()
    stored = {name: tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name in state}
    _warm_up(stored, layers, recipe)
    for names, converter in _groups(model, stored):
        tensors = {name: stored[name] for name in names}
        arrived = _copied(tensors) if converter is None else _converted(model, tensors, *converter)
        for name in list(arrived):
            _put(model, name, arrived.pop(name), layers.get(name), recipe)
    _compute(model)
    model.tie_weights()
    return building.mark_quantized(model, recipe) if recipe.quantized else model


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


Converter = tuple[Any, Any]
"""From checkpoint to model, and the way back."""


def _groups(model: Any, stored: dict[str, Tensor]) -> Iterator[tuple[list[str], Converter | None]]:
    """The model's tensors in the checkpoint's order; those that come from the same pieces are together."""
    forth = [one for one in get_model_conversion_mapping(model, add_legacy=False) if isinstance(one, WeightConverter)]
    pairs: list[Converter] = [(one, one.reverse_transform()) for one in forth]
    groups: dict[str, tuple[list[str], Converter | None]] = {}
    for name in sorted(stored, key=_natural):
        found = ((*pair[1].rename_source_key(name), pair) for pair in pairs)
        key, pair = next(((key, pair) for key, pattern, pair in found if pattern is not None), (name, None))
        groups.setdefault(key, ([], pair))[0].append(name)
    yield from groups.values()


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.empty(one.shape, dtype=one.dtype, device=META) for name, one in tensors.items()}


def _converted(model: Any, tensors: dict[str, Tensor], forth: Any, back: Any) -> dict[str, Tensor]:
    """Pieces are copied to the GPU, and put together there by the library's own operations."""
    back, forth = deepcopy(back), deepcopy(forth)
    with building.hollow():
        for name, tensor in tensors.items():
            key, pattern = back.rename_source_key(name)
            back.add_tensor(key, name, pattern, tensor)
        pieces = _first(back.convert(key, model=model, config=model.config))
    for name in sorted(pieces, key=_natural):
        target, pattern = forth.rename_source_key(name)
        forth.add_tensor(target, name, pattern, lambda piece=pieces[name]: _copied({"": piece})[""])
    return _first(forth.convert(target, model=model, config=model.config))


def _first(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: one[0] if isinstance(one, list) else one for name, one in tensors.items()}


def _put(model: nn.Module, name: str, tensor: Tensor, layer: nn.Module | None, recipe: Recipe) -> None:
    """A tensor takes the place of its likeness in the skeleton, quantised first where its layer is."""
    path, _, last = name.rpartition(".")
    if layer is None:
        module = model.get_submodule(path)
        setattr(module, last, tensor if last in module._buffers else nn.Parameter(tensor))
        return
    inputs, outputs = building.linear_shape(layer)
    shape = {"input_features": inputs, "output_features": outputs, "bias": layer.bias is not None}
    with building.hollow():
        new, parameter = building.BITSANDBYTES_LAYERS[recipe.quantization](shape, recipe)
    model.set_submodule(path, new)
    turned = tensor.T if isinstance(layer, Conv1D) else tensor  # GPT-2 stores inputs first
    new.weight = parameter(turned)._quantize(torch.device(META))


def _compute(model: Any) -> None:
    """Rotary frequencies are in no checkpoint."""
    for name, module in list(model.named_modules()):
        if name.endswith("rotary_emb"):
            with torch.device(META):
                model.set_submodule(name, type(module)(module.config))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Numbers in a name order as numbers, and before words (dot_natural_key)."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
