"""A sweep from what was asked for to what came of it: opens the study, decides how to walk the space, supervises."""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from estimators.errors import BadInput
from estimators.recipe import Recipe
from estimators.strict import encoded
from planner.sweep.address import Address
from planner.sweep.appraise import Appraiser
from planner.sweep.folder import LOCK, claim, make, refuse_another, with_held_out
from planner.sweep.ledger import Ledger, Work
from planner.sweep.lock import only_one
from planner.sweep.queue import LARGEST_GRID, GridQueue, Queue, SampledQueue
from planner.sweep.result import Listener, PassedOver, Screened, Sweep, Trial
from planner.sweep.screen import Clock, Screen
from planner.sweep.space import Configuration, Space
from planner.sweep.storage import PATIENCE_SECONDS
from planner.sweep.study import Sampler, Study
from planner.sweep.supervisor import Settings, Supervisor
from runners.executors import Executor
from runners.job import new_token

MOST_TRIALS = 40
"""Of a space that is sampled, where nobody says."""
Lesson = Callable[[Trial], None]
Teaching = Callable[[Screen, Queue], Lesson]
Foresee = Callable[[Configuration], Recipe | None]
"""How a configuration is likely to be run, as far as that is known at once."""
MOST_FORESEEN = 8
"""Of the configurations, before nothing is prepared for any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A sweep as it was asked for."""

    space: Space
    settings: Settings
    work: Work
    folder: Path
    address: Address
    fixed: str = ""
    """What else of the recipes the user fixed, and on which kind of GPU: trials that differ in it do not compare."""
    most_trials: int | None = None
    """None: every configuration of a small space, and MOST_TRIALS of a large one."""
    patience_seconds: float = PATIENCE_SECONDS
    """How long another process may keep the study locked."""

    @property
    def study(self) -> str:
        """The study's name: what its trials have in common, so that only trials that compare are in one study."""
        training = replace(self.work.training, held_out=None)  # the terms know it by what is in it
        text = json.dumps(
            [self.work.terms.digest, self.settings.objectives, self.space.kinds, encoded(training), self.fixed]
        )
        digest = hashlib.blake2b(text.encode(), digest_size=5, person=b"plan-sweep").hexdigest()
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", Path(self.work.terms.model).name)[:40].strip("-") or "model"
        return f"{slug}-{digest}"


def run(
    order: Order, appraiser: Appraiser, executor: Executor, listen: Listener = lambda event: None,
    teaching: Teaching = lambda screen, queue: lambda trial: None, foresee: Foresee = lambda configuration: None,
) -> Sweep:  # fmt: skip
    """Runs the sweep, or goes on with it where an earlier command stopped.

    Args:
        foresee: by which the places prepare for the first trials while those are still priced.

    Raises:
        BadInput: another supervisor runs it already, its folder or its study is none of a sweep's, or what it is to
            train on, or with, is such that no trial can end well.
        StudyError: the study cannot be used.
        NoUsableGpu: there was no place to run a trial for too long.
    """
    screen = Screen(appraiser, Clock(order.work.terms.steps))
    refuse_another(order.folder, order.study, order.address)
    make(order.folder)
    with only_one(order.folder / LOCK), closing(_study(order)) as study:
        budget_bytes = order.settings.vram_budget_bytes
        work = with_held_out(order.work, order.folder)
        claim(order.folder, order.study, order.address)
        ledger = Ledger(study, order.folder, work, order.settings.objectives, budget_bytes)
        queue = _queue(order, screen, lambda screened: listen(PassedOver(screened=screened)))
        if (recipe := _likely(order, queue, ledger, foresee)) is not None:
            executor.warm(work.job(recipe, recipe.seed, new_token()))
        supervisor = Supervisor(
            order.settings, order.work.terms, ledger, screen, queue, executor, listen, teaching(screen, queue)
        )
        return supervisor.run()


def _likely(order: Order, queue: Queue, ledger: Ledger, foresee: Foresee) -> Recipe | None:
    """Of a trial that is still to come; None: none seems to be."""
    if ledger.interrupted:
        return ledger.interrupted[0].expected.recipe
    done = {trial.configuration.digest for trial in ledger.finished}
    if isinstance(queue, SampledQueue) and len(done) >= (order.most_trials or MOST_TRIALS):
        return None
    left = (configuration for configuration in order.space.grid() if configuration.digest not in done)
    return next(filter(None, map(foresee, islice(left, MOST_FORESEEN))), None)


def _study(order: Order) -> Study:
    path = order.address.path
    if path is not None and not path.parent.is_dir():
        raise BadInput(f"the folder of --storage {order.address.shown} does not exist")
    objectives, patience = order.settings.objectives, order.patience_seconds
    return Study.open(order.address, order.study, objectives, order.space, patience_seconds=patience)


def _queue(order: Order, screen: Screen, report: Callable[[Screened], None]) -> Queue:
    space, seed, cells = order.space, order.work.terms.seed, order.space.cells
    if cells is not None and cells <= min(LARGEST_GRID, order.most_trials or LARGEST_GRID):
        return GridQueue(space, screen, seed, report)
    settings = order.settings
    sampler = Sampler(space, settings.objectives, seed)
    most = order.most_trials or MOST_TRIALS
    return SampledQueue(space, screen, seed, report, sampler, settings.objectives, most, settings.vram_budget_bytes)
