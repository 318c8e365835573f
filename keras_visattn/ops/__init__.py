"""Pure functions of tensors, written with `keras.ops`.

The alphabet of shapes: B batch, H W height and width of a map, C channels, N heads, D and E head
sizes of keys and of values, T and S positions of queries and of keys, K window; A anchors, M
objects.
"""

from keras_visattn.ops.attention import attention as attention
from keras_visattn.ops.boxes import anchor_boxes as anchor_boxes
from keras_visattn.ops.boxes import detections as detections
from keras_visattn.ops.boxes import match_anchors as match_anchors
from keras_visattn.ops.local_attention import block_attention_2d as block_attention_2d
from keras_visattn.ops.local_attention import local_attention_2d as local_attention_2d
from keras_visattn.ops.position_encoding import coordinates_2d as coordinates_2d
from keras_visattn.ops.position_encoding import sinusoidal_encoding as sinusoidal_encoding
from keras_visattn.ops.position_encoding import sinusoidal_encoding_2d as sinusoidal_encoding_2d
from keras_visattn.ops.relative_position import fold_logits as fold_logits
from keras_visattn.ops.relative_position import relative_logits_2d as relative_logits_2d
from keras_visattn.ops.relative_position import resize_table as resize_table
