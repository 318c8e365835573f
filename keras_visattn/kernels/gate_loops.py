"""Pooling a band of pixels and multiplying it by gates, in plain loops that numba compiles.

A band is an array `(P, C)`: pixels, channels. The channel gate is a line `(C,)`, the spatial gate a
column `(P,)`. The product of the band and the channel gate is computed wherever it is needed, and
always rounded alike, so that a pixel's largest product is found again. An array that nobody wants
has no pixels.
"""

import numba
import numpy as np

from keras_visattn.kernels.lines import compiled


@compiled
def pool_pixels(band, sums, largest, counts):
    """Each channel's sum, its largest value, and how often it has that."""
    sums[:] = 0
    largest[:] = -np.inf
    counts[:] = 0
    for p in range(band.shape[0]):
        line = band[p]
        for c in range(band.shape[1]):
            number, most = line[c], largest[c]
            exceeds = (number > most) | (number != number)  # NaN stays
            equals = np.float32(number == most)
            sums[c] += number
            largest[c] = number if exceeds else most
            counts[c] = np.float32(1) if exceeds else counts[c] + equals


@compiled
def pool_pixels_backward(band, largest, to_mean, to_largest, upstream, to_band):
    """Adds to the upstream gradient what the pooled values send back, a share for each pixel."""
    for p in range(band.shape[0]):
        line, up, to_line = band[p], upstream[p], to_band[p]
        for c in range(band.shape[1]):
            equals = np.float32(line[c] == largest[c])
            to_line[c] = up[c] + to_mean[c] + equals * to_largest[c]


@compiled
def pool_channels(band, gate, mean, largest):
    """Each pixel's mean and largest product of its channels and the gate."""
    for p in range(band.shape[0]):
        line = band[p]
        total = np.float32(0)
        for c in range(band.shape[1]):
            total += line[c] * gate[c]
        mean[p] = total / np.float32(band.shape[1])
        if total == total:
            largest[p] = _largest_of_numbers(line, gate)
        else:  # NaN, or the difference of infinities
            most = np.float32(-np.inf)
            for c in range(band.shape[1]):
                number = line[c] * gate[c]
                most = number if (number > most) | (number != number) else most
            largest[p] = most


@numba.njit(fastmath={"nnan", "nsz"})  # without NaN a maximum is a vector instruction
def _largest_of_numbers(line, gate):
    most = np.float32(-np.inf)
    for c in range(line.size):
        number = line[c] * gate[c]
        most = number if number > most else most
    return most


@compiled
def pool_channels_backward(band, gate, largest, to_mean, to_largest, upstream, to_band, to_gate):
    """As `pool_pixels_backward`, and adds the gradient of the gate to `to_gate`."""
    channels = np.float32(band.shape[1])
    for p in range(band.shape[0]):
        line, most = band[p], largest[p]
        count = np.float32(0)
        for c in range(band.shape[1]):
            count += np.float32(line[c] * gate[c] == most)
        share, share_of_most = to_mean[p] / channels, to_largest[p] / count
        for c in range(band.shape[1]):
            equals = np.float32(line[c] * gate[c] == most)
            to_gate[c] += (share + equals * share_of_most) * line[c]
        if to_band.shape[0] > 0:
            up, to_line = upstream[p], to_band[p]
            for c in range(band.shape[1]):
                equals = np.float32(line[c] * gate[c] == most)
                to_line[c] = up[c] + (share + equals * share_of_most) * gate[c]


@compiled
def multiply(band, gate, pixel_gate, products):
    for p in range(band.shape[0]):
        line, product, factor = band[p], products[p], pixel_gate[p]
        for c in range(band.shape[1]):
            product[c] = line[c] * gate[c] * factor


@compiled
def multiply_backward(band, gate, pixel_gate, upstream, to_band, to_gate, to_pixel_gate):
    """Writes the gradients, but adds that of the gate to `to_gate`."""
    for p in range(band.shape[0]):
        line, up, factor = band[p], upstream[p], pixel_gate[p]
        total = np.float32(0)
        for c in range(band.shape[1]):
            slope = up[c] * line[c]
            total += slope * gate[c]
            to_gate[c] += slope * factor
        to_pixel_gate[p] = total
        if to_band.shape[0] > 0:
            to_line = to_band[p]
            for c in range(band.shape[1]):
                to_line[c] = up[c] * gate[c] * factor
