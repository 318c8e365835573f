"""Attention of heads in plain loops, compiled by numba for the CPU.

A block of queries is laid out as lines: neighbouring queries are neighbours in memory, a line for
each channel. The scores are lines too, one for each key, and those of a few keys are all that
exists at a time: the largest logit so far corrects what was summed before. The gradient computes
the scores again. Logits and their sums are powers of 2, for which the exponential is shorter.
"""

import numba
import numpy as np

from keras_visattn.kernels.lines import HIDDEN, LN_2, LOG2_E, LOWEST, compiled, power_of_2

BLOCK = 256  # length of a line: the queries that are worked on at a time, at most
KEYS = 16  # at a time, at most; a multiple of four


@compiled
def forward(query, key, value, rows, columns, outputs, log_sums, scale, heads, first, end):
    """Attends from the queries `first` to `end` of some heads; arrays `(heads, length, size)`."""
    factor, width = scale * LOG2_E, columns.shape[2]
    for head in range(*heads):
        keys, values = _lay_out_keys(key[head]), _lay_out_keys(value[head])
        count, size, value_size = keys.shape[0], keys.shape[1], values.shape[1]
        keys, values = keys.reshape(-1), values.reshape(-1)
        scores = np.empty(KEYS * BLOCK, np.float32)
        for start in range(first, end, BLOCK):
            stop = min(start + BLOCK, end)
            length = _whole(stop - start, 16)
            queries = _lay_out(query[head], start, stop, factor)
            terms = (
                _lay_out(rows[head], start, stop, factor),
                _lay_out(columns[head], start, stop, factor),
            )
            largest, total = np.full(BLOCK, LOWEST), np.zeros(BLOCK, np.float32)
            averages = np.zeros(value_size * BLOCK, np.float32)
            for begin in range(0, count, KEYS):
                many = min(KEYS, count - begin)
                real = min(many, key.shape[1] - begin)
                _begin_logits(scores, terms, width, begin, real, length)
                _add_products(scores, many, keys[begin * size :], (size, 1), queries, size, length)
                scores[real * BLOCK : many * BLOCK] = HIDDEN
                shrunk = largest.copy()
                _find_largest(scores, many, largest, length)
                for i in range(length):
                    shrunk[i] = power_of_2(shrunk[i] - largest[i])
                    total[i] *= shrunk[i]
                for channel in range(value_size):
                    average = averages[channel * BLOCK : (channel + 1) * BLOCK]
                    for i in range(length):
                        average[i] *= shrunk[i]
                for k in range(many):
                    line = scores[k * BLOCK : (k + 1) * BLOCK]
                    for i in range(length):
                        line[i] = power_of_2(line[i] - largest[i])
                        total[i] += line[i]
                factors = values[begin * value_size :]
                _add_products(averages, value_size, factors, (1, value_size), scores, many, length)
            for i in range(stop - start):
                divisor = total[i] if total[i] != 0 else np.float32(1)  # where all is hidden
                for channel in range(value.shape[2]):
                    outputs[head, start + i, channel] = averages[channel * BLOCK + i] / divisor
                log_sums[head, start + i] = largest[i] + np.log2(divisor)


