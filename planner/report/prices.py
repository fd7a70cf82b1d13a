"""The prices of several recipes as a table."""

from collections.abc import Sequence

from estimators.price import Price
from estimators.recipe import Recipe
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
    Column(title="verdict"),
)


def prices_page(prices: Sequence[tuple[str, Recipe | None, Price | str]], width: int) -> list[Line]:
    """One row a recipe, in the order given; a text in place of a price says why there is none."""
    page = table(COLUMNS, [_row(where, recipe, priced) for where, recipe, priced in prices], width)
    unpriced = [(_place(where), clean(priced)) for where, _, priced in prices if isinstance(priced, str)]
    return [*page, *title("Not priced"), *labelled(unpriced, width)] if unpriced else page


def _row(where: str, recipe: Recipe | None, priced: Price | str) -> list[str | Span]:
    name = clean(recipe.model) if recipe else "-"
    if isinstance(priced, str):
        return [_place(where), name, "-", "", "-", "-", "", ("not priced", "bad")]
    return [
        _place(where),
        name,
        gib(priced.process.value),
        error_bar(priced.process),
        gib(priced.tightest.spare_bytes),
        rate(priced.tokens_per_second.value),
        error_bar(priced.tokens_per_second),
        (priced.verdict, VERDICTS[priced.verdict]),
    ]


def _place(where: str) -> str:
    """Where a recipe stands; of a long path the end."""
    return clean(where) if len(where) <= LONGEST_PLACE else f"…{clean(where)[1 - LONGEST_PLACE :]}"
