"""Makes the layers, inputs and weights of the cases."""

import inspect

import keras
import numpy as np

import keras_visattn

PUBLIC_LAYERS = {
    name: value
    for name, value in vars(keras_visattn.layers).items()
    if inspect.isclass(value) and issubclass(value, keras.layers.Layer)
}


def make(case, without=(), **changes):
    arguments = {k: v for k, v in {**case.arguments, **changes}.items() if k not in without}
    if "position_embedding" in arguments:
        arguments["position_embedding"] = keras_visattn.layers.RelativePositionEmbedding2D(
            **arguments["position_embedding"]
        )
    return PUBLIC_LAYERS[case.layer](**arguments)


def inputs_of(case, batch=None, seed=1):
    draw = np.random.default_rng(seed)
    shapes = [shape if batch is None else (batch, *shape[1:]) for shape in case.shapes]
    if case.layer == "TokenEmbedding":
        tokens = draw.integers(case.arguments["input_dim"], size=shapes[0])
        return [tokens.astype("float32")]
    return [draw.normal(size=shape).astype("float32") for shape in shapes]


def randomize(layer, seed=2):
    """Gives every weight random values, so that nothing hides behind an initial zero or one.

    Biases are positive, so that a ReLU of one unit lets something through.
    """
    draw = np.random.default_rng(seed)
    for variable in layer.weights:
        if "seed" in variable.path.rsplit("/", 1)[-1]:
            continue
        values = draw.normal(size=variable.shape, scale=0.5).astype("float32")
        positive = "variance" in variable.path or variable.path.endswith("bias")
        variable.assign(np.abs(values) + 0.5 if positive else values)


def numpy(tree):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, tree)


def answer(layer, *inputs, **arguments):
    """Calls a layer or a model, and gives arrays; as one program under JAX.

    Operation by operation, JAX compiles each on its own, which takes several times as long.
    """
    if keras.backend.backend() != "jax":
        return numpy(layer(*inputs, **arguments))
    import jax

    if not layer.built:
        layer.build(*(x.shape for x in inputs))

    values = [variable.value for variable in layer.variables]
    return numpy(jax.jit(stateless(layer, **arguments))(values, inputs))


def stateless(layer, **arguments):
    """A layer's call, input casting and all, as a function of its variables' values and inputs."""

    def call(values, inputs):
        with keras.StatelessScope(state_mapping=zip(layer.variables, values, strict=True)):
            return layer(*inputs, **arguments)

    return call


def signature_of(cls):
    """Every named argument of a layer, those of its abstract bases included."""
    arguments = {}
    for base in cls.__mro__:
        if base.__module__.startswith("keras_visattn"):
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                if name != "self" and parameter.kind != parameter.VAR_KEYWORD:
                    arguments.setdefault(name, parameter.default)
    return arguments


def accepts_scores(layer):
    return "return_attention_scores" in inspect.signature(layer.call).parameters
