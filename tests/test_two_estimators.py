"""Two estimators watch each other: the formula against the dry run, over recipes that pair every technique and family.

The dry run's peaks are on file (tests/traced_peaks.py says how they come there), and some of them are traced anew.
"""

import random
import statistics
from functools import cache

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")

from itertools import combinations, product

from estimators.families import FAMILIES
from estimators.memory import estimate_memory
from estimators.models import build
from estimators.techniques import ADAPTERS, ATTENTIONS, LOSSES, OPTIMIZERS, QUANTIZATIONS
from estimators.units import MIB
from tests.recipes_drawn import AXES, DEVICE, MODELS, Drawn, can_run, drawn_recipes, recipe_of
from tests.traced_peaks import COUNT, DEEP, SHALLOW, recorded, traced

MEDIAN, WORST = 0.03, 0.10
LEAST = 490
SMALLEST_GROWTH = MIB
"""Below it rounding would be most of what is compared."""
TRIES = 100
ANEW = drawn_recipes(COUNT)[::13]


@cache
def formula(drawn: Drawn) -> tuple[int, int]:
    shallow, deep = (
        estimate_memory(build(drawn.config(depth)), drawn.recipe, DEVICE).allocated_bytes for depth in (SHALLOW, DEEP)
    )
    return shallow, deep


def differences(measure: str) -> dict[str, float]:
    """The formula's relative error against the dry run, by recipe."""
    found, peaks = {}, recorded()
    for drawn in drawn_recipes(COUNT):
        said, ran = formula(drawn), peaks[str(drawn)]
        ours, theirs = {
            "few layers": (said[0], ran[0]),
            "more layers": (said[1], ran[1]),
            "growth": (said[1] - said[0], ran[1] - ran[0]),
        }[measure]
        if measure != "growth" or theirs >= SMALLEST_GROWTH:
            found[str(drawn)] = abs(ours / theirs - 1)
    return found


@pytest.mark.parametrize("measure", ["few layers", "more layers", "growth"])
def test_the_formula_agrees_with_the_dry_run(measure: str) -> None:
    found = differences(measure)
    assert len(found) >= LEAST
    assert statistics.median(found.values()) <= MEDIAN
    assert not {text: error for text, error in found.items() if error > WORST}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore:.*(rank|alpha)_pattern.*:RuntimeWarning")  # peft looks among modules alone
@pytest.mark.parametrize("drawn", ANEW, ids=str)
def test_the_peaks_on_file_are_the_dry_runs(drawn: Drawn) -> None:
    assert traced(drawn) == pytest.approx(recorded()[str(drawn)], rel=0.002)


def test_every_technique_and_family_is_drawn() -> None:
    drawn = drawn_recipes(COUNT)
    for axis, registered in (
        ("family", FAMILIES),
        ("adapter", ADAPTERS),
        ("quantization", QUANTIZATIONS),
        ("optimizer", OPTIMIZERS),
        ("attention", ATTENTIONS),
        ("loss", LOSSES),
    ):
        assert {one.choice[axis] for one in drawn} == set(registered), axis
    assert set(MODELS) == set(FAMILIES)


def test_two_choices_that_are_never_drawn_together_cannot_go_together() -> None:
    drawn = set().union(*(one.pairs for one in drawn_recipes(COUNT)))
    generator = random.Random(1)
    for (first, first_values), (second, second_values) in combinations(AXES.items(), 2):
        for one, other in product(first_values, second_values):
            if (first, one, second, other) in drawn:
                continue
            for _ in range(TRIES):
                choice = {axis: generator.choice(values) for axis, values in AXES.items()}
                choice |= {first: one, second: other}
                said = can_run(choice, recipe_of(choice))
                assert said is None or not {first, second} <= said.keys(), (first, one, second, other)
