"""A least-squares fit of a few costs, none of them negative. Pure."""

from __future__ import annotations

from collections.abc import Sequence

Row = Sequence[float]


def fit(rows: Sequence[Row], seen: Sequence[float]) -> list[float]:
    """The costs, 0 or more, with the smallest relative errors of the sums over each row.

    A negative cost is set to 0, the most negative one first, and the others are fitted again. Raises
    ``ValueError`` if the rows do not determine the costs.
    """
    weighted = [[part / value for part in row] for row, value in zip(rows, seen, strict=True)]
    kept = list(range(len(rows[0])))
    while kept:
        found = _solve_normal([[row[column] for column in kept] for row in weighted])
        if min(found) >= 0:
            costs = [0.0] * len(rows[0])
            for column, cost in zip(kept, found, strict=True):
                costs[column] = cost
            return costs
        del kept[found.index(min(found))]
    return [0.0] * len(rows[0])


def predicted(costs: Sequence[float], row: Row) -> float:
    """The sum of the costs of a row."""
    return sum(cost * part for cost, part in zip(costs, row, strict=True))


def _solve_normal(rows: Sequence[Row]) -> list[float]:
    """The least-squares fit of rows whose sums should all be 1."""
    size = len(rows[0])
    matrix = [[sum(row[i] * row[j] for row in rows) for j in range(size)] for i in range(size)]
    # Costs differ by orders of magnitude. After scaling, a small pivot means that two cannot be separated.
    scales = [matrix[i][i] ** 0.5 for i in range(size)]
    if not all(scales):
        raise ValueError("no measurement depends on one of the costs")
    for i in range(size):
        matrix[i] = [value / scales[i] / scales[j] for j, value in enumerate(matrix[i])]
        matrix[i].append(sum(row[i] for row in rows) / scales[i])
    return [value / scale for value, scale in zip(_eliminate(matrix), scales, strict=True)]


def _eliminate(matrix: list[list[float]]) -> list[float]:
    """Gauss-Jordan with pivots; the last column is the right side."""
    size = len(matrix)
    for column in range(size):
        pivot = max(range(column, size), key=lambda index: abs(matrix[index][column]))
        if abs(matrix[pivot][column]) < 1e-9:
            raise ValueError("the measurements do not determine the costs: measure more lengths and streams")
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        matrix[column] = [value / matrix[column][column] for value in matrix[column]]
        for index in range(size):
            if index != column and matrix[index][column]:
                factor = matrix[index][column]
                matrix[index] = [a - factor * b for a, b in zip(matrix[index], matrix[column], strict=True)]
    return [row[-1] for row in matrix]
