"""Loading a checkpoint and saving what was trained, as a plan's phases: what they take beside training; CPU only."""

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

from dataclasses import replace
from functools import cache

from estimators.allocator import begin
from estimators.calibration import DEFAULT
from estimators.catalogue import find_device
from estimators.hardware import Host
from estimators.models import build, load_config, load_model
from estimators.pricing import price
from estimators.recipe import ALL_LINEAR, Adapter, Parallelism, Recipe
from estimators.size import Tracer, saving_bytes, size_of
from estimators.units import MIB
from planner.cluster import hypothetical_cluster
from runners.dry.depth import repeated, same, slopes_between
from runners.dry.shallow import depths_of, shallow
from runners.dry.steps import record, record_load
from runners.dry.stream import Stream
from runners.dry.trace import Trace, dry_run

H200 = find_device("h200")
FULL, LORA = Adapter(method="full"), Adapter(method="lora", rank=16, alpha=64, targets=("q_proj", "v_proj"))
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

LOADS: dict[str, dict[str, object]] = {
    "llama-3.2-1b": {},
    "qwen2.5-0.5b": {"quantization": "nf4", "adapter": replace(LORA, targets=ALL_LINEAR)},
    "smollm2-135m": {"quantization": "int8", "trainer": "trl"},
    "olmoe-1b-7b": {"adapter": replace(LORA, targets=("q_proj",))},
}
SAVES: dict[str, dict[str, object]] = {
    "qwen2.5-0.5b": {"quantization": "nf4"},
    "olmoe-1b-7b": {"adapter": FULL},
}


def recipe_of(name: str, changes: dict[str, object]) -> Recipe:
    return replace(Recipe(model=name, adapter=LORA, sequence_length=256), **changes)  # type: ignore[arg-type]


@cache
def traced(recipe: Recipe) -> Trace:
    return dry_run(recipe, load_config(recipe.model), H200)


def saved(stream: Stream) -> tuple[int, int]:
    """What lives when saving begins, once training has let go of its own, and the most while it lasts."""
    start, _, phase = stream.bounds()[-1]
    assert phase == "save"
    alive, most, least = 0, 0, 0
    sizes = {event.key: event.size_bytes for event in stream.events if event.kind == "allocate"}
    for index, event in enumerate(stream.events):
        alive += sizes.get(event.key, 0) * {"allocate": 1, "free": -1}.get(event.kind, 0)
        if index >= start:
            least = alive if not least else min(least, alive)
            most = max(most, alive)
    return least, most


@pytest.mark.parametrize("name", LOADS)
def test_a_load_repeated_to_the_models_depth_is_the_whole_models_load(name: str) -> None:
    recipe, config = recipe_of(name, LOADS[name]), shallow(load_config(name), 11)
    depths = depths_of(build(config), config)
    assert depths is not None
    deeper = record_load(recipe, shallow(config, depths.depth), H200, depths.depth)
    shallower = record_load(recipe, shallow(config, depths.check), H200, depths.check)
    extended = repeated(deeper, depths.window, depths.copies, slopes_between(deeper, shallower, depths.window))
    assert same(extended, record_load(recipe, config, H200, 11))


@pytest.mark.parametrize("name", SAVES)
def test_saving_repeated_to_the_models_depth_is_the_whole_models(name: str) -> None:
    recipe, config = recipe_of(name, SAVES[name]), shallow(load_config(name), 11)
    depths = depths_of(build(config), config)
    assert depths is not None
    deeper = record(recipe, shallow(config, depths.depth), H200, depths.depth)
    shallower = record(recipe, shallow(config, depths.check), H200, depths.check)
    extended = repeated(deeper, depths.window, depths.copies, slopes_between(deeper, shallower, depths.window))
    assert saved(extended) == saved(record(recipe, config, H200, 11))


def test_a_loads_phase_is_that_of_a_checkpoint_and_not_of_a_model_built_on_the_gpu() -> None:
    """A model with a tied head is built with a head of its own first, which no checkpoint has."""
    trace = dry_run(recipe_of("llama-3.2-1b", {}), load_config("llama-3.2-1b"), H200)
    built = next(
        event.size_bytes for event in trace.events if event.kind == "allocate" and event.size_bytes > 500 * MIB
    )
    assert trace.phases["load"] < trace.loaded_bytes + built // 2
    assert trace.phases["load"] == pytest.approx(trace.loaded_bytes, rel=0.01)


