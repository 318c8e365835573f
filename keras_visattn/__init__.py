"""Vision attention for Keras 3, from one source on TensorFlow, JAX and PyTorch."""

from keras_visattn import complexity as complexity
from keras_visattn import distribution as distribution
from keras_visattn import layers as layers
from keras_visattn import models as models
from keras_visattn import ops as ops
from keras_visattn import projections as projections
from keras_visattn import surgery as surgery
from keras_visattn import visualize as visualize
from keras_visattn import weights as weights

__version__ = "0.1.0"
