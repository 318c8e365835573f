"""What a user writes, right and wrong: mypy reads it, nothing runs it.

It must report each line that is marked, with that code, and no other: an unused mark is an error.
"""

# mypy: disallow-subclassing-any, disallow-untyped-calls, disallow-untyped-defs, warn-return-any

import keras
import numpy as np

from keras_visattn import complexity, layers, models, ops, surgery, visualize, weights
from keras_visattn.typing import Padding, Tensor

x = np.ones((2, 6, 5, 16), "float32")
padding: Padding = "valid"


class Block(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    def __init__(self, filters: int) -> None:
        super().__init__()
        self.attention = layers.LocalSelfAttention2D(filters, padding=padding, name="attention")
        self.gate = layers.CBAM(pooling=["avg", "lse"], data_format="channels_last")

    def call(self, inputs: Tensor) -> Tensor:
        return self.gate(self.attention(inputs))


layers.AugmentedConv2D(64, (3, 5), position=None, kernel_initializer=keras.initializers.HeNormal())
layers.SpatialAttention(kernel_regularizer="l2", bias_constraint=None, identity_start=True)
position = layers.RelativePositionEmbedding2D(8, extrapolation="clip", dtype="float32")
layers.MultiHeadAttention(4, 8, position_embedding=position, bias_initializer=lambda *_: 0)
outputs, scores = layers.BAM()(x, return_attention_scores=True)
tables = ops.resize_table(np.ones((5, 4)), 7) @ np.ones((4, 2))
ops.anchor_boxes((64, 96), levels=[3, 4], scales=np.ones(2).tolist()).shape[0]
model = models.ResNet(18, "cbam", input_shape=(None, None, 3), identity_start=True)
model.compile("adam")
gigaflops = complexity.profile(model, (224, 224, 3)).flops / 1e9
gated = surgery.insert_after(model, keras.layers.MaxPooling2D, layers.GALA())
surgery.replace(model, surgery.Last(2), lambda old: [keras.layers.Conv2D(old.filters, 3)])
paths = [change.path.upper() for change in surgery.report(model, gated, (32, 32, 3)).changes]
heads = [np.mean(maps["keys"]) for maps in visualize.attention_maps(model, x).values()]
visualize.show(x, {"cam": visualize.grad_cam(model, x, class_index=[1, 2])}).savefig("cam.png")
weights.load_checkpoint(model, "resnet18.safetensors", skip="fc.*")

layers.LocalSelfAttention2D("64")  # type: ignore[arg-type]
layers.LocalSelfAttention2D(64, kernel_size=(3, 3, 3))  # type: ignore[arg-type]
layers.LocalSelfAttention2D(64, kernal_size=3)  # type: ignore[call-arg]
layers.LocalSelfAttention2D(64, padding="full")  # type: ignore[arg-type]
layers.LocalSelfAttention2D(64, position="sinusoidal")  # type: ignore[arg-type]
layers.AugmentedConv2D(64)  # type: ignore[call-arg]
layers.AugmentedConv2D(64, 3, bias_regularizer=0.1)  # type: ignore[arg-type]
layers.CBAM(order="both")  # type: ignore[arg-type]
layers.CBAM(pooling=("median",))  # type: ignore[arg-type]
layers.ChannelAttention(data_format="NCHW")  # type: ignore[arg-type]
layers.TokenEmbedding(100, 8, data_format="channels_last")  # type: ignore[call-arg]
layers.MultiHeadAttention(4, 8, position_embedding="relative")  # type: ignore[arg-type]
layers.TransformerEncoderBlock(4, 64).call(x, causal=True)  # type: ignore[call-arg]
ops.attention(x, x, x, implementation="flex")  # type: ignore[arg-type]
ops.local_attention_2d(x, x, x, dilation_rate=None)  # type: ignore[arg-type]
models.ResNet(attention="cbm")  # type: ignore[arg-type]
models.ResNet(input_shape=224)  # type: ignore[arg-type]
models.Transformer(dropout=0.3)  # type: ignore[call-arg]
models.GreedyDecoder(model, 1, 2)  # type: ignore[call-arg]
complexity.profile(model).table("mac")  # type: ignore[arg-type]
surgery.find(model, 3)  # type: ignore[arg-type]
surgery.add_cbam(model, where="end")  # type: ignore[arg-type]
changes = surgery.report(model, gated).change  # type: ignore[attr-defined]
visualize.grad_cam(model, x, method="gradcam")  # type: ignore[arg-type]
weights.load_checkpoint(model, path=None)  # type: ignore[arg-type]
