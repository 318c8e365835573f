"""Gates of maps on the CPU, NumPy arrays in and out: bands of pixels, side by side.

Each function reads a map `(B, P, C)` once: images, pixels, channels, float32. A channel gate is
`(B, C)`, a pixel gate `(B, P)`. Gradients go to the arrays that come last, those of a map only if
it is not `None`. What several positions have as their largest, they share the gradient of.
"""

import functools

import numpy as np

from keras_visattn.kernels.loops import find
from keras_visattn.kernels.threads import run

BAND = 2**18  # numbers, at most
SMALLEST = 2**20  # numbers of a map, below which it takes longer to call the loops than to run them
NO_PIXELS = np.empty((0, 1), np.float32)


loops = functools.partial(find, "gate_loops")


def pool_pixels(maps, mean, largest, counts):
    """Each channel's mean and largest value, and how often it has that: three arrays `(B, C)`."""

    def pool(image, band):
        parts = np.empty((3, maps.shape[-1]), np.float32)
        loops().pool_pixels(maps[image, band], *parts)
        return parts

    parts = np.reshape(_by_bands(pool, maps), (maps.shape[0], -1, 3, maps.shape[-1]))
    sums, most, often = np.moveaxis(parts, 2, 0)
    np.divide(sums.sum(1), np.float32(maps.shape[1]), out=mean)
    np.max(most, axis=1, out=largest)
    np.sum(often, axis=1, where=most == largest[:, None], out=counts)


def pool_pixels_backward(maps, largest, counts, to_mean, to_largest, upstream, to_maps):
    """The gradient of `pool_pixels`, added to the upstream gradient of the map itself."""
    to_mean = to_mean / np.float32(maps.shape[1])
    to_largest = _divided(to_largest, counts)

    def differentiate(image, band):
        loops().pool_pixels_backward(
            maps[image, band],
            largest[image],
            to_mean[image],
            to_largest[image],
            upstream[image, band],
            to_maps[image, band],
        )

    _by_bands(differentiate, maps)


def pool_channels(maps, gates, mean, largest):
    """Each pixel's mean and largest product of its channels and the gate: two arrays `(B, P)`."""

    def pool(image, band):
        loops().pool_channels(
            maps[image, band], gates[image], mean[image, band], largest[image, band]
        )

    _by_bands(pool, maps)


def pool_channels_backward(maps, gates, largest, to_mean, to_largest, upstream, to_maps, to_gates):
    """The gradients of `pool_channels`, that of the map added to its upstream gradient."""

    def differentiate(image, band):
        to_gate = np.zeros_like(gates[image])
        loops().pool_channels_backward(
            maps[image, band],
            gates[image],
            largest[image, band],
            to_mean[image, band],
            to_largest[image, band],
            NO_PIXELS if to_maps is None else upstream[image, band],
            NO_PIXELS if to_maps is None else to_maps[image, band],
            to_gate,
        )
        return to_gate

    _sum_by_image(_by_bands(differentiate, maps), to_gates)


def multiply(maps, gates, pixel_gates, products):
    """The product of a map and both gates."""

    def fill(image, band):
        loops().multiply(
            maps[image, band], gates[image], pixel_gates[image, band], products[image, band]
        )

    _by_bands(fill, maps)


def multiply_backward(maps, gates, pixel_gates, upstream, to_maps, to_gates, to_pixel_gates):
    """The gradients of `multiply`."""

    def differentiate(image, band):
        to_gate = np.zeros_like(gates[image])
        loops().multiply_backward(
            maps[image, band],
            gates[image],
            pixel_gates[image, band],
            upstream[image, band],
            NO_PIXELS if to_maps is None else to_maps[image, band],
            to_gate,
            to_pixel_gates[image, band],
        )
        return to_gate

    _sum_by_image(_by_bands(differentiate, maps), to_gates)


def _by_bands(function, maps):
    """Calls a function of an image and a slice of its pixels, as many slices for each image."""
    batch, pixels, channels = maps.shape
    size = min(max(1, BAND // channels), 1024)  # sums of more would lose digits
    jobs = [
        (image, slice(start, start + size))
        for image in range(batch)
        for start in range(0, pixels, size)
    ]
    return run(function, jobs)


def _sum_by_image(parts, sums):
    np.sum(np.reshape(parts, (sums.shape[0], -1, sums.shape[1])), axis=1, out=sums)


def _divided(gradients, counts):
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN, whose count is 0, stays NaN
        return gradients / counts
