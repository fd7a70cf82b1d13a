"""`plan estimate FILE…`: prices recipe documents on given GPUs, one answer a recipe, in order."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

from estimators.document import from_document, parse_recipes
from estimators.errors import BadInput, PlanError
from estimators.hardware import Cluster
from estimators.model import ModelSpec
from estimators.models import load_model
from estimators.price import Price
from estimators.pricing import price
from estimators.recipe import Recipe
from planner.commands.machine import any_cluster
from planner.commands.parameters import AS_JSON, BUDGET, GPUS, HARDWARE, VERBOSE
from planner.report.paint import page_width, say, show, write
from planner.versions import versions

STANDARD_INPUT = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A recipe's place in the input, and its price, or why it has none."""

    where: str
    recipe: Recipe | None = None
    price: Price | None = None
    error: str | None = None
    bug: bool = False


def _run(files: Sequence[str], as_json: bool, verbose: bool, **values: Any) -> int:
    documents = [entry for name in files for entry in read_documents(name)]
    cluster = any_cluster(values)
    load = cache(load_model)  # a model given as a path is read once, and one object is what the estimators remember
    answers = (_answer(where, document, cluster, load, values) for where, document in documents)
    return _write_json(answers) if as_json else _show(list(answers))


def read_documents(name: str) -> Iterator[tuple[str, object]]:
    """Where each document of a file stands, and the document; a line of JSON Lines that is none is its error.

    Raises:
        BadInput: the file cannot be read, or holds no document at all.
    """
    source = "standard input" if name == STANDARD_INPUT else name
    text = _read(name, source)
    try:
        whole = parse_recipes(text, source)
    except BadInput as error:
        entries = list(_lines(text, source))
        if all(isinstance(document, BadInput) for _, document in entries):
            raise BadInput(f"{source}: no recipe document in it") from error
        yield from entries
        return
    if not whole:
        raise BadInput(f"{source}: no recipe document in it")
    yield from ((source if len(whole) == 1 else f"{source}:{number}", one) for number, one in enumerate(whole, 1))


def _read(name: str, source: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if name == STANDARD_INPUT else Path(name).read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput(f"{source}: not a text in UTF-8") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {source}: {getattr(error, 'strerror', None) or error}") from None


def _lines(text: str, source: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{source}:{number}"
        if line.strip():
            try:
                yield from ((where, document) for document in parse_recipes(line, where))
            except BadInput as error:
                yield where, BadInput(str(error).removeprefix(f"{where}:1: "))


def _answer(
    where: str, document: object, cluster: Cluster, load: Callable[[str], ModelSpec], values: Mapping[str, Any]
) -> Priced:
    try:
        if isinstance(document, BadInput):
            raise document
        recipe = from_document(document)
        limits = {name: values[name] for name in ("vram_budget_bytes", "headroom_bytes", "assume_idle")}
        return Priced(where=where, recipe=recipe, price=price(load(recipe.model), recipe, cluster, **limits))
    except PlanError as error:
        return Priced(where=where, error=str(error))
    except Exception as error:  # one recipe's trouble must not cost the others their answer
        return Priced(where=where, error=f"{type(error).__name__}: {error}: this is a bug in plan", bug=True)


def _write_json(answers: Iterator[Priced]) -> int:
    from planner.report.json import dump, error_document, price_document

    stands, code = versions(), 0
    for answer in answers:
        priced = answer.price
        document = price_document(priced, stands) if priced else error_document(answer.error or "")
        write(dump(document, indent=None))
        code = 1 if answer.bug else code
    return code


def _show(answers: Sequence[Priced]) -> int:
    from planner.report.prices import prices_page

    show(
        prices_page(
            [(answer.where, answer.recipe, answer.price or answer.error or "") for answer in answers], page_width()
        )
    )
    bugs = [answer for answer in answers if answer.bug]
    if bugs:
        say(f"error: {bugs[0].error}, please report it")
    return 1 if bugs else 0


command = click.Command(
    "estimate",
    short_help="Price recipe documents: JSON files, or standard input.",
    help="Price recipe documents: files of one JSON object, a list, or one object a line; - is standard input.",
    callback=_run,
    params=[
        click.Argument(["files"], nargs=-1, required=True, type=click.Path(allow_dash=True), metavar="FILE…"),
        GPUS,
        *HARDWARE,
        *BUDGET,
        AS_JSON,
        VERBOSE,
    ],
)
