"""Cuts a map into tiles of queries, each with the tile of keys that its windows touch."""

from typing import NamedTuple

from keras import ops

from keras_visattn import kernels
from keras_visattn.ops.heads import reshape
from keras_visattn.ops.windows import divide_up, known_size
from keras_visattn.typing import Tensor


class Cut(NamedTuple):
    """How one axis of a map is cut.

    `window[i, a, p]` is true where key `a` of a tile lies at place `p` of the window of query `i`.
    """

    queries: int
    keys: int
    keys_before: int  # the first query
    window: Tensor


def cut_windows(num_queries, num_keys, kernel_size, dilation_rate, padding):
    """Cuts an axis for windows round each query; the numbers are None where unknown.

    A short axis is one tile, whose keys are the axis itself: no key is copied or added. A tile is
    at least half a window long, so that no key is in many tiles.
    """
    num_queries, num_keys = known_size(num_queries), known_size(num_keys)
    centre = (kernel_size - 1) * dilation_rate // 2
    queries = max(kernels.tile_length(), centre + 1)
    if num_queries is not None:
        queries = divide_up(num_queries, max(1, round(num_queries / queries)))
    keys = queries + 2 * centre
    if num_queries is not None and (num_queries <= 16 or keys >= num_keys):
        queries, keys, keys_before = num_queries, num_keys, 0
    else:
        keys_before = centre if padding == "same" else 0
    query = ops.arange(0, queries)[:, None, None] + (centre if padding == "valid" else 0)
    key = ops.arange(0, keys)[None, :, None] - keys_before
    offset = ops.arange(0, kernel_size)[None, None, :] * dilation_rate - centre
    return Cut(queries, keys, keys_before, ops.equal(key - query, offset))


def cut_blocks(size):
    """Cuts an axis into blocks: the window of each query is its block."""
    return Cut(size, size, 0, ops.tile(ops.eye(size, dtype="bool")[None], (size, 1, 1)))


def count_tiles(length, cut):
    return divide_up(length, cut.queries)


def query_tiles(x, axis, count, cut):
    """Splits an axis into `(count, queries)`, zeros beyond the map."""
    return _tiles(x, axis, count, cut.queries, 0, cut.queries)


def key_tiles(x, axis, count, cut):
    """Splits an axis into `(count, keys)`, which overlap, zeros beyond the map."""
    return _tiles(x, axis, count, cut.queries, cut.keys_before, cut.keys)


def visible(num_keys, count, cut):
    """Says which keys of its tile each query sees, `(count, queries, keys)`.

    These are the keys in its window and inside the map.
    """
    inside = key_tiles(ops.ones((num_keys,), "int32"), 0, count, cut)
    return ops.logical_and(ops.any(cut.window, axis=-1)[None], ops.cast(inside, "bool")[:, None, :])


def _tiles(x, axis, count, step, before, size):
    """Splits an axis into `(count, size)`: slices that begin every `step`, the first at `-before`.

    The axis is cut into pieces of one step; a slice is a run of pieces, so that only whole pieces
    are moved, forward and in the gradient.
    """
    pieces = divide_up(size, step)
    length = ops.shape(x)[axis]
    after = (count + pieces - 1) * step - before - length
    shape = [*ops.shape(x)[:axis], count + pieces - 1, step, *ops.shape(x)[axis + 1 :]]
    widths = [(0, 0)] * len(x.shape)
    widths[axis] = (before, after)
    x = reshape(ops.pad(x, widths), shape)
    if pieces > 1:
        skip = (slice(None),) * axis
        x = ops.concatenate(
            [x[(*skip, slice(piece, count + piece))] for piece in range(pieces)], axis=axis + 1
        )
        x = x[(*skip, slice(None), slice(size))]
    return x
