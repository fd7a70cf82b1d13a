"""The prices of several recipes as a table."""

from collections.abc import Sequence

from estimators.units import format_bytes
from planner.answer import Priced
from planner.cap import UnderCap
from planner.report.figures import clean, error_bar, gib, rate
from planner.report.page import Column, Line, Span, labelled, table, title
from planner.report.terminal import VERDICTS

LONGEST_PLACE = 32
COLUMNS = (
    Column(title="recipe"),
    Column(title="model"),
    Column(title="GiB a GPU", right=True),
    Column(title="±", style="dim", vital=False),
    Column(title="spare", right=True),
    Column(title="tokens/s", right=True),
    Column(title="±", style="dim", vital=False),
    Column(title="by", style="dim"),
    Column(title="verdict"),
)


def prices_page(answers: Sequence[Priced], width: int) -> list[Line]:
    """One row a recipe, in the order given; then what is to be said of single ones."""
    page = table(COLUMNS, [_row(answer) for answer in answers], width)
    sections = {
        "Not priced": [(answer.where, answer.error) for answer in answers if answer.error],
        "No dry run": [(answer.where, answer.note) for answer in answers if answer.note],
        "Under a cap": [(answer.where, _survival(answer.under_cap)) for answer in answers if answer.under_cap],
    }
    for name, rows in sections.items():
        if rows:
            page += [*title(name), *labelled([(_place(where), clean(text or "")) for where, text in rows], width)]
    return page


def _row(answer: Priced) -> list[str | Span]:
    name = clean(answer.recipe.model) if answer.recipe else "-"
    price = answer.price
    if price is None:
        return [_place(answer.where), name, "-", "", "-", "-", "", "", ("not priced", "bad")]
    return [
        _place(answer.where),
        name,
        gib(price.process.value),
        error_bar(price.process),
        gib(price.tightest.spare_bytes),
        rate(price.tokens_per_second.value),
        error_bar(price.tokens_per_second),
        price.evidence,
        (price.verdict, VERDICTS[price.verdict]),
    ]


def _survival(found: UnderCap) -> str:
    answer = "yes" if found.survives else "no"
    times = "once" if found.retries == 1 else f"{found.retries:,} times"
    tight = f" (tight: the cache has to be emptied {times})" if found.survives and found.retries else ""
    return f"survives a cap of {format_bytes(found.cap_bytes)}: {answer}{tight}"


def _place(where: str) -> str:
    """Where a recipe stands; of a long path the end."""
    return clean(where) if len(where) <= LONGEST_PLACE else f"…{clean(where)[1 - LONGEST_PLACE :]}"
