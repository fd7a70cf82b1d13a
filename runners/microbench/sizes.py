"""How much the microbenchmarks do: enough for a data-centre card, or next to nothing in tests."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Shapes and amounts."""

    products: tuple[tuple[int, int, int], ...]
    """Rows, inner side and columns of the matrix products, as steps have them."""
    float32_products: tuple[tuple[int, int, int], ...]
    narrow: tuple[int, int, int]
    """Of an adapter's product: tokens, width, rank."""
    moved_elements: int
    """Of the tensors that are copied and added."""
    updated_parameters: int
    attention_tokens: int
    attention_heads: int
    copied_bytes: int
    """Between host and GPU."""
    disk_bytes: int
    reduced_bytes: int
    """By collectives of several GPUs."""
    cpu_parameters: int
    """Updated by the CPU's Adam."""
    width: int
    layers: int
    """Of the small model whose operators the host issues."""
    trainer_steps: int
    repeats: int
    """Of one pass of it."""
    round_seconds: float
    power_seconds: float
    """The same of what draws so much power that a limit shows after a while."""


FULL = Sizes(
    products=((4096, 4096, 4096), (8192, 4096, 14336), (4096, 2048, 8192), (8192, 8192, 8192)),
    float32_products=((4096, 4096, 4096),),
    narrow=(8192, 4096, 16),
    moved_elements=1 << 28,
    updated_parameters=1 << 27,
    attention_tokens=2048,
    attention_heads=32,
    copied_bytes=1 << 28,
    disk_bytes=1 << 28,
    reduced_bytes=1 << 28,
    cpu_parameters=1 << 27,
    width=256,
    layers=12,
    trainer_steps=16,
    repeats=12,
    round_seconds=0.08,
    power_seconds=0.2,
)
TINY = Sizes(
    products=((32, 32, 32),),
    float32_products=((32, 32, 32),),
    narrow=(32, 32, 4),
    moved_elements=1 << 12,
    updated_parameters=1 << 12,
    attention_tokens=16,
    attention_heads=2,
    copied_bytes=1 << 16,
    disk_bytes=1 << 16,
    reduced_bytes=1 << 16,
    cpu_parameters=1 << 14,
    width=64,
    layers=3,
    trainer_steps=4,
    repeats=2,
    round_seconds=0.001,
    power_seconds=0.001,
)
SIZES = {"full": FULL, "tiny": TINY}
