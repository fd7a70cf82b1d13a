"""`plan calibrate`: measures this machine's GPU, its host and the links between, so that later plans know them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from estimators.errors import BadInput, NoUsableGpu
from planner.commands import machine
from planner.commands.parameters import AS_JSON, QUIET, VERBOSE, Read, as_typed
from planner.report.paint import page_width, show, write

if TYPE_CHECKING:
    from planner.calibrate import Finding

NOT_KEPT = 1
"""The exit code where the profile is shown and could not be kept, which who shares the GPU knows beforehand."""
OF_THE_MACHINE: dict[str, Any] = {"nodes": 1, "host_memory": None, "host_disk": None, "link": None}


def _run(share: bool, store_path: str | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    store = Path(store_path) if store_path else None
    probe = machine.look(quiet)
    if probe.absent:
        raise NoUsableGpu(f"no GPU here ({probe.absent}), and calibrating needs one")
    cluster = machine.found(probe, OF_THE_MACHINE)
    _need_torch()
    from planner.calibrate import calibrate_machine
    from planner.learned import calibration_of
    from planner.report.progress import Progress
    from runners.microbench.launch import Wish

    before = calibration_of(cluster, store)
    progress = Progress(wanted=not quiet and not as_json)
    try:
        finding = calibrate_machine(
            cluster, before, Wish(share=share), store, lambda title: progress.show(f"measuring: {title or 'done'}")
        )
    finally:
        progress.clear()
    _tell(finding, as_json)
    return NOT_KEPT if finding.unkept and not share else 0


def _need_torch() -> None:
    """
    Raises:
        BadInput: the microbenchmarks run on what training runs on, and that is not installed.
    """
    from planner.dry import INSTALL
    from runners.dry.tracer import missing

    if absent := missing():
        raise BadInput(f"calibrating needs {', '.join(absent)}: {INSTALL}")


def _tell(finding: "Finding", as_json: bool) -> None:
    from planner.report.calibrate import calibration_document, calibration_page

    if as_json:
        from planner.report.json import dump

        write(dump(calibration_document(finding)))
        return
    show(calibration_page(finding, page_width()))


command = click.Command(
    "calibrate",
    short_help="Measure this machine's GPU and host for a minute: later plans use it.",
    help="Run microbenchmarks on this machine's first GPU, its host and the links between its GPUs, in under a minute: "
    "what was measured, what the data sheet says, and what plans used before and use from now on.",
    callback=_run,
    params=[
        click.Option(["--share"], is_flag=True, help="Measure although somebody else is on the GPU; shown, not kept."),
        click.Option(["--store", "store_path"], type=Read(as_typed, "PATH"), help="Another store than this user's."),
        AS_JSON,
        QUIET,
        VERBOSE,
    ],
)
