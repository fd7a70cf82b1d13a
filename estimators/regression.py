"""A small regression that shrinks towards nothing and is not led by a single row, in plain Python."""

from collections.abc import Sequence
from statistics import NormalDist

TAME = 1.5
"""A residual beyond so many standard deviations counts less, in proportion (Huber's weights)."""
ROUNDS = 4
HEAVIEST = 10
"""Errors of estimates have heavier tails than a normal's: no interval is drawn with more degrees of freedom."""


def shrunk(
    rows: Sequence[Sequence[float]], truths: Sequence[float], spreads: Sequence[float], noise: float
) -> list[float]:
    """The coefficients most likely after `rows`, where each was drawn around 0 with its spread; a spread of 0 keeps
    its coefficient at 0."""
    columns = [at for at, spread in enumerate(spreads) if spread > 0]
    weights = [1.0] * len(rows)
    found = [0.0] * len(spreads)
    for _ in range(ROUNDS if rows and columns else 0):
        matrix = [[_product(rows, weights, a, b) for b in columns] for a in columns]
        for at, column in enumerate(columns):
            matrix[at][at] += (noise / spreads[column]) ** 2
        right = [sum(w * row[a] * y for w, row, y in zip(weights, rows, truths, strict=True)) for a in columns]
        for column, value in zip(columns, _solved(matrix, right), strict=True):
            found[column] = value
        misses = [abs(y - dot(row, found)) for row, y in zip(rows, truths, strict=True)]
        weights = [min(1.0, TAME * noise / miss) if miss else 1.0 for miss in misses]
    return found


def dot(row: Sequence[float], coefficients: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(row, coefficients, strict=True))


def student(share: float, freedom: float) -> float:
    """The quantile of Student's t, by Cornish and Fisher's expansion: within 2 % from 3 degrees of freedom on."""
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _product(rows: Sequence[Sequence[float]], weights: Sequence[float], a: int, b: int) -> float:
    return sum(weight * row[a] * row[b] for weight, row in zip(weights, rows, strict=True))


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gauss and Jordan's elimination; the matrix is positive definite, so no pivot vanishes."""
    table = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for at, pivot in enumerate(table):
        pivot[:] = [value / pivot[at] for value in pivot]
        for other in table:
            if other is not pivot:
                factor = other[at]
                other[:] = [value - factor * own for value, own in zip(other, pivot, strict=True)]
    return [row[-1] for row in table]
