"""Window attention on the CPU, NumPy arrays in and out: bands of rows, side by side."""

import functools

import numpy as np

from keras_visattn.kernels.loops import find
from keras_visattn.kernels.threads import run

BAND = 16  # rows, at least


loops = functools.partial(find, "window_loops")


def forward_shapes(query, key, value, row_table, column_table, *, window):
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


def backward_shapes(*arguments, window):
    """The shapes of what `backward` writes."""
    return [x.shape for x in arguments[:5]]


def backward(*arguments, window):
    """Writes the gradients of the first five arguments of `forward`.

    Args:
        *arguments: The seven of `forward`, the gradient of the averages; then an array for each of
            the five gradients.
        window: As of `forward`.
    """
    query, key, value, *tables, outputs, log_sums, upstream = arguments[:8]
    *to_maps, to_row_table, to_column_table = gradients = arguments[8:]
    for gradient in gradients:
        gradient.fill(0)
    maps = query, key, value, outputs, log_sums, upstream
    tables = tuple(tables)

    def differentiate(image, start, end):
        parts = tuple(np.zeros_like(table) for table in tables)
        read, written = (tuple(x[image] for x in group) for group in (maps, to_maps))
        loops().backward_band(read, written, tables, parts, window, start, end)
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
