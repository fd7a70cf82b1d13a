"""Hypothesis strategies for recipes, legal and illegal."""

from dataclasses import replace

from hypothesis import strategies as st

from estimators.models import load_model
from estimators.recipe import ALL_LINEAR, Adapter, Parallelism, Recipe
from estimators.techniques import ADAPTERS, ATTENTIONS, LOSSES, OPTIMIZERS, PARALLELISMS, QUANTIZATIONS

MODELS = ("llama-3.2-1b", "qwen2.5-0.5b", "gpt2", "pythia-410m", "gemma-2-2b", "phi-2", "olmoe-1b-7b", "opt-350m")
KINDS = ("none", "none", "ddp", "zero1", "zero2", "zero3", "fsdp2")
DATA_TYPES = ("float32", "bfloat16", "float16")

adapters = st.one_of(
    st.just(Adapter(method="full")),
    st.builds(
        lambda method, rank, dropout: Adapter(
            method=method, rank=rank, alpha=4 * rank, dropout=dropout, targets=ALL_LINEAR
        ),
        st.sampled_from([name for name in ADAPTERS if name != "full"]),
        st.integers(1, 256),
        st.sampled_from([0.0, 0.05]),
    ),
)
placements = st.builds(
    Parallelism,
    kind=st.sampled_from(list(PARALLELISMS)),
    devices=st.integers(1, 8),
    offload=st.sampled_from([(), ("optimizer",), ("optimizer", "parameters")]),
    offload_to=st.sampled_from(["cpu", "nvme"]),
)
recipes = st.builds(
    Recipe,
    model=st.sampled_from(MODELS),
    adapter=adapters,
    trainer=st.sampled_from(["transformers", "trl"]),
    quantization=st.sampled_from(list(QUANTIZATIONS)),
    weights=st.sampled_from(DATA_TYPES),
    compute=st.sampled_from(DATA_TYPES),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    gradient_checkpointing=st.booleans(),
    attention=st.sampled_from(list(ATTENTIONS)),
    loss=st.sampled_from(list(LOSSES)),
    micro_batch=st.integers(1, 16),
    gradient_accumulation=st.integers(1, 8),
    sequence_length=st.integers(16, 1024),
    padded=st.booleans(),
    parallelism=placements,
    kbit_upcast=st.sampled_from([None, True, False]),
    expandable_segments=st.booleans(),
)


@st.composite
def legal_recipes(draw: st.DrawFn, with_adapter: bool = False, kinds: tuple[str, ...] = KINDS) -> Recipe:
    """Recipes that can run on eight H200s with a large host: each axis is drawn within what the others allow."""
    recipe = draw(recipes)
    adapter = draw(adapters.filter(lambda one: one.method != "full")) if with_adapter else recipe.adapter
    kind = draw(st.sampled_from(kinds))
    sharded = kind.startswith(("zero", "fsdp"))
    everything = adapter.method == "full"
    compute = draw(st.sampled_from(["bfloat16", "float16", "float32"] if kind in ("none", "ddp") else ["bfloat16"]))
    weights = "float32" if compute == "float32" or (everything and not kind.startswith("zero")) else compute
    quantized = compute != "float32" and not everything and kind in ("none", "ddp")
    devices = 1 if kind == "none" else draw(st.integers(2, 8))
    offloads = {
        "zero1": [(), ("optimizer",)],
        "zero2": [(), ("optimizer",)],
        "zero3": [(), ("optimizer", "parameters")],
    }
    liger = load_model(recipe.model).model_type in (LOSSES["liger"].needs.model_types or ())
    flash = recipe.attention == "flash_attention_2" and compute == "float32"
    return replace(
        recipe,
        adapter=adapter,
        loss=recipe.loss if liger else "plain",
        attention="sdpa" if flash else recipe.attention,
        quantization=recipe.quantization if quantized else "none",
        weights=weights,
        compute=compute,
        optimizer=draw(st.sampled_from(["adamw_torch", "adamw_torch_fused"])) if sharded else recipe.optimizer,
        parallelism=Parallelism(kind=kind, devices=devices, offload=draw(st.sampled_from(offloads.get(kind, [()])))),
    )
