"""Attention within the blocks of maps in plain loops, compiled by numba for the CPU.

Blocks are laid out side by side: for each place in a block and each channel, a line of all blocks
and heads. Each step does the same for all of a line. The gradient computes the scores again.
"""

import numba
import numpy as np

from keras_visattn.kernels.lines import HIDDEN, LN_2, LOG2_E, LOWEST, compiled, power_of_2


@compiled
def forward(query, key, value, outputs, log_sums, block, first, end):
    """Attends within the blocks `first` to `end`, counted through the images of a batch."""
    queries = _lay_out(query, block, first, end, LOG2_E)
    keys, values = (
        _lay_out(key, block, first, end, np.float32(1)),
        _lay_out(value, block, first, end, np.float32(1)),
    )
    hidden = _hide(query, block, first, end)
    averages = np.zeros_like(values)
    places, _, length = queries.shape
    scores = np.empty((places, length), np.float32)
    for q in range(places):
        _logits(scores, queries[q], keys, hidden)
        largest, total = np.full(length, LOWEST), np.zeros(length, np.float32)
        for k in range(places):
            line = scores[k]
            for i in range(length):
                largest[i] = largest[i] if largest[i] > line[i] else line[i]
        for k in range(places):
            line = scores[k]
            for i in range(length):
                line[i] = power_of_2(line[i] - largest[i])
                total[i] += line[i]
        for channel in range(value.shape[4]):
            average = averages[q, channel]
            for k in range(places):
                _add_product(average, scores[k], values[k, channel])
            for i in range(length):
                average[i] /= total[i]
        log_sum = log_sums[first:end, q]
        for i in range(length):
            log_sum[i // query.shape[3], i % query.shape[3]] = largest[i] + np.log2(total[i])
    _lay_back(averages, outputs, block, first, end, np.float32(1))


@compiled
def backward(read, written, block, first, end):
    """Writes the gradients of what `forward` reads."""
    query, key, value, outputs, log_sums, upstream = read
    to_query, to_key, to_value = written
    one = np.float32(1)
    queries = _lay_out(query, block, first, end, LOG2_E)
    keys, values = _lay_out(key, block, first, end, one), _lay_out(value, block, first, end, one)
    upstreams = _lay_out(upstream, block, first, end, one)
    sums = (upstreams * _lay_out(outputs, block, first, end, one)).sum(axis=1)
    hidden = _hide(query, block, first, end)
    to_queries, to_keys = np.zeros_like(queries), np.zeros_like(keys)
    to_values = np.zeros_like(values)
    places, _, length = queries.shape
    scores, slope = np.empty((places, length), np.float32), np.empty(length, np.float32)
    for q in range(places):
        _logits(scores, queries[q], keys, hidden)
        log_sum, average = log_sums[first:end, q].copy().reshape(-1), sums[q]
        for k in range(places):
            weights = scores[k]
            slope[:] = 0
            _add_products(slope, upstreams[q], values[k])
            for i in range(length):
                weights[i] = power_of_2(weights[i] - log_sum[i])
                slope[i] = weights[i] * (slope[i] - average[i])
            for channel in range(query.shape[4]):
                _add_product(to_queries[q, channel], slope, keys[k, channel])
                _add_product(to_keys[k, channel], slope, queries[q, channel])
            for channel in range(value.shape[4]):
                _add_product(to_values[k, channel], weights, upstreams[q, channel])
    _lay_back(to_queries, to_query, block, first, end, one)
    _lay_back(to_keys, to_key, block, first, end, LN_2)
    _lay_back(to_values, to_value, block, first, end, one)


@compiled
def _logits(scores, query, keys, hidden):
    """Fills the logits of one place's queries and the keys of all places."""
    for k in range(scores.shape[0]):
        line, hide = scores[k], hidden[k]
        for i in range(line.size):
            line[i] = hide[i]
        _add_products(line, query, keys[k])


@compiled
def _add_products(sums, firsts, seconds):
    """Adds the products of two groups of lines, four at a time."""
    for c in range(0, firsts.shape[0], 4):
        a, b = firsts[c : c + 4], seconds[c : c + 4]
        a0, a1, a2, a3, b0, b1, b2, b3 = a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]
        for i in range(sums.size):
            sums[i] += a0[i] * b0[i] + a1[i] * b1[i] + a2[i] * b2[i] + a3[i] * b3[i]


@numba.njit(inline="always")
def _add_product(sums, factors, line):
    """Adds the product of two lines."""
    for i in range(sums.size):
        sums[i] += factors[i] * line[i]


@compiled
def _lay_out(maps, block, first, end, factor):
    """Lays out blocks of `(B, H, W, N, D)` as lines, `(places, D, blocks * N)`.

    Zeros are beyond the image, and in channels up to a multiple of four.
    """
    (high, wide), heads, size = block, maps.shape[3], maps.shape[4]
    lines = np.zeros((high * wide, -(-size // 4) * 4, (end - first) * heads), np.float32)
    for number in range(first, end):
        image, top, left = _corner(maps, block, number)
        for y in range(min(high, maps.shape[1] - top)):
            for x in range(min(wide, maps.shape[2] - left)):
                place = lines[y * wide + x]
                for head in range(heads):
                    for channel in range(size):
                        entry = maps[image, top + y, left + x, head, channel] * factor
                        place[channel, (number - first) * heads + head] = entry
    return lines


@compiled
def _lay_back(lines, maps, block, first, end, factor):
    """Writes lines, as `_lay_out` makes them, to the maps."""
    (high, wide), heads = block, maps.shape[3]
    for number in range(first, end):
        image, top, left = _corner(maps, block, number)
        for y in range(min(high, maps.shape[1] - top)):
            for x in range(min(wide, maps.shape[2] - left)):
                place = lines[y * wide + x]
                for head in range(heads):
                    for channel in range(maps.shape[4]):
                        entry = place[channel, (number - first) * heads + head] * factor
                        maps[image, top + y, left + x, head, channel] = entry


@compiled
def _hide(maps, block, first, end):
    """Zero where a key is a pixel, `HIDDEN` where there is none: `(places, blocks * N)`."""
    (high, wide), heads = block, maps.shape[3]
    hidden = np.zeros((high * wide, (end - first) * heads), np.float32)
    for number in range(first, end):
        _, top, left = _corner(maps, block, number)
        for place in range(high * wide):
            if top + place // wide >= maps.shape[1] or left + place % wide >= maps.shape[2]:
                hidden[place, (number - first) * heads : (number - first + 1) * heads] = HIDDEN
    return hidden


@compiled
def _corner(maps, block, number):
    """The image of a block, its first row and column."""
    rows, columns = -(-maps.shape[1] // block[0]), -(-maps.shape[2] // block[1])
    image, rest = number // (rows * columns), number % (rows * columns)
    return image, rest // columns * block[0], rest % columns * block[1]
