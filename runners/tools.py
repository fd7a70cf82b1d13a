"""How the tables of the tools are read: each says how a library spells our names, and what is in none is refused."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from estimators.errors import BadInput


def row(tool: str, table: Mapping[str, Any], name: str) -> Any:
    if name not in table:
        raise BadInput(f"{tool} has no way to run {name!r} here (it has {', '.join(table)})")
    return table[name]


def tool(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise BadInput(f"{name} is needed for this recipe and cannot be imported: {error}") from None


DATA_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
