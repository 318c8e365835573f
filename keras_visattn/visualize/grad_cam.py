"""Where a class shows in a map (Selvaraju et al., 2016; Chattopadhay et al., 2017)."""

from collections.abc import Sequence
from typing import Literal

import keras
import numpy as np
from keras import ops, tree

from keras_visattn import kernels
from keras_visattn.ops import checks
from keras_visattn.ops.interpolation import resize_linear
from keras_visattn.typing import Tensors, Verbose
from keras_visattn.visualize.inspection import find_map, gives_scores, image_size, output_of
from keras_visattn.visualize.tapping import in_batches, tapped


def grad_cam(
    model: keras.Model,
    images: Tensors,
    layer: str | keras.layers.Layer | None = None,
    class_index: int | Sequence[int] | np.ndarray | None = None,
    output: str | int | None = None,
    method: Literal["grad_cam", "grad_cam++"] = "grad_cam",
    batch_size: int = 32,
    verbose: Verbose = "auto",
) -> np.ndarray:
    """Shows where in the images a model sees a class.

    The channels of a layer's map `A` are summed, each weighted by the mean over the map of the
    gradient of the class's score, and what is negative is cut off:
    `relu(sum_c mean_hw(dS / dA_c) * A_c)`. The score is that before the softmax or sigmoid.
    `"grad_cam++"` weights by the positive gradients, and those pixels most that alone make the
    score. The model stays as it is, and runs in inference mode.

    Args:
        model: A Keras model; images, or what else it takes, in, a score for each class out. If
            it has an output with more axes, the class's mean over them counts.
        images: Array `(batch, height, width, channels)`, or in the model's data format, or the
            structure that the model takes; the first with four axes counts as the images.
        layer: Layer, or its name, or its path through inner models, `"inner/name"`. Defaults to
            the last of more than one pixel.
        class_index: Integer, or one for each image. Defaults to each image's highest score.
        output: Name or index of the output, if there are several. Defaults to the first.
        method: `"grad_cam"` or `"grad_cam++"`.
        batch_size: Integer, images at a time.
        verbose: 1 shows the progress, 0 does not, `"auto"` does if there are several batches.

    Returns:
        Array `(batch, height, width)` of the images' size, the largest value of each image 1;
        0 all over where nothing speaks for the class.

    Raises:
        ValueError: If there is no such layer, output, class or method, the layer gives no map or
            is called more than once, `layer` is not given for a model without a graph, or the
            numbers of images and classes differ.

    Reference:
        Selvaraju et al., 2016, "Grad-CAM: Visual Explanations from Deep Networks via
        Gradient-based Localization", section 3 (https://arxiv.org/abs/1610.02391);
        Chattopadhay et al., 2017, "Grad-CAM++", section 3 (https://arxiv.org/abs/1710.11063).

    Examples:
        >>> model = keras_visattn.models.ResNet(18, "cbam", filters=16, classes=10)
        >>> images = keras.random.uniform((2, 64, 48, 3))
        >>> keras_visattn.visualize.grad_cam(model, images, class_index=3).shape
        (2, 64, 48)
    """
    weights = WEIGHTS[checks.choice("method", method, tuple(WEIGHTS))]
    checks.positive_integer("batch_size", batch_size)
    target, data_format = find_map(model, layer)
    images = tree.map_structure(ops.convert_to_numpy, images)
    size = _checked_size(images)
    classes = _classes(class_index, len(tree.flatten(images)[0]))

    def score(tap, images, classes):
        calls = []

        def listen(call, *args, **kwargs):
            calls.append(call(*args, **kwargs))
            return tap(_checked_map(calls, target))

        with tapped({target: listen, **gives_scores(model)}):
            outputs = model(images, training=False)
        if not calls:
            raise ValueError(f"`layer` must take part in the model. Received: {target.name}")
        scores = output_of(model, outputs, output)
        scores = ops.reshape(scores, (ops.shape(scores)[0], -1, scores.shape[-1]))
        scores = ops.mean(ops.cast(scores, "float32"), axis=1)
        if np.max(class_index if class_index is not None else 0) >= scores.shape[-1]:
            raise ValueError(
                "`class_index` must be less than the number of classes. "
                f"Received: class_index={class_index}, classes={scores.shape[-1]}"
            )
        best = ops.cast(ops.argmax(scores, axis=-1), "int32")
        chosen = ops.one_hot(ops.where(classes < 0, best, classes), scores.shape[-1])
        return ops.sum(scores * chosen)

    gradient = kernels.gradient_at(score, model.variables)

    def of_batch(batch):
        maps, slopes = (ops.cast(x, "float32") for x in gradient(*batch))
        if data_format == "channels_first":
            maps, slopes = (ops.transpose(x, (0, 2, 3, 1)) for x in (maps, slopes))
        cam = ops.relu(ops.sum(maps * weights(maps, slopes), axis=-1))
        cam = resize_linear(resize_linear(cam, size[0], 1), size[1], 2)
        largest = ops.max(cam, axis=(1, 2), keepdims=True)
        return cam / ops.where(largest > 0, largest, 1.0)

    return in_batches(of_batch, (images, classes), batch_size, verbose)


def _mean_gradient(maps, slopes):
    return ops.mean(slopes, axis=(1, 2), keepdims=True)


def _positive_gradients(maps, slopes):
    """Weights pixels by `g**2 / (2 g**2 + sum(A) g**3)`, where the score is an exponential's."""
    square = slopes * slopes
    below = 2 * square + ops.sum(maps, axis=(1, 2), keepdims=True) * square * slopes
    share = square / ops.where(below != 0, below, 1.0)
    return ops.sum(share * ops.relu(slopes), axis=(1, 2), keepdims=True)


WEIGHTS = {"grad_cam": _mean_gradient, "grad_cam++": _positive_gradients}


def _checked_map(calls, layer):
    found = calls[-1]
    if len(getattr(found, "shape", ())) != 4 or len(calls) > 1:
        raise ValueError(
            "`layer` must give one map with four axes, in one call. Received: "
            f"{layer.name}, outputs={tree.map_structure(lambda x: tuple(x.shape), found)}, "
            f"calls={len(calls)}"
        )
    return found


def _checked_size(images):
    shapes = [x.shape for x in tree.flatten(images)]
    size = image_size(images)
    if size is None or shapes[0][0] == 0 or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            "`images` must have four axes, the first of which, the images, is not empty and the "
            f"same for all inputs. Received: {shapes}"
        )
    return size


def _classes(class_index, count):
    """One class for each image, -1 for that of the highest score."""
    classes = np.asarray(-1 if class_index is None else class_index)
    if class_index is not None and (
        classes.dtype.kind not in "iu" or classes.min(initial=0) < 0 or classes.ndim > 1
    ):
        raise ValueError(
            "`class_index` must be an integer from 0 on, or one for each image. "
            f"Received: class_index={class_index}"
        )
    if classes.ndim and len(classes) != count:
        raise ValueError(
            "`class_index` must be one integer, or one for each image. "
            f"Received: {len(classes)} of them, {count} images"
        )
    return np.broadcast_to(classes, (count,)).astype("int32")
