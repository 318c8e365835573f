"""JAX: XLA fuses the formulas of `ops` itself; loops for windows on the CPU beat it."""

import functools

import jax
import jax.extend.core
import numpy as np
from jax import numpy as jnp
from jax.interpreters import ad, batching, mlir

from keras_visattn.kernels import windows


def fused_attention(query, key, value, mask, scale):
    raise NotImplementedError("XLA fuses the formula: no kernel was measured to beat it.")


def window_attention(query, key, value, row_table, column_table, window, otherwise):
    """Attends from each pixel to its window; the other arguments are those of `windows.forward`.

    Args:
        otherwise: Function of the first five arguments that does the same in operations of JAX: it
            serves where the loops cannot, which shows only when JAX lowers the program (to export
            it, or for another device), differentiates it twice or maps it over an axis.
    """
    tensors = query, key, value, row_table, column_table
    dtype = jnp.result_type(*tensors)
    if (
        jax.default_backend() != "cpu"
        or dtype == jnp.float64
        or 0 in query.shape
        or windows.loops() is None
    ):
        raise NotImplementedError
    settings = {"window": window, "otherwise": otherwise}

    @jax.custom_vjp
    def attend(*tensors):
        return _forward.bind(*tensors, **settings)[0]

    def keep(*tensors):
        outputs, log_sums = _forward.bind(*tensors, **settings)
        return outputs, (*tensors, log_sums)

    def differentiate(kept, upstream):
        return tuple(_backward.bind(*kept, upstream, **settings))

    attend.defvjp(keep, differentiate)
    return attend(*(x.astype("float32") for x in tensors)).astype(value.dtype)


def _primitive(loops, shapes, in_jax):
    """Makes an operation that loops compute in a program for this CPU.

    Args:
        loops: Function of `windows`.
        shapes: Function that gives the results' shapes from the arguments.
        in_jax: Function that gives the results by operations of JAX.
    """
    primitive = jax.extend.core.Primitive(f"keras_visattn_windows_{loops.__name__}")
    primitive.multiple_results = True

    @primitive.def_impl
    def run(*tensors, window, otherwise):
        results = [np.empty(shape, np.float32) for shape in shapes(*tensors)]
        loops(*(np.asarray(x) for x in tensors), *results, window=window)
        return [jnp.asarray(x) for x in results]

    @primitive.def_abstract_eval
    def describe(*tensors, window, otherwise):
        return [jax.core.ShapedArray(shape, np.float32) for shape in shapes(*tensors)]

    def call_back(*tensors, window, otherwise):
        from jax.experimental.buffer_callback import buffer_callback

        def fill(_, results, *tensors):
            loops(*(np.asarray(x) for x in (*tensors, *results)), window=window)

        results = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes(*tensors)]
        return buffer_callback(fill, results)(*tensors)

    def lower(context, *tensors, **settings):
        module = context.module_context
        here = module.platforms == ("cpu",) and not module.lowering_parameters.for_export
        function = functools.partial(call_back if here else in_jax, **settings)
        return mlir.lower_fun(function, multiple_results=True)(context, *tensors)

    def differentiate(tensors, tangents, **settings):
        tangents = tuple(ad.instantiate_zeros(x) for x in tangents)
        function = functools.partial(in_jax, **settings)
        return primitive.bind(*tensors, **settings), jax.jvp(function, tuple(tensors), tangents)[1]

    def vectorize(tensors, axes, **settings):
        outputs = jax.vmap(functools.partial(in_jax, **settings), axes)(*tensors)
        return outputs, [0] * len(outputs)

    mlir.register_lowering(primitive, lower)
    ad.primitive_jvps[primitive] = differentiate
    batching.primitive_batchers[primitive] = vectorize
    return primitive


def _forward_shapes(query, key, value, *tables):
    batch, height, width, heads, _ = query.shape
    return (*query.shape[:-1], value.shape[-1]), (batch, height, width * heads)


def _forward_in_jax(*tensors, window, otherwise):
    _, log_sums = _forward_shapes(*tensors)
    return [otherwise(*tensors), jnp.zeros(log_sums)]


def _backward_in_jax(*arguments, window, otherwise):
    *tensors, _, upstream = arguments
    return list(jax.vjp(otherwise, *tensors)[1](upstream))


_forward = _primitive(windows.forward, _forward_shapes, _forward_in_jax)
_backward = _primitive(
    windows.backward, lambda *arguments: [x.shape for x in arguments[:5]], _backward_in_jax
)


def compiled(function):
    """Gives the function as it is: Keras compiles the whole model."""
    return function


def recomputed(function):
    """Gives a function whose intermediate results are computed again for the gradient."""
    return jax.checkpoint(function)


def scores_at_a_time():
    """On a CPU, what its cache holds; elsewhere, what fills the device."""
    return 2**20 if jax.default_backend() == "cpu" else 2**28


def tile_length():
    """Small tiles waste few products, and the chunk stays in the cache."""
    return 4