@compiled
def backward(read, written, scale, heads, first, end):
    """Gradients of what `forward` reads; those of keys and values are these queries' share."""
    query, key, value, rows, columns, outputs, log_sums, upstream = read
    to_query, to_key, to_value, to_rows, to_columns = written
    factor, width = scale * LOG2_E, columns.shape[2]
    for head in range(*heads):
        keys, values = _lay_out_keys(key[head]), _lay_out_keys(value[head])
        count, size, value_size = keys.shape[0], keys.shape[1], values.shape[1]
        keys, values = keys.reshape(-1), values.reshape(-1)
        to_keys, to_values = np.zeros_like(keys), np.zeros_like(values)
        scores, slopes = np.empty(KEYS * BLOCK, np.float32), np.empty(KEYS * BLOCK, np.float32)
        for start in range(first, end, BLOCK):
            stop = min(start + BLOCK, end)
            length = _whole(stop - start, 16)
            queries = _lay_out(query[head], start, stop, factor)
            upstreams = _lay_out(upstream[head], start, stop, np.float32(1))
            terms = (
                _lay_out(rows[head], start, stop, factor),
                _lay_out(columns[head], start, stop, factor),
            )
            to_terms = np.zeros_like(terms[0]), np.zeros_like(terms[1])
            to_queries = np.zeros_like(queries)
            average, log_sum = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
            for i in range(stop - start):
                log_sum[i] = log_sums[head, start + i]
                for channel in range(value.shape[2]):
                    up = upstream[head, start + i, channel]
                    average[i] += up * outputs[head, start + i, channel]
            for begin in range(0, count, KEYS):
                many = min(KEYS, count - begin)
                real = min(many, key.shape[1] - begin)
                their_keys, their_values = keys[begin * size :], values[begin * value_size :]
                _begin_logits(scores, terms, width, begin, real, length)
                _add_products(scores, many, their_keys, (size, 1), queries, size, length)
                scores[real * BLOCK : many * BLOCK] = HIDDEN
                slopes[: many * BLOCK] = 0
                strides = value_size, 1
                _add_products(slopes, many, their_values, strides, upstreams, value_size, length)
                for k in range(many):
                    line = scores[k * BLOCK : (k + 1) * BLOCK]
                    slope = slopes[k * BLOCK : (k + 1) * BLOCK]
                    for i in range(length):
                        line[i] = power_of_2(line[i] - log_sum[i])
                        slope[i] = line[i] * (slope[i] - average[i])
                _add_to_terms(slopes, to_terms, width, begin, real, length)
                _add_products(to_queries, size, their_keys, (1, size), slopes, many, length)
                _add_sums(to_keys[begin * size :], slopes, many, queries, size, length)
                sums = to_values[begin * value_size :]
                _add_sums(sums, scores, many, upstreams, value_size, length)
            _lay_back(to_queries, to_query[head], start, stop, scale)
            _lay_back(to_terms[0], to_rows[head], start, stop, scale)
            _lay_back(to_terms[1], to_columns[head], start, stop, scale)
        for k in range(key.shape[1]):
            for channel in range(key.shape[2]):
                to_key[head, k, channel] = to_keys[k * size + channel] * LN_2
            for channel in range(value.shape[2]):
                to_value[head, k, channel] = to_values[k * value_size + channel]


