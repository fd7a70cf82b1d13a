"""What a trial leaves behind for later: a row in the store of measurements, and a better estimate of the next one."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from estimators.errors import PlanError
from estimators.hardware import Cluster, Gpu
from estimators.model import ModelSpec
from estimators.placement import used_cluster
from estimators.price import Price
from estimators.record import Entry, measured_of, prediction_of
from planner.learned import calibration_of
from planner.measure import CPU, flops_utilisation_of
from planner.sweep.appraise import OnGpus
from planner.sweep.ledger import result_in
from planner.sweep.result import Trial, key_of
from planner.sweep.screen import Screen
from runners.job import RESULT, installed_versions
from runners.machine import this_machine
from runners.store import Store


class Lessons:
    """Called with every trial that is recorded."""

    def __init__(
        self, folder: Path, store: Path | None, cluster: Cluster | None, model: ModelSpec, screen: Screen,
        appraiser: OnGpus | None, refresh: Callable[[], None], warn: Callable[[str], None],
        config: Mapping[str, object],
    ) -> None:  # fmt: skip
        """
        Args:
            config: the fields of the model's config.json, by which a run of a model with no name of its own is known.
        """
        self._folder, self._store, self._cluster, self._model = folder, store, cluster, model
        self._screen, self._appraiser, self._refresh, self._warn = screen, appraiser, refresh, warn
        self._versions = installed_versions()
        self._kept, self._config = True, json.dumps(dict(config))

    def __call__(self, trial: Trial) -> None:
        """Puts the run into the store, and reads what all runs there teach. A store that cannot be used costs a line
        and no more: the trial is in the study."""
        entry = self._entry(trial)
        if entry is None or not self._kept:
            return
        try:
            with Store.open(self._store) as store:
                store.add(entry)
        except PlanError as error:
            self._kept = False
            self._warn(f"trials are not kept in the store of measurements: {error}")
            return
        if self._cluster is not None and self._appraiser is not None:
            self._appraiser.recalibrated(calibration_of(self._cluster, self._store))
            self._refresh()

    def _entry(self, trial: Trial) -> Entry | None:
        folder = self._folder / trial.folder
        result = result_in(folder)
        if result is None:
            return None
        gpus: tuple[Gpu, ...] = ()
        if self._cluster is not None:
            gpus = used_cluster(self._cluster, trial.recipe.parallelism.devices).gpus
        price: Price | None = self._screen.prices.get(key_of(trial.configuration, trial.recipe, trial.seed))
        return Entry(
            job=trial.job,
            seconds_since_epoch=(folder / RESULT).stat().st_mtime - trial.seconds,
            machine=this_machine(self._cluster.gpus if self._cluster is not None else ()),
            gpu=gpus[0].device.name if gpus else CPU,
            recipe=trial.recipe,
            measured=measured_of(result, flops_utilisation_of(result, self._model, trial.recipe, gpus)),
            prediction=prediction_of(price) if price is not None else None,
            versions=self._versions,
            config=self._config,
        )
