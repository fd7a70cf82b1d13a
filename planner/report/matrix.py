"""Which method fits on which card: the table that answers where there is no GPU."""

from planner.plan import Candidate, Matrix, MatrixRow
from planner.report.figures import clean, count, error_bar, gib, in_short, rate
from planner.report.page import BLANK, Column, Line, Span, paragraph, table, title


def matrix_page(matrix: Matrix, width: int) -> list[Line]:
    """One row a card, smallest first: for each method what is spare and how fast it is, then the best one's recipe."""
    columns = [Column(title="card"), Column(title="GiB", right=True)]
    columns += [Column(title=method, right=True) for method in matrix.methods]
    columns += [Column(title="tokens/s", right=True), Column(title="best", flows=True)]
    rows = [_row(row, row.best, matrix.methods) for row in matrix.rows if row.best]
    page = quiet_matrix(matrix, width)
    page += title(
        "One card each",
        f"under a method: GiB spare after headroom and error bar; tokens/s of the best{_accuracy(matrix)}",
        width,
    )
    page += table(columns, rows, width) if rows else []
    page += _too_small(matrix, width)
    return page + _assumed(matrix, width)


def quiet_matrix(matrix: Matrix, width: int) -> list[Line]:
    """The one sentence."""
    return paragraph(headline(matrix), width, "bold")


def headline(matrix: Matrix) -> str:
    """The smallest card on which each method fits."""
    model = f"{clean(matrix.model.name)} ({count(matrix.model.parameters)} parameters)"
    firsts = [(method, _first(matrix, method)) for method in matrix.methods]
    found = [f"for {method} {clean(row.device)} ({gib(row.total_bytes)} GiB)" for method, row in firsts if row]
    missing = [method for method, row in firsts if row is None]
    nothing = f"{' and '.join(missing)} {'fits' if len(missing) == 1 else 'fit'} on no single card" if missing else ""
    smallest = [f"the smallest card is {', '.join(found)}"] if found else []
    return f"{model}: {'; '.join([*smallest, *([nothing] if nothing else [])])}."


def _first(matrix: Matrix, method: str) -> MatrixRow | None:
    fitting = [row for row in matrix.rows if row.methods.get(method)]
    return min(fitting, key=lambda row: row.total_bytes, default=None)


def _accuracy(matrix: Matrix) -> str:
    """The error bar of the speeds, and their evidence."""
    best = next((row.best for row in matrix.rows if row.best), None)
    return f", {error_bar(best.price.tokens_per_second)} ({best.price.evidence})" if best else ""


def _too_small(matrix: Matrix, width: int) -> list[Line]:
    names = [clean(row.device) for row in matrix.rows if row.best is None]
    return [BLANK, *paragraph(f"Nothing fits on {', '.join(names)}.", width, "dim", indent=2)] if names else []


def _row(row: MatrixRow, best: Candidate, methods: tuple[str, ...]) -> list[str | Span]:
    cells: list[str | Span] = [clean(row.device), gib(row.total_bytes)]
    cells += [_spare(row.methods.get(method)) for method in methods]
    return [*cells, rate(best.price.tokens_per_second.value), f"{best.method}, {in_short(best.recipe)}"]


def _spare(candidate: Candidate | None) -> Span:
    if candidate is None:
        return ("-", "dim")
    style = "" if candidate.price.fits else "warn"
    return (gib(candidate.price.tightest.spare_bytes), style)


def _assumed(matrix: Matrix, width: int) -> list[Line]:
    page: list[Line] = title("Assumed") if matrix.assumptions else []
    for text in matrix.assumptions:
        page += paragraph(clean(text), width, "dim", indent=2, bullet="· ")
    return page
