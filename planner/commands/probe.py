"""`plan probe`: the GPUs and the host at hand, as the driver describes them."""

from typing import TYPE_CHECKING, Any

import click

from planner.commands.machine import look
from planner.commands.parameters import AS_JSON, VERBOSE
from planner.report.paint import page_width, show, write

if TYPE_CHECKING:
    from runners.probe import Probe


def _run(as_json: bool, verbose: bool) -> int:
    probe = look(quiet=True)
    if as_json:
        from planner.report.json import dump

        write(dump(_document(probe)))
        return 0
    from planner.report.machine import probe_page

    show(probe_page(probe, page_width()))
    return 0


def _document(probe: "Probe") -> dict[str, Any]:
    from planner.report.json import SCHEMA_VERSION, gpu_document, host_document

    return {
        "schema_version": SCHEMA_VERSION,
        "gpus": [gpu_document(gpu) for gpu in probe.gpus],
        "hidden": probe.hidden,
        "host": host_document(probe.host),
        "driver_version": probe.driver_version,
        "absent": probe.absent,
        "lost": list(probe.lost),
    }


command = click.Command(
    "probe",
    short_help="Show the GPUs and the host at hand.",
    help="Show the GPUs that a job started here would see, and the host around them. Takes no GPU memory.",
    callback=_run,
    params=[AS_JSON, VERBOSE],
)
