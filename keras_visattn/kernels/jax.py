"""JAX: XLA fuses the formulas of `ops` itself; for windows on the CPU there are loops."""

import functools
import importlib

import jax
import keras

from keras_visattn.kernels import windows
from keras_visattn.kernels.loops import NO_LOOPS

# From which length on the loops beat the formula, for heads up to which size.
LOOPS_WIN = LOOPS_WIN_WITH_TERMS = ((128, 64),)


def devices():
    """Names the devices."""
    return [str(device) for device in jax.devices()]


def not_distributed():
    """Keras spreads models over JAX's devices."""


def chosen():
    """Says for each kind of work what serves, and why."""
    loops = "loops that numba compiles"
    heads = f"{loops}, from {LOOPS_WIN[0][0]} keys on; the formula in chunks in exported programs"
    local = f"{loops}; tiles in exported programs"
    if _no_loops():
        heads = f"the formula in chunks, fused by XLA: {_no_loops()}"
        local = f"the formula in tiles, fused by XLA: {_no_loops()}"
    return {
        "attention": heads,
        "local attention": local,
        "CBAM": "the formula, fused by XLA",
    }


def fuses_attention():
    """The formula is what XLA compiles best."""
    return False


def fused_attention(query, key, value, mask, scale):
    raise NotImplementedError("XLA fuses the formula: no kernel was measured to beat it.")


def in_loops(work, *tensors, otherwise, **settings):
    """Calls the loops of a module; the third tensor gives the dtype.

    Args:
        otherwise: Function of the tensors that does the same in operations of JAX: it serves where
            the loops cannot, which shows only when JAX lowers the program (to export it),
            differentiates it twice or maps it over an axis.

    Raises:
        NotImplementedError: If the device is not the CPU, if the tensors are of float64 or empty,
            if numba is not installed, or JAX is older than its callbacks on buffers.
    """
    if (
        _no_loops()
        or _traced_for_onnx()
        or any(x.dtype == "float64" for x in tensors)
        or not all(isinstance(size, int) and size for x in tensors for size in x.shape)
    ):
        raise NotImplementedError
    call = _loops_in_programs().operation(work)
    outputs = call(*(x.astype("float32") for x in tensors), otherwise=otherwise, **settings)
    return outputs.astype(tensors[2].dtype)


def refine(inputs, channel_gate, pixel_gate):
    raise NotImplementedError("XLA fuses the formula.")


def _no_loops():
    """Why no loops serve, or None."""
    if jax.default_backend() != "cpu":
        return "the loops are for the CPU"
    if windows.loops() is None:
        return NO_LOOPS
    return "this JAX has no callbacks on buffers" if _loops_in_programs() is None else None


def _traced_for_onnx():
    """Whether jax2onnx, which knows JAX's operations only, puts its own in their place."""
    return jax.numpy.reshape.__module__.startswith("jax2onnx")


@functools.cache
def _loops_in_programs():
    try:
        return importlib.import_module("keras_visattn.kernels.jax_loops")
    except ImportError:
        return None


def compiled(function):
    """Gives the function as it is: Keras compiles the whole model."""
    return function


def fuses_operations():
    """XLA compiles all programs, and eager operations one by one."""
    return True


def traces_for_export():
    """Symbols for sizes are in exported programs only."""
    return True


def recomputed(function):
    """Gives a function whose intermediate results are computed again for the gradient."""
    return jax.checkpoint(function)


def scores_at_a_time():
    """On a CPU, what its cache holds; elsewhere, what fills the device."""
    return 2**20 if jax.default_backend() == "cpu" else 2**28


def tile_length():
    """Small tiles waste few products, and the chunk stays in the cache."""
    return 4


def inference(function, variables):
    """Gives a function of arrays as one program that leaves the variables as they are."""

    @jax.jit
    def run(values, *inputs):
        with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)):
            return function(*inputs)

    return lambda *inputs: run([x.value for x in variables], *inputs)


def gradient_at(function, variables):
    """Gives a function that differentiates a score by a tensor on the way to it.

    Args:
        function: Function of `(tap, *inputs)` that passes one tensor through `tap`, goes on with
            what that returns, and gives the score, a scalar.
        variables: List of the Keras variables that it reads.

    Returns:
        A function of the inputs that gives the tensor and its gradient.
    """

    def differentiate(*inputs):
        def score(shift):
            passed = []

            def tap(x):
                passed.append(x)
                return x + shift

            return function(tap, *inputs), passed[0]

        _, tensor = jax.eval_shape(score, 0.0)
        gradient, tensor = jax.grad(score, has_aux=True)(jax.numpy.zeros_like(tensor))
        return tensor, gradient

    return inference(differentiate, variables)
