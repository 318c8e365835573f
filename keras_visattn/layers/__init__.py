"""Layers: objects that own weights."""

from keras_visattn.layers.augmented_conv2d import AugmentedConv2D as AugmentedConv2D
from keras_visattn.layers.bam import BAM as BAM
from keras_visattn.layers.cbam import CBAM as CBAM
from keras_visattn.layers.channel_attention import ChannelAttention as ChannelAttention
from keras_visattn.layers.gala import GALA as GALA
from keras_visattn.layers.gather_excite import GatherExcite as GatherExcite
from keras_visattn.layers.local_attention_stem2d import (
    LocalAttentionStem2D as LocalAttentionStem2D,
)
from keras_visattn.layers.local_self_attention2d import (
    LocalSelfAttention2D as LocalSelfAttention2D,
)
from keras_visattn.layers.multi_head_attention import MultiHeadAttention as MultiHeadAttention
from keras_visattn.layers.position_encoding import CoordinateChannels2D as CoordinateChannels2D
from keras_visattn.layers.position_encoding import (
    SinusoidalPositionEncoding as SinusoidalPositionEncoding,
)
from keras_visattn.layers.relative_position_embedding2d import (
    RelativePositionEmbedding2D as RelativePositionEmbedding2D,
)
from keras_visattn.layers.spatial_attention import SpatialAttention as SpatialAttention
from keras_visattn.layers.squeeze_excite import SqueezeExcite as SqueezeExcite
from keras_visattn.layers.token_embedding import TokenEmbedding as TokenEmbedding
from keras_visattn.layers.transformer import TransformerDecoderBlock as TransformerDecoderBlock
from keras_visattn.layers.transformer import TransformerEncoderBlock as TransformerEncoderBlock
