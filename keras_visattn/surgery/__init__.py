"""Puts attention into models that exist."""

from keras_visattn.surgery.editing import insert_after as insert_after
from keras_visattn.surgery.editing import replace as replace
from keras_visattn.surgery.matching import Last as Last
from keras_visattn.surgery.matching import find as find
from keras_visattn.surgery.matching import is_spatial_convolution as is_spatial_convolution
from keras_visattn.surgery.recipes import add_cbam as add_cbam
from keras_visattn.surgery.recipes import augment_convolutions as augment_convolutions
from keras_visattn.surgery.recipes import replace_convolutions as replace_convolutions
from keras_visattn.surgery.reporting import report as report
