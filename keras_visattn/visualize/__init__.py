"""What a model looks at: Grad-CAM, attention maps, and pictures of both."""

from keras_visattn.visualize.attention_maps import attention_maps as attention_maps
from keras_visattn.visualize.drawing import show as show
from keras_visattn.visualize.grad_cam import grad_cam as grad_cam
