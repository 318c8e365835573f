"""Work in chunks, so that what a chunk makes on the way is all that exists at a time."""

import math

from keras import ops

from keras_visattn import kernels
from keras_visattn.ops.windows import divide_up, known_size


def in_chunks(function, tensors, shared, cost):
    """Applies a function to the leading axis of tensors, chunk by chunk if need be.

    A chunk's intermediate results are computed again for the gradient, not kept.

    Args:
        function: Function of `(*tensors, *shared)` that gives a tensor with the same leading axis,
            each entry of which depends on the same entry of `tensors` alone.
        tensors: Tensors of one leading axis. Where its length is unknown in a program to be
            exported, there is one chunk.
        shared: Tensors that every chunk sees whole.
        cost: Integer, the scores that an entry of the leading axis makes, or `None` if unknown.

    Returns:
        Tensor, as `function(*tensors, *shared)`.
    """
    count = tensors[0].shape[0]
    limit = kernels.scores_at_a_time()
    if not isinstance(count, int):
        whole = kernels.traces_for_export()
    else:
        whole = count == 0 or (cost is not None and count * cost <= limit)
    if whole:
        return function(*tensors, *shared)
    size = 1 if cost is None else max(1, limit // cost)
    count = ops.shape(tensors[0])[0]
    chunks = divide_up(count, size)
    if size > 1:
        size = divide_up(count, chunks)  # of one size, if possible
    pieces = [_cut(x, chunks, size) for x in tensors]
    outputs = ops.map(lambda piece: kernels.recomputed(function)(*piece, *shared), pieces)
    outputs = ops.reshape(outputs, (-1, *ops.shape(outputs)[2:]))
    return outputs[:count]


def cost_of(*sizes):
    """The product of sizes, `None` if one is unknown."""
    sizes = [known_size(size) for size in sizes]
    return None if None in sizes else math.prod(sizes)


def _cut(x, chunks, size):
    """Cuts the leading axis into `(chunks, size)`, zeros at the end."""
    shape = ops.shape(x)
    x = ops.pad(x, [(0, chunks * size - shape[0])] + [(0, 0)] * (len(shape) - 1))
    return ops.reshape(x, (chunks, size, *shape[1:]))
