"""The folder that the files go into: checked before anything is planned, written once all texts are there."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from estimators.errors import BadInput
from planner.emit.about import of_order, rate_note
from planner.emit.chat_template import template_note
from planner.emit.data import amount_of
from planner.emit.order import Order, Tool
from planner.emit.packages import install
from planner.emit.tools import Written, header, memory, one_line, verified

PLAN, NOTES = "plan.json", "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """What lies in the folder now."""

    folder: str
    files: tuple[str, ...]
    commands: tuple[str, ...]
    """Which start it, one a tool that can be started."""
    notes: tuple[str, ...] = ()
    """What the estimate is not worth there, and what else to know before it is started."""
    data: str = ""
    """How much there is to learn; empty where no data were given."""


def check_folder(path: str) -> Path:
    """
    Raises:
        BadInput: there is something in it, or it cannot be made.
    """
    folder = Path(path)
    try:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise BadInput(f"--emit {path[:120]!a}: not a folder")
        if folder.is_dir() and any(folder.iterdir()):
            raise BadInput(f"--emit {path[:120]!a}: not empty, and nothing there is overwritten")
        nearest = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        if not os.access(nearest, os.W_OK):
            raise BadInput(f"--emit {path[:120]!a}: {nearest} cannot be written")
    except (OSError, ValueError) as error:
        raise BadInput(f"--emit {path[:120]!a}: {getattr(error, 'strerror', None) or error}") from None
    return folder


def digest_of(plan: str) -> str:
    return hashlib.sha256(plan.encode()).hexdigest()


def emit(
    folder: Path,
    order: Order,
    written: Written,
    plan: str,
    more: Mapping[str, str] | None = None,
    about: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> Emitted:
    """Writes the tools' files, plan.json and a page that says what is what; `more` goes beside them as it is, and
    `about` stands in the page for what is said of the rate and the data.

    Raises:
        BadInput: the folder cannot be written; nothing is left half done.
    """
    if taken := sorted({*written.files, PLAN, NOTES} & set(more or {})):
        raise BadInput(f"--emit would write two files called {taken[0]}: rename yours")
    files = {**written.files, PLAN: plan, **(more or {})}
    files[NOTES] = _page(order, written, files, of_order(order) if about is None else about)
    _write(folder, files)
    started = [tool for tool in written.tools if tool.command]
    return Emitted(
        folder=str(folder),
        files=tuple(files),
        commands=tuple(tool.command(order) for tool in started if tool.command),
        notes=tuple(
            dict.fromkeys(
                (
                    *(memory(order, tool) for tool in started if not verified(order, tool)),
                    *(note for tool in written.tools for note in tool.notes(order)),
                    *template_note(order, written.tools),
                    *rate_note(order),
                    *notes,
                )
            )
        ),
        data=amount_of(order),
    )


def _write(folder: Path, files: Mapping[str, str]) -> None:
    made: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with (folder / name).open("x", encoding="utf-8", newline="\n") as file:
                made.append(folder / name)
                file.write(text)
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        raise BadInput(f"--emit {str(folder)[:120]!a}: {error.strerror}") from None


def _page(order: Order, written: Written, files: Mapping[str, str], about: Sequence[str]) -> str:
    """Also the header of what has no room for one, as JSON."""
    page = [
        "# Files of a plan",
        "",
        "Run each command in this folder. The versions are those checked, or newer ones.",
        "",
    ]
    for tool in written.tools:
        page += [f"## {tool.name}", "", *_lines(order, tool), ""]
    for line in (*about, *(f"Note: {note}." for note in template_note(order, written.tools))):
        page += [one_line(line), ""]
    page += [
        "| file | SHA-256 |",
        "|-|-|",
        *(f"| {_cell(name)} | {digest_of(text)} |" for name, text in files.items()),
        "",
    ]
    return "\n".join(page)


def _cell(name: str) -> str:
    return one_line(name).replace("|", "\\|")


def _lines(order: Order, tool: Tool) -> list[str]:
    lines = [f"- {one_line(line)}" for line in (*header(order, tool)[:3], *tool.notes(order))]
    commands = [install(order, tool), *([tool.command(order)] if tool.command else [])]
    return [*lines, "", "```", *map(one_line, commands), "```"]
