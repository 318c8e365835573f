"""Gates that see a map through its pooled values (Hu et al., 2018; Woo et al., 2018)."""

from collections.abc import Callable
from typing import NamedTuple

import keras
from keras import ops

from keras_visattn import kernels
from keras_visattn.ops import checks

POOLINGS = ("avg", "max", "lp", "lse")
OF_THE_KERNEL = [((1, 2), ("avg", "max")), ((3,), ("avg", "max"))]  # axes, poolings of its gates


class PooledGate(NamedTuple):
    """A gate of a map: a function of its values, pooled over some axes in one way or several."""

    axes: tuple
    poolings: tuple
    function: Callable  # gives what broadcasts to the map

    def __call__(self, inputs):
        return self.function(*(pool(inputs, self.axes, name) for name in self.poolings))


def pool(inputs, axes, name):
    """Pools over axes, counted from the first.

    `"lp"` is the square root of the sum of squares, `"lse"` the logarithm of the sum of
    exponentials.
    """
    if 0 in inputs.shape:  # nothing to choose the largest from
        return ops.mean(inputs, axis=axes)
    if name == "max":
        return ops.amax(inputs, axis=axes)
    wide = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
    if name == "avg":
        pooled = ops.mean(wide, axis=axes)
    elif name == "lse":
        pooled = ops.logsumexp(wide, axis=axes)
    else:  # the root has no gradient at zero
        pooled = ops.sqrt(ops.maximum(ops.sum(ops.square(wide), axis=axes), 1e-12))
    return ops.cast(pooled, inputs.dtype)


def refine(inputs, gates, parallel=False, implementation=None):
    """Multiplies a map by its gates, one after the other.

    `y = gate(x) * x` for each: the next gate sees `y`, or the map as it came if `parallel`.

    Args:
        inputs: Tensor of four axes.
        gates: List of `PooledGate`.
        parallel: Boolean, whether all gates see the input.
        implementation: `"core"`, the formula in `keras.ops`; `"loops"`, this package's kernel for
            the backend, which refuses what it cannot do. `None` takes the kernel where it serves.

    Returns:
        The last product, and the list of the gates' values.

    Raises:
        NotImplementedError: If `"loops"` is asked for what the kernel cannot do.
    """
    checks.choice("implementation", implementation, (None, "core", "loops"))
    if implementation != "core":
        try:
            if parallel or [(gate.axes, gate.poolings) for gate in gates] != OF_THE_KERNEL:
                raise NotImplementedError("The kernel takes a channel gate, then a spatial gate.")
            return kernels.refine(inputs, *(gate.function for gate in gates))
        except NotImplementedError:
            if implementation is not None:
                raise
    outputs, values = inputs, []
    for gate in gates:
        values.append(gate(inputs if parallel else outputs))
        outputs = outputs * values[-1]
    return outputs, values
