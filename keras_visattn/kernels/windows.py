"""Window attention on the CPU, NumPy arrays in and out: bands of rows, side by side."""

import functools
import importlib

import numpy as np

from keras_visattn.kernels.threads import run

BAND = 16  # rows, at least
NO_LOOPS = "numba is not installed, or finds no folder for its cache"


@functools.cache
def loops():
    """The module of loops, which takes a second to import.

    `None` where numba is missing, or finds no folder for what it compiles.
    """
    try:
        return importlib.import_module("keras_visattn.kernels.window_loops")
    except (ImportError, RuntimeError):
        return None


def forward_shapes(query, key, value, row_table, column_table):
    """The shapes of what `forward` writes."""
    batch, height, width, heads, _ = query.shape
    return (*query.shape[:-1], value.shape[-1]), (batch, height, width * heads)


def forward(query, key, value, row_table, column_table, outputs, log_sums, window):
    """Attends from each pixel to its window.

    Args:
        query: float32 array `(B, H, W, N, D)`.
        key: float32 array `(B, H', W', N, D)`.
        value: float32 array `(B, H', W', N, E)`.
        row_table: float32 array `(rows, R)`, for the first R channels of the query.
        column_table: float32 array `(columns, D - R)`, for the others.
        outputs: float32 array `(B, H, W, N, E)` to write the averages to.
        log_sums: float32 array `(B, H, W * N)` to write to what `backward` needs of the scores.
        window: Three pairs, for height and width: how many keys a window has, their distance, and
            how far the first lies before the query.
    """
    outputs.fill(0)
    maps = query, key, value, outputs, log_sums
    tables = row_table, column_table

    def attend(image, start, end):
        loops().forward_band(*(x[image] for x in maps), tables, window, start, end)

    for wave in _waves(query, window):
        run(attend, wave)


def backward_shapes(query, key, value, row_table, column_table, log_sums, upstream):
    """The shapes of what `backward` writes."""
    return [x.shape for x in (query, key, value, row_table, column_table)]


def backward(query, key, value, row_table, column_table, log_sums, upstream, *gradients, window):
    """Writes the gradients of the first five arguments of `forward` to five arrays."""
    *to_maps, to_row_table, to_column_table = gradients
    for gradient in gradients:
        gradient.fill(0)
    maps = query, key, value, log_sums, upstream, *to_maps
    tables = row_table, column_table

    def differentiate(image, start, end):
        parts = tuple(np.zeros_like(table) for table in tables)
        loops().backward_band(*(x[image] for x in maps), tables, parts, window, start, end)
        return parts

    for wave in _waves(query, window):
        for to_rows, to_columns in run(differentiate, wave):
            to_row_table += to_rows
            to_column_table += to_columns


def _waves(query, window):
    """Bands `(image, first row, end)` in two groups; the keys of a group's bands never overlap."""
    batch, height = query.shape[:2]
    (rows, _), (step, _), _ = window
    size = max(BAND, (rows - 1) * step)
    return [
        [
            (image, start, min(start + size, height))
            for start in range(offset, height, 2 * size)
            for image in range(batch)
        ]
        for offset in (0, size)
    ]
