"""Loops for Grad-CAM and Grad-CAM++, from the papers' equations, and for the resize to an image."""

import numpy as np


def grad_cam(maps, slopes):
    """`relu(sum_k mean_ij(g_ijk) * A_ijk)` (Selvaraju et al., 2016, equations 1 and 2)."""
    batch, height, width, channels = maps.shape
    out = np.zeros((batch, height, width))
    for b in range(batch):
        for k in range(channels):
            total = 0.0
            for i in range(height):
                for j in range(width):
                    total += slopes[b, i, j, k]
            out[b] += total / (height * width) * maps[b, :, :, k]
    return np.maximum(out, 0)


def grad_cam_plus_plus(maps, slopes):
    """Equations 10 and 19 of Chattopadhay et al., 2017, for the exponential of the score."""
    batch, height, width, channels = maps.shape
    out = np.zeros((batch, height, width))
    for b in range(batch):
        for k in range(channels):
            total = maps[b, :, :, k].sum()
            weight = 0.0
            for i in range(height):
                for j in range(width):
                    g = slopes[b, i, j, k]
                    below = 2 * g**2 + total * g**3
                    if below != 0:
                        weight += g**2 / below * max(g, 0)
            out[b] += weight * maps[b, :, :, k]
    return np.maximum(out, 0)


def resized(maps, height, width):
    """Bilinear between the centres of pixels, the border held, then the largest value 1."""
    out = np.zeros((len(maps), height, width))
    for i in range(height):
        for j in range(width):
            places = []
            for index, size, length in ((i, height, maps.shape[1]), (j, width, maps.shape[2])):
                place = np.clip((index + 0.5) * length / size - 0.5, 0, length - 1)
                low = int(np.floor(place))
                places.append((low, min(low + 1, length - 1), place - low))
            (top, bottom, down), (left, right, across) = places
            upper = maps[:, top, left] * (1 - across) + maps[:, top, right] * across
            lower = maps[:, bottom, left] * (1 - across) + maps[:, bottom, right] * across
            out[:, i, j] = upper * (1 - down) + lower * down
    largest = out.max(axis=(1, 2), keepdims=True)
    return out / np.where(largest > 0, largest, 1)


METHODS = {"grad_cam": grad_cam, "grad_cam++": grad_cam_plus_plus}
