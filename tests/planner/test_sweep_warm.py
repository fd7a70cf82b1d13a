"""What a sweep prepares before it knows its trials: their environment is known long before the last dry run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="optuna is not installed")

from estimators.catalogue import find_device
from estimators.hardware import Cluster, Gpu, Host
from estimators.models import build
from estimators.units import GIB
from planner.goal import Goal
from planner.rules import load_rules
from planner.sweep.appraise import OnGpus, Option, Refusal, Skip
from planner.sweep.run import run
from planner.sweep.space import Configuration, Space
from runners.environment import environment_of, settings_of
from runners.executors.local import LocalExecutor
from runners.job import Job
from tests.planner.sweeps import LEARN, QUICK, TERMS, TINY, child, on_cpu, order


class Telling(LocalExecutor):
    """Says when it is told to prepare."""

    def __init__(self, tell: Callable[[object], None]) -> None:
        super().__init__((), child=child(LEARN), limits=QUICK)
        self._say = tell

    def warm(self, work: Job) -> None:
        self._say(work)


def test_places_prepare_before_anything_is_priced_and_not_where_all_is_done(tmp_path: Path) -> None:
    told: list[object] = []
    cpu = on_cpu()

    def appraise(configuration: Configuration, skip: Skip) -> Option | Refusal:
        told.append("priced")
        return cpu(configuration, skip)

    one = order(tmp_path, space=Space(ranks=(4, 8)))
    done = run(one, appraise, Telling(told.append), foresee=cpu.foresee)
    assert [isinstance(first, Job) for first in told] == [True, *[False] * (len(told) - 1)]
    assert len(told) > 2 and isinstance(told[0], Job)
    keys = {settings_of(environment_of(told[0], ()))}
    assert keys == {settings_of(environment_of(Job(recipe=each.recipe, config={}), ())) for each in done.trials}
    told.clear()
    run(one, appraise, Telling(told.append), foresee=cpu.foresee)
    assert not any(isinstance(each, Job) for each in told)


def test_trials_on_data_are_foreseen_with_the_allocator_that_they_get() -> None:
    model, device = build(TINY), find_device("h200")
    cluster = Cluster(gpus=(Gpu(device=device, total_bytes=140 * GIB, free_bytes=139 * GIB),), host=Host())
    seen = []
    for data in (None, "of some rows"):
        terms = replace(TERMS, data=data)
        gpus = OnGpus(Goal(model="tiny"), model, cluster, load_rules(), terms, tracer=None)
        found = gpus(Configuration(rank=8, alpha=32), lambda recipe: False)
        assert isinstance(found, Option) and gpus.foresee(Configuration(rank=8, alpha=32)) == found.recipe
        seen.append(found.recipe.expandable_segments)
    assert seen == [False, True]
    assert gpus.foresee(Configuration(rank=1 << 26, alpha=1 << 28)) is None, "it cannot fit"
