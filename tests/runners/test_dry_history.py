"""The dry run's stream against recorded ones, event for event: two optimizer steps of each recipe on a real H200.

tests/fixtures/allocator was recorded with torch 2.11, transformers 5.17 and peft 0.21 (benchmarks/measure_extras.py).
What lies between two allocations is compared as a set: the caching allocator is in the same state whatever the order in
which it is given blocks back, and torch itself empties autocast's cache in the order of a hash table.
"""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

from estimators.catalogue import find_device
from estimators.document import from_document
from estimators.memory import cublas_workspace_bytes
from estimators.models import build, load_config
from estimators.recipe import Recipe
from runners.dry.recorder import Recorder
from runners.dry.trace import dry_run

H200 = find_device("h200")
HISTORIES = sorted((Path(__file__).parent.parent / "fixtures" / "allocator").glob("*.json.gz"))
WORKSPACE = cublas_workspace_bytes(H200) // 2
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

STEPS = 2
TWIN = -2
Step = tuple[str, int, int]
"""Allocated ("a") or freed ("f"), which key, and how many bytes."""
Row = tuple[tuple[tuple[int, int], ...], int]
"""What was freed before an allocation (its place among the allocations, its bytes), and the allocation's bytes."""


def recorded(history: dict[str, Any]) -> list[Step]:
    """The real events from the end of loading on."""
    events = history["events"]
    sizes = {event[1]: event[2] for event in events if event[0] == "a"}
    later = events[history["loaded_at"] :]
    return [(str(event[0]), event[1], sizes[event[1]]) for event in later if event[0] in ("a", "f")]


def traced(recipe: Recipe) -> list[Step]:
    """The same of the dry run; tensors without elements are no allocations."""
    trace = dry_run(recipe, load_config(recipe.model), H200)
    phases = ["load", *(phase for _, phase in trace.starts)]
    steps_begin = [
        start
        for (start, phase), before in zip(trace.starts, phases, strict=False)
        if phase == "forward" and before in ("load", "optimizer")
    ]
    events = trace.events[: (*steps_begin, None)[STEPS]]
    start = next(index for index, event in enumerate(events) if event.kind == "reset_peak")
    sizes = {event.key: event.size_bytes for event in events if event.kind == "allocate"}
    kinds = {"allocate": "a", "free": "f"}
    steps = ((kinds[event.kind], event.key, sizes[event.key]) for event in events[start:] if event.kind in kinds)
    return [step for step in steps if step[2]]


def rows(steps: Iterable[Step], left_out: set[int], twins: set[int]) -> list[Row]:
    """One row an allocation, but for those of `left_out` bytes; of `twins` the size is told, not which one it was."""
    places: dict[int, int] = {}
    freed: list[tuple[int, int]] = []
    found: list[Row] = []
    for kind, key, size in steps:
        if size in left_out:
            continue
        if kind == "f":
            freed.append((TWIN if size in twins else places.get(key, -1), size))
            continue
        places[key] = len(found)
        found.append((tuple(sorted(freed)), size))
        freed = []
    return found


def rotary_positions(recipe: Recipe) -> set[int]:
    """Sizes whose place is another in transformers 5.23, which multiplies positions and frequencies one by one.

    The matrix product of 5.17 was the first product of a step: it brought cuBLAS' workspace, which now comes with the
    first linear layer, and the positions in float32 outlived it.
    """
    return set() if recipe.model.startswith("gpt2") else {WORKSPACE, 4 * recipe.sequence_length}


def rotary_twins(recipe: Recipe) -> set[int]:
    """Sizes of rotary tables that come one for each kind of layer: Gemma 3 makes them in the order of a hash table."""
    if not recipe.model.startswith("gemma-3"):
        return set()
    head = build(load_config(recipe.model)).layers[0].attention.head_size
    return {2 * recipe.sequence_length * head}


def batches_as_they_came(patch: pytest.MonkeyPatch) -> None:
    """Every second row of the measured data is half padding, and they were drawn at random (RandomTokens of
    benchmarks/measure_child.py under the Trainer's seed of 42): rows 6 and 8, 1 and 7, 0 and 2."""

    def padded(recorder: Recorder) -> bool:
        return sum(phase == "optimizer" for _, phase in recorder.stream.phases) == 1

    patch.setattr(Recorder, "padded", property(padded, lambda recorder, value: None), raising=False)


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_two_steps_are_those_of_the_real_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = json.loads(gzip.decompress(path.read_bytes()))
    recipe = from_document(history["recipe"])
    if recipe.padded:
        batches_as_they_came(monkeypatch)
    real, ours = recorded(history), traced(recipe)
    left_out, twins = rotary_positions(recipe), rotary_twins(recipe)
    expected, found = rows(real, left_out, twins), rows(ours, left_out, twins)
    assert len(found) > 1000
    assert len(expected) > len(found)  # the real run took a third step
    for index, row in enumerate(found):
        assert row == expected[index], (
            f"row {index}: {found[index - 3 : index + 2]} / {expected[index - 3 : index + 2]}"
        )
    for steps in (real, ours):
        freed = {key for kind, key, _ in steps if kind == "f"}
        kept = [key for kind, key, size in steps if kind == "a" and size == WORKSPACE and key not in freed]
        # cuBLAS' workspaces, of the thread that runs forwards and of autograd's; DoRA's norms are products at loading
        assert len(kept) == (1 if recipe.adapter.method == "dora" else 2)
