"""Loops for the CPU as operations of JAX, called back from compiled programs."""

import functools

import jax
import numpy as np
from jax import numpy as jnp
from jax.experimental.buffer_callback import buffer_callback
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


@functools.cache
def operation(work):
    """Makes an operation of JAX, with its gradients, of a module whose `forward` calls loops.

    Args:
        work: The module: `forward` and `backward` with `forward_shapes` and `backward_shapes`.

    Returns:
        A function of float32 tensors and of settings: those of `forward`, and `otherwise`, a
        function of the tensors that does the same in operations of JAX.
    """
    make = functools.partial(_primitive, work.__name__.rpartition(".")[2])

    def forward_in_jax(*tensors, otherwise, **settings):
        _, *kept = work.forward_shapes(*tensors, **settings)
        return [otherwise(*tensors), *(jnp.zeros(shape) for shape in kept)]

    def backward_in_jax(*arguments, otherwise, **settings):
        *tensors, _, _, upstream = arguments
        return list(jax.vjp(otherwise, *tensors)[1](upstream))

    def tangent_shapes(*arguments, **settings):
        return work.forward_shapes(*_split(arguments)[0], **settings)[:1]

    def tangent_in_jax(*arguments, otherwise, **settings):
        tensors, _, tangents = _split(arguments)
        return [jax.jvp(otherwise, tensors, tangents)[1]]

    forward = make("forward", work.forward_shapes, forward_in_jax, work.forward)
    backward = make("backward", work.backward_shapes, backward_in_jax, work.backward)
    tangent = make("tangent", tangent_shapes, tangent_in_jax)

    def differentiate_forward(tensors, tangents, **settings):
        results = forward.bind(*tensors, **settings)
        tangents = (ad.instantiate_zeros(x) for x in tangents)
        (change,) = tangent.bind(*tensors, *results, *tangents, **settings)
        return results, [change, *(jnp.zeros_like(x) for x in results[1:])]

    def transpose_tangent(upstream, *arguments, **settings):
        tensors, results, _ = _split(arguments)
        gradients = backward.bind(*tensors, *results, *upstream, **settings)
        return [None] * (len(tensors) + len(results)) + gradients

    ad.primitive_jvps[forward] = differentiate_forward
    ad.primitive_transposes[tangent] = transpose_tangent
    return lambda *tensors, **settings: forward.bind(*tensors, **settings)[0]


def _split(arguments):
    """Divides the arguments of the tangent: tensors, the two results of them, tangents."""
    count = len(arguments) // 2 - 1
    return arguments[:count], arguments[count : count + 2], arguments[count + 2 :]


def _primitive(work, name, shapes, in_jax, loops=None):
    """Makes an operation of JAX.

    Args:
        work: Name of the work that it does, a part of its own.
        name: The other part of its name.
        shapes: Function that gives the results' shapes from the arguments.
        in_jax: Function that gives the results by operations of JAX.
        loops: Function that writes them, in a program for this CPU.
    """
    primitive = Primitive(f"keras_visattn_{work}_{name}")
    primitive.multiple_results = True

    @primitive.def_impl
    def run(*tensors, otherwise, **settings):
        if loops is None:
            return in_jax(*tensors, otherwise=otherwise, **settings)
        results = [np.empty(shape, np.float32) for shape in shapes(*tensors, **settings)]
        loops(*(np.asarray(x) for x in tensors), *results, **settings)
        return [jnp.asarray(x) for x in results]

    @primitive.def_abstract_eval
    def describe(*tensors, otherwise, **settings):
        return [jax.core.ShapedArray(x, np.float32) for x in shapes(*tensors, **settings)]

    def call_back(*tensors, otherwise, **settings):
        def fill(_, results, *tensors):
            loops(*(np.asarray(x) for x in (*tensors, *results)), **settings)

        results = [jax.ShapeDtypeStruct(x, np.float32) for x in shapes(*tensors, **settings)]
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
