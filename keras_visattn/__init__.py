"""Vision attention for Keras 3, from one source on TensorFlow, JAX and PyTorch."""

from keras_visattn import complexity as complexity
from keras_visattn import layers as layers
from keras_visattn import models as models
from keras_visattn import ops as ops

__version__ = "0.1.0"
