"""What was measured on this machine, by microbenchmarks and by runs, as the calibration of the next plan."""

from pathlib import Path

from estimators.calibration import DEFAULT, Calibration
from estimators.errors import PlanError
from estimators.fingerprint import Machine
from estimators.hardware import Cluster
from planner.report.paint import say


def calibration_of(cluster: Cluster, store: Path | None = None) -> Calibration:
    """The calibration of the machine whose GPUs these are; the shipped one where nothing was measured, or where they
    are only described. A store or a device profile that cannot be read costs a line, not the plan."""
    if cluster.hypothetical:
        return DEFAULT
    from runners.machine import this_machine

    machine = this_machine(cluster.gpus)
    return learned(cluster, machine, profiled(cluster, machine, store), store)


def profiled(cluster: Cluster, machine: Machine, store: Path | None = None) -> Calibration:
    """The shipped calibration with what `plan calibrate` measured on the machine."""
    from runners.calibrations import find, folder_of

    if not folder_of(store).is_dir():
        return DEFAULT
    from estimators.profiled import calibrated

    device = cluster.gpus[0].device
    profile = find(device.name, machine, store, lambda line: say(f"warning: {line}"))
    if profile is None:
        return DEFAULT
    return calibrated(DEFAULT, profile, device, nvme=bool(cluster.host.nvme))


def learned(cluster: Cluster, machine: Machine, before: Calibration, store: Path | None = None) -> Calibration:
    """`before` with what the stored runs of the machine teach."""
    from estimators.recalibration import recalibrate
    from runners.store import Store

    try:
        found = Store.look(store)
        if found is None:
            return before
        with found:
            entries = found.entries(machine=machine)
        return recalibrate(entries, cluster, before).calibration
    except PlanError as error:
        say(f"warning: earlier measurements are not used: {error}")
        return before
