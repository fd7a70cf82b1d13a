"""Which of a model's modules and tensors belong to which of its decoder blocks."""

from torch import nn

from runners.dry.stream import OUTSIDE


def block_names(model: nn.Module, depth: int) -> dict[str, int]:
    """The decoder blocks by their modules' names: the outermost list of `depth` modules."""
    lists = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if not lists:
        return {}
    outermost = min(lists, key=lambda name: name.count("."))
    return {f"{outermost}.{index}": index for index in range(depth)}


def block_of(name: str, blocks: dict[str, int]) -> int:
    """The block that a module or tensor of this name belongs to."""
    parts = name.split(".")
    return next(
        (blocks[prefix] for end in range(len(parts), 0, -1) if (prefix := ".".join(parts[:end])) in blocks), OUTSIDE
    )
