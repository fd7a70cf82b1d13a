"""Stored runs estimated again: their steps by formula, and by what a dry run had counted of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache

from estimators.calibration import Calibration
from estimators.config_json import parse_config
from estimators.errors import BadInput
from estimators.fit import Sample
from estimators.hardware import Cluster
from estimators.model import ModelSpec
from estimators.models import Config, build, load_model
from estimators.placement import used_cluster
from estimators.record import Entry
from estimators.throughput import step_seconds
from estimators.traced_throughput import traced_step_seconds
from estimators.work import Work, work_from_names

DRY_RUN = "dry run"
Estimate = Callable[[Entry, Calibration], float]
"""Seconds of a run's step on the machine under a calibration."""


def model_of(entry: Entry) -> ModelSpec:
    """The model that ran: by its own config where the entry has it, else by its name.

    Raises:
        BadInput: the name means nothing here, or the config is none.
    """
    name = entry.recipe.model
    return _built(name, entry.config) if entry.config else load_model(name)


@cache
def _built(name: str, config: str) -> ModelSpec:
    source = f"the stored config of {name}"
    return build(Config(name=name, source=source, fields=parse_config(config.encode(), source)))


def formula(cluster: Cluster) -> Estimate:
    """The estimate of a step by the formulas."""

    def seconds(entry: Entry, calibration: Calibration) -> float:
        used = used_cluster(cluster, entry.recipe.parallelism.devices)
        return sum(step_seconds(model_of(entry), entry.recipe, used, calibration.rates).values())

    return seconds


def traced(cluster: Cluster) -> Estimate:
    """The estimate by what a dry run counted; nothing is traced again."""

    works: dict[str, Work] = {}

    def seconds(entry: Entry, calibration: Calibration) -> float:
        assert entry.prediction is not None
        if entry.job not in works:
            works[entry.job] = work_from_names(entry.prediction.work)
        work, used = works[entry.job], used_cluster(cluster, entry.recipe.parallelism.devices)
        return sum(traced_step_seconds(work, model_of(entry), entry.recipe, used, calibration.rates).values())

    return seconds


def was_traced(entry: Entry) -> bool:
    """Whether the run was expected by a dry run that left its counts."""
    said = entry.prediction
    return said is not None and said.evidence == DRY_RUN and bool(said.work)


def samples(
    entries: Iterable[Entry],
    cluster: Cluster,
    before: Calibration,
    estimate: Estimate,
    kind_of: Callable[[Entry], str],
) -> tuple[list[Sample], list[str]]:
    """The steps that can be estimated again, and a line for each of the others."""
    found, out = [], []
    for entry in _measured(entries):
        try:
            if entry.recipe.parallelism.devices > cluster.size:
                raise BadInput(f"ran on {entry.recipe.parallelism.devices} GPUs, of which {cluster.size} are here")
            estimate(entry, before)
        except BadInput as error:
            out.append(f"run {entry.number}: {error}")
            continue
        found.append(
            Sample(
                kind=kind_of(entry),
                measured_seconds=entry.measured.step_seconds or 0.0,
                estimate=lambda rates, entry=entry: estimate(entry, replace(before, rates=rates)),  # type: ignore[misc]
            )
        )
    return found, out


def _measured(entries: Iterable[Entry]) -> Iterator[Entry]:
    yield from (entry for entry in entries if (entry.measured.step_seconds or 0.0) > 0)
