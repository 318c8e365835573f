"""Window attention of a band of rows in plain loops, compiled by numba for the CPU.

The band is laid out as lines: a row of pixels, all heads of a pixel side by side, for one channel.
The loops run over neighbours in memory, and a key at a horizontal offset is the same line, shifted.
The scores of a block of a row are all that exists at a time; the gradient computes them again.
"""

import numba
import numpy as np

from keras_visattn.kernels.lines import HIDDEN, LN_2, LOG2_E, compiled, power_of_2

BLOCK = 256  # numbers of a line that are worked on at a time, at most
ONE = np.float32(1)


@compiled
def forward_band(query, key, value, outputs, log_sums, tables, window, start, end):
    (rows, columns), (row_step, column_step), (top, _) = window
    width, heads = query.shape[1:3]
    steps = row_step, column_step * heads
    queries, keys, values, hidden = _lay_out_band(query, key, value, window, start, end)
    averages = np.zeros((end - start, values.shape[1], width * heads), np.float32)
    for y in range(end - start):
        seen = _visible_rows(start + y, key.shape[0], rows, row_step, top)
        for begin in range(0, width * heads, BLOCK):
            size = min(BLOCK, width * heads - begin)
            scores = np.empty((rows, columns, size), np.float32)
            _logits(scores, queries[y], begin, keys[y:], tables, hidden, seen, steps)
            largest, total = np.full(size, HIDDEN), np.zeros(size, np.float32)
            for a in range(*seen):
                for b in range(columns):
                    logits = scores[a, b]
                    for i in range(size):
                        largest[i] = largest[i] if largest[i] > logits[i] else logits[i]
            for a in range(*seen):
                for b in range(columns):
                    weights = scores[a, b]
                    for i in range(size):
                        weights[i] = power_of_2(weights[i] - largest[i])
                        total[i] += weights[i]
            for channel in range(values.shape[1]):
                average = averages[y, channel, begin : begin + size]
                for a in range(*seen):
                    line = values[y + a * steps[0], channel]
                    for b in range(columns):
                        offset = begin + b * steps[1]
                        _add_product(average, scores[a, b], line[offset : offset + size])
                for i in range(size):
                    average[i] /= total[i]
            for i in range(size):
                log_sums[start + y, begin + i] = largest[i] + np.log2(total[i])
    _add_back(averages, outputs, start, 0, ONE)


@compiled
def backward_band(read, written, tables, to_tables, window, start, end):
    query, key, value, outputs, log_sums, upstream = read
    to_query, to_key, to_value = written
    (rows, columns), (row_step, column_step), (top, left) = window
    width, heads = query.shape[1:3]
    steps = row_step, column_step * heads
    queries, keys, values, hidden = _lay_out_band(query, key, value, window, start, end)
    upstreams = _lay_out(upstream, start, end - start, 0, width, ONE)
    averages = (upstreams * _lay_out(outputs, start, end - start, 0, width, ONE)).sum(axis=1)
    to_queries = np.zeros_like(queries)
    to_keys = np.zeros_like(keys)
    to_values = np.zeros_like(values)
    for y in range(end - start):
        seen = _visible_rows(start + y, key.shape[0], rows, row_step, top)
        for begin in range(0, width * heads, BLOCK):
            size = min(BLOCK, width * heads - begin)
            scores = np.empty((rows, columns, size), np.float32)
            _logits(scores, queries[y], begin, keys[y:], tables, hidden, seen, steps)
            log_sum = log_sums[start + y, begin : begin + size]
            slopes = np.zeros((rows, columns, size), np.float32)
            average = averages[y, begin : begin + size]
            for a in range(*seen):
                for b in range(columns):
                    line = values[y + a * steps[0]]
                    _add_products(slopes[a, b], upstreams[y], begin, line, begin + b * steps[1])
            to_row_terms = np.zeros((rows, size), np.float32)
            to_column_terms = np.zeros((columns, size), np.float32)
            for a in range(*seen):
                to_row = to_row_terms[a]
                for b in range(columns):
                    to_column, slope, weights = to_column_terms[b], slopes[a, b], scores[a, b]
                    for i in range(size):
                        weights[i] = power_of_2(weights[i] - log_sum[i])
                        slope[i] = weights[i] * (slope[i] - average[i])
                        to_row[i] += slope[i]
                        to_column[i] += slope[i]
            split = tables[0].shape[1]
            lines, to_lines = queries[y], to_queries[y]
            _differentiate_terms(lines, begin, tables[0], to_row_terms, to_lines, to_tables[0])
            lines, to_lines = lines[split:], to_lines[split:]
            _differentiate_terms(lines, begin, tables[1], to_column_terms, to_lines, to_tables[1])
            for a in range(*seen):
                there = y + a * steps[0]
                for b in range(columns):
                    near = slice(begin, begin + size)
                    far = slice(begin + b * steps[1], begin + b * steps[1] + size)
                    for channel in range(queries.shape[1]):
                        to_line = to_queries[y, channel, near]
                        _add_product(to_line, slopes[a, b], keys[there, channel, far])
                        to_line = to_keys[there, channel, far]
                        _add_product(to_line, slopes[a, b], queries[y, channel, near])
                    for channel in range(values.shape[1]):
                        to_line = to_values[there, channel, far]
                        _add_product(to_line, scores[a, b], upstreams[y, channel, near])
    for to_table in to_tables:
        to_table *= LN_2
    _add_back(to_queries, to_query, start, 0, ONE)
    _add_back(to_keys, to_key, start - top, left, LN_2)
    _add_back(to_values, to_value, start - top, left, ONE)


