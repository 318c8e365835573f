"""Window attention on the CPU, NumPy arrays in and out: bands of rows, side by side."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from keras_visattn.kernels.window_loops import backward_band, forward_band

BAND = 16  # rows, at least


def forward(query, key, value, row_table, column_table, window, threads):
    """Attends from each pixel to its window.

    Args:
        query: float32 array `(B, H, W, N, D)`.
        key: float32 array `(B, H', W', N, D)`.
        value: float32 array `(B, H', W', N, E)`.
        row_table: float32 array `(rows, R)`, for the first R channels of the query.
        column_table: float32 array `(columns, D - R)`, for the others.
        window: Three pairs, for height and width: how many keys a window has, their distance, and
            how far the first lies before the query.
        threads: Integer, how many bands are worked on at once.

    Returns:
        Array `(B, H, W, N, E)`, and what `backward` needs of the scores.
    """
    outputs = np.zeros((*query.shape[:-1], value.shape[-1]), np.float32)
    log_sums = np.empty((*query.shape[:2], query.shape[2] * query.shape[3]), np.float32)
    maps = query, key, value, outputs, log_sums
    tables = row_table, column_table

    def attend(image, start, end):
        forward_band(*(x[image] for x in maps), tables, window, start, end)

    for wave in _waves(query, window):
        _run(attend, wave, threads)
    return outputs, log_sums


def backward(query, key, value, row_table, column_table, log_sums, upstream, window, threads):
    """Gives the gradients of the first five arguments of `forward`."""
    gradients = [np.zeros(x.shape, np.float32) for x in (query, key, value)]
    tables = row_table, column_table
    to_tables = [np.zeros_like(table) for table in tables]
    maps = query, key, value, log_sums, upstream, *gradients

    def differentiate(image, start, end):
        parts = tuple(np.zeros_like(table) for table in tables)
        backward_band(*(x[image] for x in maps), tables, parts, window, start, end)
        return parts

    for wave in _waves(query, window):
        for parts in _run(differentiate, wave, threads):
            for total, part in zip(to_tables, parts, strict=True):
                total += part
    return *gradients, *to_tables


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


def _run(function, jobs, threads):
    if threads == 1 or len(jobs) <= 1:
        return [function(*job) for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda job: function(*job), jobs))
