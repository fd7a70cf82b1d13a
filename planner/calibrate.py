"""This machine's GPU and host measured by microbenchmarks, and what the next plan makes of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from estimators.calibration import Calibration
from estimators.device_profile import QUANTITIES, DeviceProfile, sheet_of
from estimators.errors import PlanError
from estimators.hardware import Cluster, Device
from estimators.profiled import Told, told
from runners import calibrations
from runners.microbench.launch import Wish, calibrate


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One quantity: what was found of it, or why nothing was."""

    name: str
    figure: float | None
    sheet: float | None
    """The data sheet's figure."""
    missing: str | None

    @property
    def share(self) -> float | None:
        return self.figure / self.sheet if self.figure and self.sheet else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A device profile, and what becomes of it."""

    profile: DeviceProfile
    device: Device
    rates: tuple[Told, ...]
    """What plans used, and use from now on."""
    path: Path | None
    """Where it is kept; None where it is not."""
    unkept: str | None = None
    """Why."""


def calibrate_machine(
    cluster: Cluster, before: Calibration, wish: Wish, store: Path | None, progress: Callable[[str], None]
) -> Finding:
    """Measure the first GPU of `cluster`, its host and the links between all its GPUs, and keep the profile.

    Raises:
        OccupiedGpu: somebody else is on one of them.
        CalibrationFailedError: nothing could be measured.
    """
    profile = calibrate(cluster.gpus, wish, progress)
    device = cluster.gpus[0].device
    path, unkept = _keep(profile, store)
    rates = tuple(told(before.rates, profile, device, nvme=bool(cluster.host.nvme)))
    return Finding(profile=profile, device=device, rates=rates, path=path, unkept=unkept)


def measured(finding: Finding) -> Iterator[Measured]:
    """Every quantity, in the order of the table; those of several GPUs only where there are several."""
    profile = finding.profile
    for name in QUANTITIES:
        figure, why = profile.figures.get(name), profile.missing.get(name)
        if figure is not None or why is not None:
            yield Measured(name=name, figure=figure, sheet=sheet_of(name, profile, finding.device), missing=why)


def _keep(profile: DeviceProfile, store: Path | None) -> tuple[Path | None, str | None]:
    """Where it went, or why it went nowhere: figures that were disturbed would spoil every plan."""
    if profile.notes:
        return None, f"the measurement was disturbed: {'; '.join(profile.notes)}"
    try:
        return calibrations.keep(profile, store), None
    except PlanError as error:
        return None, str(error)
