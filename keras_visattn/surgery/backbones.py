"""Keeps what a library's detectors and classifiers ask of a backbone: its class, its pyramid."""

import itertools

import keras


def like(model, inputs, outputs, levels, renamed):
    """Makes a functional model that serves where another one did.

    Args:
        model: Functional model that the new one stands for.
        inputs: Symbolic inputs of the new model.
        outputs: Its symbolic outputs.
        levels: Dictionary, symbolic maps of its pyramid by name, or empty.
        renamed: Dictionary from a layer's name in the old model to that of the layer which gives
            its output in the new one.
    """
    own = itertools.takewhile(lambda c: not c.__module__.startswith("keras."), type(model).__mro__)
    own = list(own)
    if any(c.__module__.startswith("keras_hub.") for c in own):
        from keras_visattn.surgery.hub_backbone import HubBackbone

        return HubBackbone.like(model, inputs, outputs, levels)
    names = getattr(model, "pyramid_level_inputs", None)
    if names:
        names = {level: renamed.get(name, name) for level, name in names.items()}
        return PyramidBackbone(inputs, outputs, names, name=model.name)
    if any({"__init__", "get_config"} & set(vars(c)) for c in own):
        return keras.Model(inputs, outputs, name=model.name)
    return type(model)(inputs, outputs, name=model.name)


def graph_config(model, outputs):
    """Serializes the graph from a model's inputs to some tensors of it."""
    return keras.saving.serialize_keras_object(keras.Model(model.input, outputs, name=model.name))


@keras.saving.register_keras_serializable(package="keras_visattn")
class PyramidBackbone(keras.Model):
    """Says which of its layers give the pyramid, as KerasCV's detectors ask.

    Args:
        inputs: Symbolic inputs.
        outputs: Symbolic outputs.
        pyramid_level_inputs: Dictionary from a level, `"P3"`, to the name of a layer.
        name: String, name of the model.
        **kwargs: Keyword arguments of `keras.Model`.
    """

    def __init__(self, inputs, outputs, pyramid_level_inputs, name=None, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, name=name, **kwargs)
        self.pyramid_level_inputs = pyramid_level_inputs

    def get_config(self):
        return {
            "name": self.name,
            "trainable": self.trainable,
            "graph": graph_config(self, self.output),
            "pyramid_level_inputs": dict(self.pyramid_level_inputs),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        graph = keras.saving.deserialize_keras_object(config.pop("graph"), custom_objects)
        return cls(graph.input, graph.output, **config)


@keras.saving.register_keras_serializable(package="keras_visattn", name="HubBackbone")
class _SavedHubBackbone:
    """Reads a saved `HubBackbone` where KerasHub is not imported yet; the class takes its place."""

    @classmethod
    def from_config(cls, config, custom_objects=None):
        from keras_visattn.surgery.hub_backbone import HubBackbone

        return HubBackbone.from_config(config)

    def get_config(self):
        return {}
