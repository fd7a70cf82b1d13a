"""flash-attn's own kernel: as torch's fused one, but padding is dropped before it, so no mask keeps it away.

Source: FlashAttention-2 (arXiv 2307.08691); transformers 5 modeling_flash_attention_utils.py, which unpads a padded
batch. Such a batch is counted as if it were full.
"""

from dataclasses import dataclass

from estimators.strategies.attention.sdpa import FusedAttention
from estimators.strategies.axes import Needs

NEEDS = Needs(compute_capability=(8, 0), data_types=("bfloat16", "float16"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashAttention2(FusedAttention):
    """The kernel of the flash-attn package."""

    name: str = "flash_attention_2"
    explicit_mask: bool = False
    needs: Needs = NEEDS
