"""`plan gpus [NAME]`: the catalogue of GPUs, or every figure of one with its source."""

from typing import TYPE_CHECKING

import click

from planner.commands.parameters import AS_JSON, VERBOSE, Read, as_typed, gpu_names
from planner.report.paint import page_width, show, write

if TYPE_CHECKING:
    from estimators.hardware import Device


def _run(name: str | None, as_json: bool, verbose: bool) -> int:
    from estimators.catalogue import all_devices, find_device

    devices = all_devices() if name is None else [find_device(name)]
    if as_json:
        _write_json(devices, single=name is not None)
        return 0
    from planner.report.devices import device_page, devices_page

    show(devices_page(devices, page_width()) if name is None else device_page(devices[0], page_width()))
    return 0


def _write_json(devices: "list[Device]", *, single: bool) -> None:
    from planner.report.json import SCHEMA_VERSION, device_document, dump

    documents = [device_document(device) for device in devices]
    write(dump(documents[0] if single else {"schema_version": SCHEMA_VERSION, "gpus": documents}))


command = click.Command(
    "gpus",
    short_help="List the GPUs that plan knows, or the figures of one.",
    help="List the GPUs that plan knows; with NAME, every figure of one and where it comes from.",
    callback=_run,
    params=[click.Argument(["name"], required=False, type=Read(as_typed, "NAME", gpu_names)), AS_JSON, VERBOSE],
)