def test_pieces_of_a_checkpoint_lie_beside_what_is_made_of_them() -> None:
    """A mixture's experts come one by one: a block's are stacked before its pieces are let go."""
    config = shallow(load_config("olmoe-1b-7b"), 3)
    recipe = recipe_of("olmoe-1b-7b", {"adapter": replace(LORA, targets=("q_proj",))})
    trace = dry_run(recipe, config, H200)
    fields = config.fields
    stack = 2 * int(fields["num_experts"]) * int(fields["hidden_size"]) * int(fields["intermediate_size"])  # type: ignore[call-overload]
    assert trace.phases["load"] > trace.loaded_bytes + stack


def test_a_quantised_gpt2_is_turned_as_it_loads() -> None:
    """Its layers store inputs first, and DoRA, which norms the weights as they load, sees outputs first."""
    dora = Adapter(method="dora", rank=8, alpha=32, targets=("c_attn",))
    trace = dry_run(recipe_of("gpt2", {"quantization": "nf4", "adapter": dora}), load_config("gpt2"), H200)
    assert trace.phases["load"] >= trace.loaded_bytes > 0


def test_saving_adapters_takes_no_more_than_what_lies_there() -> None:
    """As measured: a LoRA of Llama 3.2 1B peaked at 2,560,235,008 bytes while it was saved, which is what it held."""
    stream = record(recipe_of("llama-3.2-1b", {"optimizer": "adamw_torch"}), load_config("llama-3.2-1b"), H200, 16)
    assert begin(stream.events, False, len(stream.events)).allocated == pytest.approx(2560235008, abs=4096)
    start, end, _ = stream.bounds()[-1]
    assert {event.kind for event in stream.events[start:end]} == {"free"}


def test_saving_a_mixture_in_full_copies_its_experts() -> None:
    """transformers saves each expert as a tensor of its own; a half of a fused weight is copied for that."""
    config = shallow(load_config("olmoe-1b-7b"), 3)
    least, most = saved(record(recipe_of("olmoe-1b-7b", {"adapter": FULL}), config, H200, 3))
    fields = config.fields
    halves = 2 * 2 * int(fields["num_experts"]) * int(fields["hidden_size"]) * int(fields["intermediate_size"])  # type: ignore[call-overload]
    assert most - least == pytest.approx(3 * halves, rel=0.05)


def test_a_price_lists_load_training_evaluation_and_save_in_order() -> None:
    recipe = recipe_of("llama-3.2-1b", {"evaluation_batch": 2})
    cluster = hypothetical_cluster([H200], 1, Host(), None)
    found = price(load_model("llama-3.2-1b"), recipe, cluster,
                  tracer=lambda job, device: traced(job))  # fmt: skip
    assert list(found.phases) == ["load", "forward pass", "backward pass", "optimizer step", "evaluation", "save"]


def test_a_load_that_takes_more_than_training_decides_whether_a_job_fits() -> None:
    model, recipe = load_model("llama-3.2-1b"), recipe_of("llama-3.2-1b", {})
    trace = traced(recipe)
    more = trace.peak_reserved_bytes + 1024 * MIB
    greedy = replace(trace, worst_allocated_bytes=more, worst_reserved_bytes=more)
    size = size_of(model, recipe, H200, DEFAULT, lambda job, device: greedy)
    assert size.worst_phase.value - size.process.value == pytest.approx(1024 * MIB)
    cluster = hypothetical_cluster([H200], 1, Host(), None)
    limit = round(size.process.high) + 512 * MIB
    for one, verdict in ((trace, "fits"), (greedy, "does not fit")):
        tracer: Tracer = lambda job, device, one=one: one  # noqa: E731
        found = price(model, recipe, cluster, vram_budget_bytes=limit, headroom_bytes=0, tracer=tracer)
        assert found.verdict == verdict


def test_ranks_load_whole_models_but_for_zero3_and_gather_to_save_where_that_is_needed() -> None:
    model = load_model("llama-3.2-1b")
    found = {}
    for kind in ("zero2", "zero3", "fsdp2"):
        place = Parallelism(kind=kind, devices=2)
        recipe = recipe_of("llama-3.2-1b", {"adapter": FULL, "weights": "float32", "parallelism": place})
        size = size_of(model, recipe, H200, DEFAULT, lambda job, device: traced(job))
        found[kind] = size.phases["load"] / (4 * model.parameters)
        head = 2 * model.vocabulary * model.hidden_size
        assert saving_bytes(model, recipe) == {"zero2": 0, "zero3": head, "fsdp2": 2 * head}[kind]
    assert found["zero2"] == pytest.approx(1.0, rel=0.2) == found["fsdp2"]
    assert found["zero3"] < found["zero2"]