@compiled
def _whole(number, step):
    """The next multiple of a step."""
    return -(-number // step) * step


@compiled
def _lay_out(sequence, start, stop, factor):
    """Lays out a part of a sequence `(T, D)` as lines, zeros up to a multiple of four lines."""
    lines = np.zeros(_whole(sequence.shape[1], 4) * BLOCK, np.float32)
    for i in range(stop - start):
        for channel in range(sequence.shape[1]):
            lines[channel * BLOCK + i] = sequence[start + i, channel] * factor
    return lines


@compiled
def _lay_back(lines, sequence, start, stop, factor):
    """Writes lines, as `_lay_out` makes them, to the part of the sequence."""
    for i in range(stop - start):
        for channel in range(sequence.shape[1]):
            sequence[start + i, channel] = lines[channel * BLOCK + i] * factor


@compiled
def _lay_out_keys(sequence):
    """Fills up a sequence `(S, D)` with zeros to multiples of four."""
    filled = np.zeros((_whole(sequence.shape[0], 4), _whole(sequence.shape[1], 4)), np.float32)
    filled[: sequence.shape[0], : sequence.shape[1]] = sequence
    return filled


@compiled
def _begin_logits(logits, terms, width, begin, count, length):
    """Begins the logits of keys by the terms of their rows and columns, or by zero."""
    if width == 0:
        logits[:] = 0
        return
    for k in range(count):
        line = logits[k * BLOCK : (k + 1) * BLOCK]
        row, column = (begin + k) // width, (begin + k) % width
        row_terms = terms[0][row * BLOCK : (row + 1) * BLOCK]
        column_terms = terms[1][column * BLOCK : (column + 1) * BLOCK]
        for i in range(length):
            line[i] = row_terms[i] + column_terms[i]


@compiled
def _add_to_terms(slopes, to_terms, width, begin, count, length):
    """Adds the gradients of `_begin_logits`."""
    if width == 0:
        return
    for k in range(count):
        slope = slopes[k * BLOCK : (k + 1) * BLOCK]
        row, column = (begin + k) // width, (begin + k) % width
        to_row = to_terms[0][row * BLOCK : (row + 1) * BLOCK]
        to_column = to_terms[1][column * BLOCK : (column + 1) * BLOCK]
        for i in range(length):
            to_row[i] += slope[i]
            to_column[i] += slope[i]


@compiled
def _find_largest(scores, count, largest, length):
    """Raises a line to the largest of several lines."""
    for k in range(0, count, 4):
        lines = scores[k * BLOCK : (k + 4) * BLOCK]
        for i in range(length):
            a, b = lines[i], lines[BLOCK + i]
            c, d = lines[2 * BLOCK + i], lines[3 * BLOCK + i]
            a = a if a > b else b
            c = c if c > d else d
            a = a if a > c else c
            largest[i] = largest[i] if largest[i] > a else a


@compiled
def _add_products(sums, count, factors, strides, lines, channels, length):
    """Adds lines times factors: `sums[j] += sum_c factors[j, c] * lines[c]`.

    Four sums and four lines at a time: what is loaded and stored serves sixteen products. The
    distances of lines are known to the compiler, or it would not see that they do not overlap.
    """
    down, right = strides
    for j in range(0, count, 4):
        out = sums[j * BLOCK : (j + 4) * BLOCK]
        for c in range(0, channels, 4):
            line = lines[c * BLOCK : (c + 4) * BLOCK]
            f = factors[j * down + c * right :]
            f00, f01, f02, f03 = f[0], f[right], f[2 * right], f[3 * right]
            f = f[down:]
            f10, f11, f12, f13 = f[0], f[right], f[2 * right], f[3 * right]
            f = f[down:]
            f20, f21, f22, f23 = f[0], f[right], f[2 * right], f[3 * right]
            f = f[down:]
            f30, f31, f32, f33 = f[0], f[right], f[2 * right], f[3 * right]
            for i in range(length):
                x0, x1 = line[i], line[BLOCK + i]
                x2, x3 = line[2 * BLOCK + i], line[3 * BLOCK + i]
                out[i] += x0 * f00 + x1 * f01 + x2 * f02 + x3 * f03
                out[BLOCK + i] += x0 * f10 + x1 * f11 + x2 * f12 + x3 * f13
                out[2 * BLOCK + i] += x0 * f20 + x1 * f21 + x2 * f22 + x3 * f23
                out[3 * BLOCK + i] += x0 * f30 + x1 * f31 + x2 * f32 + x3 * f33


@compiled
def _add_sums(sums, firsts, count, seconds, channels, length):
    """Adds the products of lines, summed: `sums[j, c] += sum_i firsts[j, i] * seconds[c, i]`."""
    for j in range(0, count, 4):
        x = firsts[j * BLOCK : (j + 4) * BLOCK]
        for c in range(0, channels, 4):
            y = seconds[c * BLOCK : (c + 4) * BLOCK]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0)
            s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = np.float32(0)
            for i in range(length):
                x0, x1, x2, x3 = x[i], x[BLOCK + i], x[2 * BLOCK + i], x[3 * BLOCK + i]
                y0, y1, y2, y3 = y[i], y[BLOCK + i], y[2 * BLOCK + i], y[3 * BLOCK + i]
                s00, s01, s02, s03 = s00 + x0 * y0, s01 + x0 * y1, s02 + x0 * y2, s03 + x0 * y3
                s10, s11, s12, s13 = s10 + x1 * y0, s11 + x1 * y1, s12 + x1 * y2, s13 + x1 * y3
                s20, s21, s22, s23 = s20 + x2 * y0, s21 + x2 * y1, s22 + x2 * y2, s23 + x2 * y3
                s30, s31, s32, s33 = s30 + x3 * y0, s31 + x3 * y1, s32 + x3 * y2, s33 + x3 * y3
            _add_four(sums[j * channels + c :], s00, s01, s02, s03)
            _add_four(sums[(j + 1) * channels + c :], s10, s11, s12, s13)
            _add_four(sums[(j + 2) * channels + c :], s20, s21, s22, s23)
            _add_four(sums[(j + 3) * channels + c :], s30, s31, s32, s33)


@numba.njit(inline="always")
def _add_four(sums, a, b, c, d):
    sums[0] += a
    sums[1] += b
    sums[2] += c
    sums[3] += d
