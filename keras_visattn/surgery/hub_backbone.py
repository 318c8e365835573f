"""A backbone of KerasHub with attention in it."""

import keras
import keras_hub

from keras_visattn.surgery.backbones import graph_config


@keras.saving.register_keras_serializable(package="keras_visattn")
class HubBackbone(keras_hub.models.FeaturePyramidBackbone):
    """Keeps the graph that surgery made of a KerasHub backbone, and the pyramid's maps in it.

    It serves where its source did: in a task model, in `RetinaNetBackbone`, in `save_to_preset`
    and `from_preset`.

    Args:
        graph: Functional model whose output is `{"outputs": ..., "levels": {...}}`, or the config
            of one.
        settings: Dictionary, the source's arguments, kept as attributes.
        dtype: As in `keras_hub.models.Backbone`.
        **kwargs: Keyword arguments of `keras_hub.models.Backbone`.
    """

    def __init__(self, graph, settings, dtype=None, **kwargs):
        if isinstance(graph, dict):
            graph = keras.saving.deserialize_keras_object(graph)
        super().__init__(inputs=graph.input, outputs=graph.output["outputs"], dtype=dtype, **kwargs)
        self.pyramid_outputs = graph.output["levels"]
        self.settings = settings
        for name, value in settings.items():
            setattr(self, name, value)

    @classmethod
    def like(cls, source, inputs, outputs, levels):
        """Makes a backbone of a graph that stands for that of another backbone."""
        graph = keras.Model(inputs, {"outputs": outputs, "levels": levels}, name=source.name)
        settings = source.get_config()
        if isinstance(source, cls):
            settings = settings["settings"]
        kept = {
            name: value
            for name, value in settings.items()
            if isinstance(value, (bool, int, float, str, list, tuple)) and not hasattr(cls, name)
        }
        for name in ("name", "trainable"):
            kept.pop(name, None)
        return cls(graph, kept, dtype=source.dtype_policy, name=source.name)

    def get_config(self):
        outputs = {"outputs": self.output, "levels": dict(self.pyramid_outputs)}
        return {
            **super().get_config(),
            "graph": graph_config(self, outputs),
            "settings": dict(self.settings),
        }
