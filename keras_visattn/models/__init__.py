"""Models: functions that stack layers into a keras.Model."""

from keras_visattn.models.blocks import pyramid as pyramid
from keras_visattn.models.greedy_decoder import GreedyDecoder as GreedyDecoder
from keras_visattn.models.inverse_square_root_decay import (
    InverseSquareRootDecay as InverseSquareRootDecay,
)
from keras_visattn.models.mnasnet import MnasNet as MnasNet
from keras_visattn.models.resnet import ResNet as ResNet
from keras_visattn.models.retinanet import RetinaNet as RetinaNet
from keras_visattn.models.retinanet_losses import FocalLoss as FocalLoss
from keras_visattn.models.retinanet_losses import SmoothL1Loss as SmoothL1Loss
from keras_visattn.models.transformer import Transformer as Transformer
from keras_visattn.models.wide_resnet import WideResNet as WideResNet
