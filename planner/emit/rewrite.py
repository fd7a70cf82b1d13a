"""A configuration with some of its keys changed, and everything else, comments too, as its owner wrote it."""

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from estimators.recipe import Recipe
from planner.emit import axolotl, llamafactory, trl
from planner.emit.deepspeed import FILE as DEEPSPEED_FILE
from planner.emit.order import Order, Settings
from planner.emit.taken import Taken
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
CHECKPOINTING = (
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "disable_gradient_checkpointing", "use_reentrant_gc",
)  # fmt: skip
SHARDING = ("fsdp", "fsdp_config", "fsdp_version")
NOT_BY_FSDP = "checkpointing is the trainer's own, as it was estimated, and no longer FSDP's"


class Edits(NamedTuple):
    """Of a file, so that it says what was priced."""

    altered: Settings
    """Keys with their new values."""
    dropped: tuple[str, ...]
    notes: tuple[str, ...] = ()


def edits(taken: Taken, after: Order) -> Edits:
    """From what was read to an order of the same recipe or of a corrected one. What a file beside it said, the file
    says itself where the one written beside it does not."""
    new, place = SETTINGS[taken.tool](after), after.recipe.parallelism
    unheard = place.kind == "fsdp2" and not taken.placed_here and _asks_otherwise(taken)
    placed_anew = place != taken.recipe.parallelism or unheard
    said = _said(taken, after, placed_anew=placed_anew)
    altered, dropped = changed_settings(taken.tool, replace(after, recipe=said), after)
    if placed_anew:
        altered |= {name: new[name] for name in SHARDING if name in new}
    if after.zero and (after.recipe != taken.recipe or not taken.placed_here):
        altered["deepspeed"] = DEEPSPEED_FILE  # which is written beside it, with these batches
    if placed_anew or "deepspeed" in altered:
        dropped += tuple(name for name in SHARDING if name not in new)  # transformers takes one of the two at most
    if not after.zero and (placed_anew or not taken.placed_here):
        dropped += ("deepspeed",)
    ours = said.gradient_checkpointing != taken.recipe.gradient_checkpointing
    return Edits(altered, tuple(dict.fromkeys(dropped)), (NOT_BY_FSDP,) if ours else ())


def _asks_otherwise(taken: Taken) -> bool:
    """Whether an accelerate file said what the launcher of the tool, or the file itself, would say otherwise."""
    return taken.tool == axolotl.NAME or any(name in taken.document.table for name in SHARDING)


def _said(taken: Taken, after: Order, *, placed_anew: bool) -> Recipe:
    """What the file says of the recipe that it was read as: of FSDP's own checkpointing nothing, unless FSDP's own
    section of it stays, and of DeepSpeed's own optimizer nothing once DeepSpeed is gone."""
    said = taken.recipe
    if placed_anew or not taken.placed_here:
        said = replace(said, gradient_checkpointing=taken.alone.gradient_checkpointing)
    return said if after.zero else replace(said, optimizer=taken.alone.optimizer)


def changed_settings(tool: str, before: Order, after: Order) -> tuple[Settings, tuple[str, ...]]:
    """What the tool's own tables say differently of the two recipes: keys with their new values, and keys to drop."""
    old, new = SETTINGS[tool](before), SETTINGS[tool](after)
    altered = {name: value for name, value in new.items() if name not in old or old[name] != value}
    if after.recipe.gradient_checkpointing and not before.recipe.gradient_checkpointing:
        altered |= {name: new[name] for name in CHECKPOINTING if name in new}  # which kind of it, too
    return altered, tuple(name for name in old if name not in new)


def rewrite(document: Document, altered: Mapping[str, object], dropped: tuple[str, ...]) -> str:
    """The text with these keys at their new values; what is not there yet goes to the end."""
    text = document.text
    if isinstance(mine := document.table.get("plugins"), list) and "plugins" in altered:
        altered = {**altered, "plugins": _joined(mine, altered["plugins"])}
    gone = {other for name in altered for other in SYNONYMS.get(name, ())} | set(dropped)
    places = []
    for name, (start, end) in document.places.items():
        if name in altered:
            places.append((start, end, _entry(name, altered[name], text[start:end])))
        elif name in gone:
            places.append((start, _end_of_line(text, end), ""))
    for start, end, entry in sorted(places, reverse=True):
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
