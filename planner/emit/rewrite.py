"""A configuration with some of its keys changed, and everything else, comments too, as its owner wrote it."""

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import replace

from planner.emit import axolotl, llamafactory, trl
from planner.emit.order import Order, Settings
from planner.emit.tools import TOOLS, Written, write_for
from planner.emit.yaml_read import Document, parse
from planner.emit.yaml_text import dump, scalar

SETTINGS = {"axolotl": axolotl.settings, "llamafactory": llamafactory.settings, "trl": trl.settings}
MAIN = {"axolotl": axolotl.FILE, "llamafactory": llamafactory.FILE, "trl": trl.FILE}
SYNONYMS = {
    "gradient_checkpointing": ("activation_checkpointing",),
    "gradient_checkpointing_kwargs": ("activation_checkpointing_kwargs",),
}
"""Two words for one thing must not both stand there."""


def changed_settings(tool: str, before: Order, after: Order) -> tuple[Settings, tuple[str, ...]]:
    """What the tool's own tables say differently of the two recipes: keys with their new values, and keys to drop."""
    old, new = SETTINGS[tool](before), SETTINGS[tool](after)
    altered = {name: value for name, value in new.items() if name not in old or old[name] != value}
    return altered, tuple(name for name in old if name not in new)


def rewrite(document: Document, altered: Mapping[str, object], dropped: tuple[str, ...]) -> str:
    """The text with these keys at their new values; what is not there yet goes to the end."""
    text = document.text
    if isinstance(mine := document.table.get("plugins"), list) and "plugins" in altered:
        altered = {**altered, "plugins": _joined(mine, altered["plugins"])}
    gone = {other for name in altered for other in SYNONYMS.get(name, ())} | set(dropped)
    edits = []
    for name, (start, end) in document.places.items():
        if name in altered:
            edits.append((start, end, _entry(name, altered[name], text[start:end])))
        elif name in gone:
            edits.append((start, _end_of_line(text, end), ""))
    for start, end, entry in sorted(edits, reverse=True):
        text = text[:start] + entry + text[end:]
    missing = {name: value for name, value in altered.items() if name not in document.places}
    if missing:
        text = (text if text.endswith("\n") or not text else text + "\n") + dump(missing)
    parse(text, document.where)  # what is written must read back
    return text


def _joined(before: list[object], after: object) -> list[object]:
    """The user's own plugins stay."""
    return [*before, *(one for one in (after if isinstance(after, list) else [after]) if one not in before)]


def _entry(name: str, value: object, before: str) -> str:
    """A value that stood on lines of its own ends with one."""
    return f"{name}: {scalar(value)}" + ("\n" if before.endswith("\n") else "")


def _end_of_line(text: str, position: int) -> int:
    if text[:position].endswith("\n"):
        return position
    found = text.find("\n", position)
    return len(text) if found < 0 else found + 1


def written_beside(tool: str, order: Order, name: str) -> Written:
    """What the tool is launched with, and its command for a file of this name; not the file itself, which is the
    user's own, nor a table of data."""
    own = TOOLS[tool]
    main = MAIN[tool]
    written = write_for(order, [tool]).files
    files = {other: text for other, text in written.items() if other not in (main, llamafactory.DATA_FILE)}

    def command(order: Order) -> str:
        return own.command(order).replace(main, shlex.quote(name)) if own.command else ""

    return Written(files=files, tools=(replace(own, command=command, notes=lambda order: ()),))


def difference(before: str, after: str, name: str) -> str:
    """A unified diff, as `patch` reads it."""
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    lines = [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
             for line in difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")]  # fmt: skip
    return "".join(lines)
