"""Every technique that the product knows, by axis: a new one is a law file and a line here."""

from collections.abc import Mapping
from typing import TypeVar

from estimators.errors import UnknownName
from estimators.strategies.adapter.dora import Dora
from estimators.strategies.adapter.full import Full
from estimators.strategies.adapter.lora import Lora
from estimators.strategies.attention.eager import EagerAttention
from estimators.strategies.attention.flash_attention_2 import FlashAttention2
from estimators.strategies.attention.sdpa import FusedAttention
from estimators.strategies.attention.sdpa_no_cudnn import WithoutCudnn
from estimators.strategies.axes import (
    AdapterLaw,
    AttentionLaw,
    LossLaw,
    OptimizerLaw,
    ParallelismLaw,
    QuantizationLaw,
)
from estimators.strategies.loss.liger import LigerLoss
from estimators.strategies.loss.plain import PlainLoss
from estimators.strategies.loss.trl import TiledLoss
from estimators.strategies.optimizer.adafactor import Adafactor
from estimators.strategies.optimizer.adamw import AdamW
from estimators.strategies.optimizer.bitsandbytes import BitsAndBytes
from estimators.strategies.optimizer.sgd import Sgd
from estimators.strategies.parallelism.fsdp2 import Fsdp2
from estimators.strategies.parallelism.replicated import Replicated
from estimators.strategies.parallelism.zero import Zero
from estimators.strategies.parallelism.zero3 import Zero3
from estimators.strategies.quantization.int8 import Int8
from estimators.strategies.quantization.nf4 import NormalFloat4
from estimators.strategies.quantization.unquantized import Unquantized

Law = TypeVar("Law")

ADAPTERS: dict[str, AdapterLaw] = {law.name: law for law in (Full(), Lora(), Dora())}

QUANTIZATIONS: dict[str, QuantizationLaw] = {
    law.name: law
    for law in (
        Unquantized(),
        NormalFloat4(name="nf4", double=True),
        NormalFloat4(name="nf4-single", double=False),
        Int8(),
    )
}

OPTIMIZERS: dict[str, OptimizerLaw] = {
    law.name: law
    for law in (
        AdamW(name="adamw_torch", foreach=True),
        AdamW(name="adamw_torch_fused", foreach=False),
        BitsAndBytes(name="adamw_8bit", moments=2, eight_bit=True),
        BitsAndBytes(name="adamw_bnb_8bit", moments=2, eight_bit=True),
        BitsAndBytes(name="paged_adamw_8bit", moments=2, eight_bit=True, paged=True),
        BitsAndBytes(name="paged_adamw_32bit", moments=2, eight_bit=False, paged=True),
        Adafactor(),
        BitsAndBytes(name="lion_32bit", moments=1, eight_bit=False, changes_learning=True),
        BitsAndBytes(name="lion_8bit", moments=1, eight_bit=True, changes_learning=True),
        BitsAndBytes(name="paged_lion_32bit", moments=1, eight_bit=False, paged=True, changes_learning=True),
        BitsAndBytes(name="paged_lion_8bit", moments=1, eight_bit=True, paged=True, changes_learning=True),
        Sgd(),
    )
}

PARALLELISMS: dict[str, ParallelismLaw] = {
    law.name: law
    for law in (
        Replicated(name="none"),
        Replicated(name="ddp"),
        Zero(name="zero1", partitions_gradients=False),
        Zero(name="zero2", partitions_gradients=True),
        Zero3(),
        Fsdp2(),
    )
}

ATTENTIONS: dict[str, AttentionLaw] = {
    law.name: law
    for law in (
        FusedAttention(name="sdpa"),
        WithoutCudnn(),
        FlashAttention2(),
        EagerAttention(),
    )
}

LOSSES: dict[str, LossLaw] = {law.name: law for law in (PlainLoss(), LigerLoss())}
"""What a recipe may name. TRL's trainer replaces the plain loss by its own tiled one."""
TRL_LOSS = TiledLoss()


def find_law(axis: str, laws: Mapping[str, Law], name: str) -> Law:
    """The law called `name`.

    Raises:
        UnknownName: there is none; the message lists the names that the axis has.
    """
    try:
        return laws[name]
    except KeyError:
        raise UnknownName(axis, name, laws, hint=f"(known: {', '.join(laws)})") from None
