"""The loops for windows as operations of JAX, called back from compiled programs."""

import functools

import jax
import numpy as np
from jax import numpy as jnp
from jax.experimental.buffer_callback import buffer_callback
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from keras_visattn.kernels import windows


def window_attention(*tensors, window, otherwise):
    """Attends from each pixel to its window; arguments as of `jax.window_attention`, float32."""
    return _forward.bind(*tensors, window=window, otherwise=otherwise)[0]


def _primitive(name, shapes, in_jax, loops=None):
    """Makes an operation of JAX.

    Args:
        name: Its name.
        shapes: Function that gives the results' shapes from the arguments.
        in_jax: Function that gives the results by operations of JAX.
        loops: Function of `windows` that gives them in a program for this CPU.
    """
    primitive = Primitive(f"keras_visattn_windows_{name}")
    primitive.multiple_results = True

    @primitive.def_impl
    def run(*tensors, **settings):
        if loops is None:
            return in_jax(*tensors, **settings)
        results = [np.empty(shape, np.float32) for shape in shapes(*tensors)]
        loops(*(np.asarray(x) for x in tensors), *results, window=settings["window"])
        return [jnp.asarray(x) for x in results]

    @primitive.def_abstract_eval
    def describe(*tensors, **settings):
        return [jax.core.ShapedArray(shape, np.float32) for shape in shapes(*tensors)]

    def call_back(*tensors, window, otherwise):
        def fill(_, results, *tensors):
            loops(*(np.asarray(x) for x in (*tensors, *results)), window=window)

        results = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes(*tensors)]
        return buffer_callback(fill, results)(*tensors)

    def lower(context, *tensors, **settings):
        module = context.module_context
        exports = getattr(module.lowering_parameters, "for_export", True)
        # XLA cannot cut a callback: of a map on several devices each would compute the whole.
        several = getattr(module.axis_context, "num_devices", 1) not in (None, 1)
        here = loops is not None and module.platforms == ("cpu",) and not exports and not several
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


def _forward_in_jax(*tensors, window, otherwise):
    _, log_sums = windows.forward_shapes(*tensors)
    return [otherwise(*tensors), jnp.zeros(log_sums)]


def _backward_in_jax(*arguments, window, otherwise):
    *tensors, _, upstream = arguments
    return list(jax.vjp(otherwise, *tensors)[1](upstream))


def _tangent_in_jax(*arguments, window, otherwise):
    tensors, tangents = arguments[:5], arguments[6:]
    return [jax.jvp(otherwise, tensors, tangents)[1]]


_forward = _primitive("forward", windows.forward_shapes, _forward_in_jax, windows.forward)
_backward = _primitive("backward", windows.backward_shapes, _backward_in_jax, windows.backward)
_tangent = _primitive(
    "tangent", lambda *arguments: windows.forward_shapes(*arguments[:5])[:1], _tangent_in_jax
)


def _differentiate_forward(tensors, tangents, **settings):
    outputs, log_sums = _forward.bind(*tensors, **settings)
    tangents = (ad.instantiate_zeros(x) for x in tangents)
    (tangent,) = _tangent.bind(*tensors, log_sums, *tangents, **settings)
    return [outputs, log_sums], [tangent, jnp.zeros_like(log_sums)]


def _transpose_tangent(upstream, *arguments, **settings):
    tensors_and_log_sums = arguments[:6]
    gradients = _backward.bind(*tensors_and_log_sums, *upstream, **settings)
    return [None] * 6 + gradients


ad.primitive_jvps[_forward] = _differentiate_forward
ad.primitive_transposes[_tangent] = _transpose_tangent
