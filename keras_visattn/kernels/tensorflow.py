"""TensorFlow: its graphs run operation by operation unless XLA compiles them."""

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.ops import control_flow_util

from keras_visattn.kernels import windows
from keras_visattn.kernels.loops import NO_LOOPS

# From which length on the loops beat the formula, for heads up to which size.
LOOPS_WIN = (128, 16), (512, 32)
LOOPS_WIN_WITH_TERMS = ((128, 32),)


def devices():
    """Names the devices."""
    return [device.name for device in tf.config.list_logical_devices()]


def not_distributed():
    """Says why Keras does not spread a model over devices, and what does."""
    return (
        "Keras must run on JAX to distribute: on TensorFlow it ignores `keras.distribution` in "
        "silence. Make and fit the model in the scope of a `tf.distribute.MirroredStrategy`."
    )


def chosen():
    """Says for each kind of work what serves, and why."""
    loops = "loops that numba compiles, in fit, evaluate and predict"
    heads = f"{loops}, for small heads of many keys; the formula in chunks"
    local = f"{loops}; tiles in saved programs"
    if _no_loops():
        heads = f"the formula in chunks: {_no_loops()}"
        local = f"the formula in tiles, compiled by XLA in graphs: {_no_loops()}"
    return {
        "attention": heads,
        "local attention": local,
        "CBAM": "the formula, operation by operation where XLA does not compile the model",
    }


def fuses_attention():
    """TensorFlow has no fused attention."""
    return False


def fused_attention(query, key, value, mask, scale):
    raise NotImplementedError("TensorFlow has no fused attention.")


def in_loops(work, *tensors, otherwise, **settings):
    """Calls the loops of a module; the third tensor gives the dtype. Nothing asks for `otherwise`.

    The loops serve in the graphs of Keras' trainer and in those that a gradient tape watches. Any
    other graph may be meant to be saved for another process, which cannot call them.

    Raises:
        NotImplementedError: In eager calls, in other graphs or graphs that XLA compiles, where
            there is a GPU, if the tensors are of float64, or if numba is not installed.
    """
    if (
        tf.executing_eagerly()
        or traces_for_export()
        or _compiled_by_xla()
        or _no_loops()
        or any(x.dtype == "float64" for x in tensors)
    ):
        raise NotImplementedError
    query, _, value, *_ = tensors
    outputs = _operation(work, settings)(*(tf.cast(x, "float32") for x in tensors))
    return tf.cast(tf.ensure_shape(outputs, (*query.shape[:-1], value.shape[-1])), value.dtype)


def _no_loops():
    """Why no loops serve, or None."""
    if tf.config.list_physical_devices("GPU"):
        return "the loops are for the CPU"
    return NO_LOOPS if windows.loops() is None else None


def _operation(work, settings):
    """Makes an operation, with its gradient, of a module whose `forward` calls loops."""

    def run(loops, tensors, count, shapes):
        def fill(*arrays):
            results = [np.empty(shape, np.float32) for shape in shapes(*arrays, **settings)]
            loops(*arrays, *results, **settings)
            return results

        return tf.numpy_function(fill, tensors, count * ["float32"])

    @tf.custom_gradient
    def differentiate(*arguments):
        def refuse(*upstream):
            raise NotImplementedError("The loops have no second derivative.")

        *tensors, _, _, _ = arguments
        gradients = run(work.backward, arguments, len(tensors), work.backward_shapes)
        for gradient, tensor in zip(gradients, tensors, strict=True):
            gradient.set_shape(tensor.shape)
        return tuple(gradients), refuse

    @tf.custom_gradient
    def attend(*tensors):
        outputs, log_sums = run(work.forward, tensors, 2, work.forward_shapes)

        def gradient(upstream):
            return differentiate(*tensors, outputs, log_sums, upstream)

        return outputs, gradient

    return attend


def refine(inputs, channel_gate, pixel_gate):
    raise NotImplementedError("TensorFlow has no fused gates.")


def compiled(function):
    """Compiles a function of tensors by XLA, and its gradient, which computes it again.

    Nothing but the tensors passes from one to the other: TensorFlow cannot hand the lists that a
    loop keeps from one compiled program to another. Eager calls would be compiled anew each time:
    they stay eager.
    """
    if tf.executing_eagerly() or traces_for_export():
        return function

    def differentiate(tensors, upstream):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
        return tape.gradient(outputs, tensors, upstream, tf.UnconnectedGradients.ZERO)

    @tf.custom_gradient
    def call(*tensors):
        def gradient(upstream):
            return _xla(differentiate)(tensors, upstream)

        return _xla(function)(*tensors), gradient

    return call


def fuses_operations():
    """Where XLA compiles the graph."""
    return _compiled_by_xla()


def traces_for_export():
    """Whether the graph is one to be saved: no tape is on, Keras' trainer and XLA are away."""
    return not (
        tf.executing_eagerly()
        or record.could_possibly_record()
        or _in_trainer()
        or _compiled_by_xla()
    )


def recomputed(function):
    """Gives a function whose intermediate results are computed again for the gradient."""
    return function if traces_for_export() else tf.recompute_grad(function)


def scores_at_a_time():
    """What a GPU holds; on a CPU, what its cache does for XLA, and more for other operations."""
    if tf.config.list_physical_devices("GPU"):
        return 2**28
    return 2**20 if _compiled_by_xla() else 2**24


def tile_length():
    """Small tiles waste few products, and the chunk stays in the cache."""
    return 4


def inference(function, variables):
    """Gives the function as it is: outside a tape TensorFlow keeps nothing for gradients."""
    return function


def gradient_at(function, variables):
    """Gives a function that differentiates a score; see the one for JAX."""

    def differentiate(*inputs):
        passed = []
        with tf.GradientTape(watch_accessed_variables=False) as tape:

            def tap(x):
                tape.watch(x)
                passed.append(x)
                return x

            score = function(tap, *inputs)
        return passed[0], tape.gradient(score, passed[0], None, tf.UnconnectedGradients.ZERO)

    return differentiate


def _in_trainer():
    """Whether Keras traces a step of fit, evaluate or predict: by the names of its functions."""
    graph = tf.compat.v1.get_default_graph()
    while graph is not None and hasattr(graph, "name"):
        if graph.name.startswith(("one_step_on_", "multi_step_on_")):
            return True
        graph = graph.outer_graph
    return False


def _compiled_by_xla():
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def _xla(function):
    return tf.function(function, jit_compile=True, autograph=False)
