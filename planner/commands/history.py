"""`plan history`: the runs that were measured, with what had been expected of them."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.commands.parameters import AS_JSON, VERBOSE, Read, as_typed, model_names
from planner.options import whole
from planner.report.paint import page_width, say, show, write

if TYPE_CHECKING:
    from estimators.record import Entry

SHOWN, MOST = 20, 1_000_000


def _run(store_path: str | None, model: str | None, limit: int | None, as_json: bool, verbose: bool) -> int:
    from planner.report.history import history_document, history_page
    from runners.store import default_path

    path = Path(store_path) if store_path else default_path()
    entries, stored = _read(path, model, limit if limit or as_json else SHOWN)
    if as_json:
        from planner.report.json import dump

        write(dump(history_document(entries, stored, str(path))))
        return 0
    show(history_page(entries, stored, str(path), page_width()))
    return 0


def _read(path: Path, model: str | None, limit: int | None) -> "tuple[tuple[Entry, ...], int]":
    """The runs asked for, and how many there are; a store that is not there is an empty one, and is not made."""
    from runners.store import Store

    store = Store.look(path)
    if store is None:
        return (), 0
    with store:
        found = store.entries(model=model, limit=limit, skipped=lambda line: say(f"warning: {line}"))
        return found, store.count()


command = click.Command(
    "history",
    short_help="List the measured runs: expected and measured memory and speed.",
    help="List the runs that were measured here, newest first: what was expected of each, what it took, how it ended.",
    callback=_run,
    params=[
        click.Option(["--model"], type=Read(as_typed, "MODEL", model_names), help="Only runs of this model."),
        click.Option(
            ["--limit"],
            type=Read(whole(1, MOST), "N"),
            help=f"The newest N; by default {SHOWN} on the screen, all with --json.",
        ),
        click.Option(["--store", "store_path"], type=Read(as_typed, "PATH"), help="Another store than this user's."),
        AS_JSON,
        VERBOSE,
    ],
)
