"""A deep model's stream made from shallow ones is the stream of the deep model, event for event."""

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

from dataclasses import replace

from estimators.allocator import Event
from estimators.catalogue import find_device
from estimators.models import Config, build, load_config
from estimators.recipe import ALL_LINEAR, Adapter, Recipe
from runners.dry import trace as tracing
from runners.dry.depth import NotLinearError, Window, repeated, same, slopes_between
from runners.dry.shallow import depths_of, shallow
from runners.dry.steps import record
from runners.dry.stream import OUTSIDE, Stream
from runners.dry.trace import dry_run

H200 = find_device("h200")
FULL, LORA = Adapter(method="full"), Adapter(method="lora", rank=8, alpha=32, targets=("q_proj", "v_proj"))
ALL = replace(LORA, targets=ALL_LINEAR)
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

CASES: dict[str, tuple[int, dict[str, object]]] = {
    "llama-3.2-1b": (11, {"gradient_accumulation": 2}),
    "gemma-2-2b": (14, {"attention": "eager"}),
    "gemma-3-1b": (26, {"gradient_checkpointing": False, "adapter": FULL, "optimizer": "adamw_torch"}),
    "deepseek-v2-lite": (11, {}),
    "olmoe-1b-7b": (11, {"adapter": replace(LORA, targets=("q_proj",))}),
    "gpt2": (12, {"adapter": FULL, "weights": "float32", "optimizer": "adamw_8bit"}),
    "phi-2": (11, {"adapter": replace(ALL, dropout=0.1)}),
    "falcon-7b": (11, {"adapter": replace(ALL, method="dora")}),
    "qwen2.5-0.5b": (11, {"quantization": "nf4", "adapter": ALL}),
    "qwen3-0.6b": (11, {"adapter": FULL, "optimizer": "adafactor", "padded": True}),
    "smollm2-135m": (11, {"trainer": "trl", "quantization": "nf4-single"}),
}
"""Families, each with a depth and with techniques that no other case has."""


def job(name: str, layers: int, changes: dict[str, object]) -> tuple[Recipe, Config]:
    recipe = Recipe(model=name, adapter=LORA, micro_batch=1, sequence_length=512)
    return replace(recipe, **changes), shallow(load_config(name), layers)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_repeating_a_window_gives_the_whole_models_stream(name: str) -> None:
    layers, changes = CASES[name]
    recipe, config = job(name, layers, changes)
    depths = depths_of(build(config), config)
    assert depths is not None and depths.depth < layers
    deeper = record(recipe, shallow(config, depths.depth), H200, depths.depth)
    shallower = record(recipe, shallow(config, depths.check), H200, depths.check)
    slopes = slopes_between(deeper, shallower, depths.window)
    extended = repeated(deeper, depths.window, depths.copies, slopes)
    assert same(extended, record(recipe, config, H200, layers))
    assert set(extended.terms) >= {event.key for event in extended.events if event.kind == "allocate"}


def test_a_model_whose_blocks_do_not_repeat_is_traced_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, config = job("llama-3.2-1b", 11, {})
    extended = dry_run(recipe, config, H200)
    assert extended.layers_traced == 5

    def never(*args: object) -> dict[int, int]:
        raise NotLinearError("made up")

    monkeypatch.setattr(tracing, "slopes_between", never)
    whole = dry_run(recipe, config, H200)
    assert whole.layers_traced == 11
    assert whole.peak_allocated_bytes == extended.peak_allocated_bytes
    assert whole.peak_reserved_bytes == extended.peak_reserved_bytes
    assert whole.terms == extended.terms
    assert whole.phases == extended.phases


def stream(blocks: list[tuple[int, int]]) -> Stream:
    """Each block in its turn allocates a tensor of so many bytes; then all are freed, the last one first."""
    made = Stream(phases=[(0, "forward")])
    for key, (block, size_bytes) in enumerate(blocks, 1):
        made.allocate(key, size_bytes, block, "made")
    made.phases.append((len(made.events), "backward"))
    for key, (block, _) in reversed(list(enumerate(blocks, 1))):
        made.free(key, block)
    made.label()
    return made


def test_copies_have_keys_of_their_own_and_are_freed_in_their_own_blocks() -> None:
    sizes = [1, 2, 3, 4, 5]
    deeper, window = stream(list(enumerate(sizes))), Window(start=2, period=1)
    extended = repeated(deeper, window, 3)
    assert [event.size_bytes for event in extended.events[:8]] == [1, 2, 3, 3, 3, 3, 4, 5]
    keys = [event.key for event in extended.events[:8]]
    assert [event.key for event in extended.events[8:]] == keys[::-1]
    assert len(set(keys)) == 8
    assert repeated(deeper, window, 0).events == deeper.events


def test_what_dies_within_a_copy_is_dead_when_the_next_one_uses_its_key() -> None:
    """Each block keeps a tensor and works with another that dies before the next block."""
    deeper = Stream(phases=[(0, "forward")])
    for block in range(5):
        deeper.allocate(2 * block + 1, 8, block, "kept")
        deeper.allocate(2 * block + 2, 4, block, "work")
        deeper.free(2 * block + 2, block)
    deeper.label()
    extended, alive = repeated(deeper, Window(start=2, period=1), 6), dict[int, int]()
    for event in extended.events:
        if event.kind == "allocate":
            assert event.key not in alive
            alive[event.key] = event.size_bytes
        else:
            assert alive.pop(event.key) == 4
    assert list(alive.values()) == [8] * 11
    assert [extended.owner_of[key] for key in alive] == list(range(11))


def test_what_grows_otherwise_than_by_a_window_is_not_linear() -> None:
    window = Window(start=2, period=1)
    five, four = stream([(block, 8) for block in range(5)]), stream([(block, 8) for block in range(4)])
    assert slopes_between(five, four, window) == {}
    odd = stream([(0, 8), (1, 8), (2, 8), (OUTSIDE, 8), (3, 8)])
    with pytest.raises(NotLinearError):
        slopes_between(five, odd, window)


def test_sizes_outside_of_the_window_grow_along() -> None:
    five = stream([*((block, 8) for block in range(5)), (OUTSIDE, 20)])
    four = stream([*((block, 8) for block in range(4)), (OUTSIDE, 16)])
    slopes = slopes_between(five, four, Window(start=2, period=1))
    extended = repeated(five, Window(start=2, period=1), 2, slopes)
    assert max(event.size_bytes for event in extended.events) == 28


def test_the_events_of_a_window_that_are_torn_apart_are_not_linear() -> None:
    torn = Stream(phases=[(0, "forward")])
    for key, block in enumerate((0, 1, 2, 4, 3, 2), 1):
        torn.allocate(key, 8, block, "made")
    torn.label()
    with pytest.raises(NotLinearError):
        repeated(torn, Window(start=2, period=2), 1)
    assert torn.events[0] == Event("allocate", 1, 8)