@compiled
def _logits(logits, queries, begin, keys, tables, hidden, seen, steps):
    """Fills the logits `(rows, columns, size)` of a block of a row of queries, the seen rows."""
    rows, columns, size = logits.shape
    row_terms = np.empty((rows, size), np.float32)
    column_terms = np.empty((columns, size), np.float32)
    _terms(queries, begin, tables[0], row_terms)
    _terms(queries[tables[0].shape[1] :], begin, tables[1], column_terms)
    for a in range(*seen):
        for b in range(columns):
            line, row_term, column_term = logits[a, b], row_terms[a], column_terms[b]
            hide = hidden[b, begin : begin + size]
            for i in range(size):
                line[i] = row_term[i] + column_term[i] + hide[i]
            _add_products(line, queries, begin, keys[a * steps[0]], begin + b * steps[1])


@compiled
def _lay_out_band(query, key, value, window, start, end):
    """Lays out a band of queries, the keys and values that their windows touch, what is hidden."""
    (rows, columns), (row_step, column_step), (top, left) = window
    width, heads = query.shape[1:3]
    span, length = end - start + (rows - 1) * row_step, width + (columns - 1) * column_step
    return (
        _lay_out(query, start, end - start, 0, width, LOG2_E),
        _lay_out(key, start - top, span, left, length, ONE),
        _lay_out(value, start - top, span, left, length, ONE),
        _hide_columns(width, heads, key.shape[1], columns, column_step, left),
    )


@compiled
def _lay_out(image, start, count, left, width, factor):
    """Lays out rows of `(H, W, N, D)` as lines `(count, D, width * N)`, zeros beyond the image.

    The channels are filled up to a multiple of four.
    """
    height, image_width, heads, size = image.shape
    lines = np.zeros((count, -(-size // 4) * 4, width * heads), np.float32)
    for row in range(max(0, -start), min(count, height - start)):
        for x in range(min(image_width, width - left)):
            for head in range(heads):
                for channel in range(size):
                    number = image[start + row, x, head, channel] * factor
                    lines[row, channel, (left + x) * heads + head] = number
    return lines


@compiled
def _add_back(lines, image, start, left, factor):
    """Adds lines, as `_lay_out` makes them, to the image that they were laid out from."""
    height, width, heads, size = image.shape
    for row in range(max(0, -start), min(lines.shape[0], height - start)):
        for x in range(min(width, lines.shape[2] // heads - left)):
            for head in range(heads):
                for channel in range(size):
                    number = lines[row, channel, (left + x) * heads + head] * factor
                    image[start + row, x, head, channel] += number


@compiled
def _hide_columns(width, heads, key_width, columns, step, left):
    """Zero where a key is a pixel, `HIDDEN` where there is none: `(columns, width * N)`."""
    hidden = np.zeros((columns, width * heads), np.float32)
    for b in range(columns):
        for x in range(width):
            if not 0 <= x + b * step - left < key_width:
                hidden[b, x * heads : (x + 1) * heads] = HIDDEN
    return hidden


@compiled
def _visible_rows(y, key_height, rows, step, top):
    """The first row of a window that is in the image, and the end of those that are."""
    first, end = 0, rows
    while first < rows and y + first * step - top < 0:
        first += 1
    while end > first and y + (end - 1) * step - top >= key_height:
        end -= 1
    return first, end


@compiled
def _add_products(sums, near, begin, far, offset):
    """Adds the products of two groups of lines, one from `begin`, the other from `offset` on."""
    size = sums.size
    for c in range(0, near.shape[0], 4):  # four at a time: the sums are loaded and stored less
        near_0, near_1 = near[c, begin : begin + size], near[c + 1, begin : begin + size]
        near_2, near_3 = near[c + 2, begin : begin + size], near[c + 3, begin : begin + size]
        far_0, far_1 = far[c, offset : offset + size], far[c + 1, offset : offset + size]
        far_2, far_3 = far[c + 2, offset : offset + size], far[c + 3, offset : offset + size]
        for i in range(size):
            sums[i] += (
                near_0[i] * far_0[i]
                + near_1[i] * far_1[i]
                + near_2[i] * far_2[i]
                + near_3[i] * far_3[i]
            )


@numba.njit(inline="always")
def _add_product(sums, factors, line):
    """Adds the product of two lines."""
    for i in range(sums.size):
        sums[i] += factors[i] * line[i]


@compiled
def _terms(lines, begin, table, products):
    """Products of a table's entries with the channels, a line for each entry."""
    for entry in range(table.shape[0]):
        product = products[entry]
        product[:] = 0
        for channel in range(table.shape[1]):
            factor = table[entry, channel]
            line = lines[channel, begin : begin + product.size]
            for i in range(product.size):
                product[i] += factor * line[i]


@compiled
def _differentiate_terms(lines, begin, table, upstream, to_lines, to_table):
    """Adds the gradients of `_terms`."""
    for entry in range(table.shape[0]):
        up = upstream[entry]
        for channel in range(table.shape[1]):
            factor = table[entry, channel]
            line = lines[channel, begin : begin + up.size]
            to_line = to_lines[channel, begin : begin + up.size]
            total = np.float32(0)
            for i in range(up.size):
                to_line[i] += factor * up[i]
                total += up[i] * line[i]
            to_table[entry, channel] += total
