"""A recipe run for real on this machine, with what had been expected of it, and what the run teaches."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from estimators.errors import NoUsableGpu, PlanError
from estimators.fit import Fit
from estimators.hardware import Cluster, Gpu
from estimators.model import ModelSpec
from estimators.models import Config
from estimators.outcome import Outcome, Result
from estimators.placement import used_cluster
from estimators.price import Price
from estimators.recalibration import recalibrate
from estimators.recipe import Recipe
from estimators.record import Entry, measured_of, prediction_of
from planner.learned import profiled
from runners import job
from runners.job import Job
from runners.launch import open_bench, run
from runners.machine import this_machine
from runners.store import Store
from runners.watching import Limits

CPU = "cpu"
"""Stands for the card where a job ran on none."""
EXIT_CODES = {Outcome.OK: 0, Outcome.OUT_OF_MEMORY: 5, Outcome.HOST_OUT_OF_MEMORY: 5, Outcome.CANCELLED: 130}
"""Of the others 1: something went wrong that the recipe cannot help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How a measured run is made."""

    steps: int = 12
    weights: str = job.RANDOM
    data: str | None = None
    folder: Path | None = None
    """Kept there; else it is taken away with what it wrote."""
    share: bool = False
    store: Path | None = None
    """Another store than this user's."""
    budget_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A recipe, what was expected of it, and what it took."""

    recipe: Recipe
    gpus: tuple[Gpu, ...]
    expected: Price | None
    """None where nothing was expected: a run on the CPU."""
    result: Result
    entry: Entry
    fit: Fit | None
    """What all stored runs of this machine teach with this one among them."""
    folder: Path | None
    flops_utilisation: float | None
    unkept: str | None = None
    """Why the run is not in the store."""

    @property
    def exit_code(self) -> int:
        return EXIT_CODES.get(self.result.end.outcome, 1)


def measure(
    recipe: Recipe,
    config: Config,
    model: ModelSpec,
    cluster: Cluster | None,
    expected: Price | None,
    trial: Trial,
    progress: Callable[[str], None] = lambda line: None,
) -> Finding:
    """Run `recipe` on the GPUs of `cluster` (None: on the CPU), and store what came of it.

    Raises:
        NoUsableGpu: the machine has too few GPUs for it, or somebody else is on them.
        BadInput: the recipe cannot be run, or the folder cannot be used.
    """
    gpus = _gpus(recipe, cluster)
    work = Job(
        recipe=recipe,
        config=config.fields,
        weights=_path(trial.weights),
        data=trial.data and str(Path(trial.data).resolve()),
        steps=trial.steps,
        seed=recipe.seed,
        budget_bytes=trial.budget_bytes,
    )
    began = time.time()
    with _folder(trial.folder) as folder, open_bench(gpus, share=trial.share) as bench:
        job.create(folder, work)
        result = run(folder, bench, limits=Limits(), progress=progress)
    utilisation = flops_utilisation_of(result, model, recipe, gpus)
    entry = Entry(
        job=work.token,
        seconds_since_epoch=began,
        machine=this_machine(gpus),
        gpu=gpus[0].device.name if gpus else CPU,
        recipe=recipe,
        measured=measured_of(result, utilisation),
        prediction=prediction_of(expected) if expected is not None else None,
        versions=dict(work.versions),
        config=json.dumps(dict(config.fields)),
    )
    fit, unkept = _remember(entry, cluster, trial.store)
    return Finding(
        recipe=recipe,
        gpus=gpus,
        expected=expected,
        result=result,
        entry=entry,
        fit=fit,
        unkept=unkept,
        folder=trial.folder,
        flops_utilisation=utilisation,
    )


def _path(weights: str) -> str:
    return weights if weights == job.RANDOM else str(Path(weights).resolve())


def _gpus(recipe: Recipe, cluster: Cluster | None) -> tuple[Gpu, ...]:
    """The GPUs that the job takes: as many as it is for, of those at hand."""
    if cluster is None:
        return ()
    wanted = recipe.parallelism.devices
    if cluster.hypothetical or cluster.nodes > 1:
        raise NoUsableGpu("measuring needs the GPUs of this machine: leave --gpus at auto")
    if len(cluster.gpus) < wanted:
        raise NoUsableGpu(f"the recipe is for {wanted} GPUs, and this machine has {len(cluster.gpus)}")
    return used_cluster(cluster, wanted).gpus


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """The job's folder: the user's, or one that goes when the job is done."""
    if kept is not None:
        yield kept
        return
    temporary = Path(tempfile.mkdtemp(prefix="plan-measure-"))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flops_utilisation_of(result: Result, model: ModelSpec, recipe: Recipe, gpus: Sequence[Gpu]) -> float | None:
    """Of the peak rate in the type that is computed in."""
    if not gpus:
        return None
    device = gpus[0].device
    rates = {"bfloat16": device.bfloat16_flops_per_second, "float16": device.float16_flops_per_second}
    return result.mfu(model.active_parameters, rates.get(recipe.compute) or device.float32_flops_per_second)


def _remember(entry: Entry, cluster: Cluster | None, path: Path | None) -> tuple[Fit | None, str | None]:
    """Put the run into the store, and read what all of them teach; or why it could not be kept, which loses nothing
    of what is shown."""
    try:
        with Store.open(path) as store:
            store.add(entry)
            entries = store.entries(machine=entry.machine)
    except PlanError as error:
        return None, str(error)
    if cluster is None:
        return None, None
    return recalibrate(entries, cluster, profiled(cluster, entry.machine, path)), None
