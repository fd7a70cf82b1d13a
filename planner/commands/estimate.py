"""`plan estimate FILE…`: prices recipe documents on given GPUs, one answer a recipe, in order."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click

from estimators.document import parse_recipes
from estimators.errors import BadInput
from planner import options
from planner.answer import Priced, Question, answer_to
from planner.commands.machine import any_cluster
from planner.commands.parameters import AS_JSON, BUDGET, GPUS, HARDWARE, VERBOSE, Read
from planner.report.paint import page_width, say, show, write
from planner.report.progress import Progress
from planner.versions import versions

EVIDENCE = ("formula", "dry-run")
STANDARD_INPUT = "-"


def _run(files: Sequence[str], as_json: bool, verbose: bool, **values: Any) -> int:
    documents = [entry for name in files for entry in read_documents(name)]
    question = _question(values)
    progress = Progress(wanted=question.dry)
    answers = _answers(documents, question, progress)
    return _write_json(answers) if as_json else _show(list(answers))


def _question(values: Mapping[str, Any]) -> Question:
    """
    Raises:
        BadInput: a dry run is insisted on, and the libraries for it are missing.
        NoUsableGpu: --gpus is auto and there is none.
    """
    absent = None
    if values["evidence"] != "formula":
        from planner.dry import what_is_missing

        absent = what_is_missing()
    if absent and values["evidence"] is not None:
        raise BadInput(f"--evidence {values['evidence']}: {absent}")
    from planner.learned import calibration_of

    cluster = any_cluster(values)
    limits = {name: values[name] for name in ("vram_budget_bytes", "headroom_bytes", "assume_idle")}
    return Question(
        cluster=cluster,
        limits={**limits, "calibration": calibration_of(cluster)},
        dry=values["evidence"] != "formula" and absent is None,
        insist=values["evidence"] is not None,
        cap_bytes=values["allocator_cap"],
    )


def _answers(documents: Sequence[tuple[str, object]], question: Question, progress: Progress) -> Iterator[Priced]:
    for number, (where, document) in enumerate(documents, 1):
        progress.tick(f"pricing recipe {number:,} of {len(documents):,} by dry run …")
        answer = answer_to(where, document, question)
        progress.clear()
        yield answer


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


def _write_json(answers: Iterator[Priced]) -> int:
    from planner.report.json import dump, error_document, price_document

    code, of = 0, cache(versions)
    for answer in answers:
        document = error_document(answer.error or "")
        if answer.price:
            document = price_document(answer.price, of(answer.price.evidence))
            document |= {"survives": answer.under_cap.survives} if answer.under_cap else {}
            document |= {"note": answer.note} if answer.note else {}
        write(dump(document, indent=None))
        code = 1 if answer.bug else code
    return code


def _show(answers: Sequence[Priced]) -> int:
    from planner.report.prices import prices_page

    show(prices_page(answers, page_width()))
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
        click.Option(
            ["--evidence"],
            type=Read(options.choice(lambda: EVIDENCE), "NAME", lambda: EVIDENCE),
            help="formula, or dry-run; by default a dry run where the libraries are installed.",
        ),
        click.Option(
            ["--allocator-cap"],
            type=Read(options.read_size, "SIZE"),
            help="Say whether each survives with so much for torch's allocator, set after loading.",
        ),
        AS_JSON,
        VERBOSE,
    ],
)
