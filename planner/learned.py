"""What the runs that were measured on this machine teach about the next."""

from pathlib import Path

from estimators.calibration import DEFAULT, Calibration
from estimators.errors import PlanError
from estimators.hardware import Cluster
from planner.report.paint import say


def calibration_of(cluster: Cluster, store: Path | None = None) -> Calibration:
    """The calibration of the machine whose GPUs these are; the shipped one where nothing was measured, or where they
    are only described. A store that cannot be read costs a line, not the plan."""
    if cluster.hypothetical:
        return DEFAULT
    from estimators.recalibration import recalibrate
    from runners.machine import this_machine
    from runners.store import Store

    try:
        found = Store.look(store)
        if found is None:
            return DEFAULT
        with found:
            entries = found.entries(machine=this_machine(cluster.gpus))
        return recalibrate(entries, cluster).calibration
    except PlanError as error:
        say(f"warning: earlier measurements are not used: {error}")
        return DEFAULT
