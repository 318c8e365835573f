"""Boxes of objects: anchors, which object an anchor stands for, and what is detected.

A box is (left, top, right, bottom) in pixels of the image, Keras' "xyxy"; A is the number of
anchors, M that of the boxes of an image.
"""

import math
import numbers
from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import ops

from keras_visattn.ops import checks
from keras_visattn.typing import IntOrPair, Tensor

LEVELS = (3, 4, 5, 6, 7)
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
ASPECT_RATIOS = (0.5, 1.0, 2.0)
BACKGROUND = -1
IGNORED = -2
# Far beyond the paper's anchors; keeps the exponential finite.
LARGEST_LOG_RATIO = math.log(1000 / 16)


def anchor_boxes(
    image_size: IntOrPair,
    levels: Sequence[int] = LEVELS,
    scales: Sequence[float] = SCALES,
    aspect_ratios: Sequence[float] = ASPECT_RATIOS,
    size: float = 4,
) -> Tensor:
    """Lays boxes of some sizes and shapes round each pixel of each level of a pyramid.

    A pixel of level `l` is a square of `2**l` pixels of the image, and a level has as many as
    cover the image, so the last row and column may reach beyond it. The order is that of
    `models.RetinaNet`: levels as given, then rows, columns, aspect ratios and scales.

    Args:
        image_size: Integer or pair, height and width of the images.
        levels: Tuple of integers, the levels of the pyramid.
        scales: Tuple of numbers, factors of the boxes' sizes.
        aspect_ratios: Tuple of numbers, height over width of the boxes. All boxes of a scale
            have the same area.
        size: Number, side of the square box of scale 1, in pixels of its level.

    Returns:
        Float32 tensor `(A, 4)`.

    Raises:
        ValueError: If a size is not positive, or a tuple is empty.

    Reference:
        Lin et al., 2017, "Focal Loss for Dense Object Detection", section 4
        (https://arxiv.org/abs/1708.02002).

    Examples:
        >>> anchors = keras_visattn.ops.anchor_boxes((97, 131))
        >>> anchors.shape[0] == 9 * (13 * 17 + 7 * 9 + 4 * 5 + 2 * 3 + 1 * 2)
        True
    """
    image_size = checks.pair("image_size", image_size)
    levels = checks.integers("levels", levels)
    _positive("scales", scales)
    _positive("aspect_ratios", aspect_ratios)
    _positive("size", (size,))
    roots = np.sqrt(np.asarray(aspect_ratios, "float64"))[:, None]
    sides = size * np.asarray(scales, "float64")
    shape = np.stack([sides / roots, sides * roots], axis=-1)  # (ratios, scales, width and height)
    corners = np.concatenate([-shape / 2, shape / 2], axis=-1).reshape(-1, 4)
    boxes = []
    for level in levels:
        rows, columns = (np.arange(-(-length // 2**level)) + 0.5 for length in image_size)
        y, x = np.meshgrid(rows, columns, indexing="ij")
        centres = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
        boxes.append(2**level * (centres + corners).reshape(-1, 4))
    return ops.convert_to_tensor(np.concatenate(boxes), dtype="float32")


def _positive(name, values):
    if not len(values) or not all(isinstance(v, numbers.Real) and v > 0 for v in values):
        raise ValueError(f"`{name}` must be positive. Received: {name}={values}")


def match_anchors(
    boxes: Tensor,
    classes: Tensor,
    anchors: Tensor,
    positive_threshold: float = 0.5,
    negative_threshold: float = 0.4,
) -> dict[str, Tensor]:
    """Says what each anchor should be trained to answer.

    An anchor stands for the object that it overlaps most, if the intersection over the union is
    `positive_threshold` or more. Below `negative_threshold` it is background, between the two it
    is ignored. Offsets are those of R-CNN, without variances: the centre's shift over the
    anchor's side, x before y, and the logarithm of the ratio of the sides.

    Args:
        boxes: Tensor `(B, M, 4)`, the objects.
        classes: Integer tensor `(B, M)`, their classes from 0 on; -1 fills up.
        anchors: Tensor `(A, 4)`, as `anchor_boxes` gives it.
        positive_threshold: Float.
        negative_threshold: Float.

    Returns:
        Dictionary of `"boxes"`, float32 `(B, A, 5)`: the offsets, then 1 if the anchor stands for
        an object, else all 0; and `"classes"`, int32 `(B, A)`: the class, -1 for background, -2
        for ignored. These are the targets of `models.SmoothL1Loss` and `models.FocalLoss`.

    Raises:
        ValueError: If the shapes are none of these, or the thresholds are not in order.

    Reference:
        Lin et al., 2017, "Focal Loss for Dense Object Detection", section 4
        (https://arxiv.org/abs/1708.02002).

    Examples:
        >>> anchors = keras_visattn.ops.anchor_boxes((64, 64))
        >>> boxes = keras.ops.convert_to_tensor([[[0.0, 0.0, 32.0, 32.0]]])
        >>> targets = keras_visattn.ops.match_anchors(boxes, [[7]], anchors)
        >>> print(int(keras.ops.max(targets["classes"])))
        7
    """
    anchors = _boxes("anchors", anchors, 2)
    boxes = _boxes("boxes", boxes, 3)
    classes = ops.convert_to_tensor(classes, dtype="int32")
    if tuple(classes.shape) != tuple(boxes.shape[:2]):
        raise ValueError(
            "`classes` must be one of each box. "
            f"Received: classes={tuple(classes.shape)}, boxes={tuple(boxes.shape)}"
        )
    if not 0 < negative_threshold <= positive_threshold <= 1:
        raise ValueError(
            "`negative_threshold` must be above 0 and at most `positive_threshold`, which must be "
            f"at most 1. Received: negative_threshold={negative_threshold}, "
            f"positive_threshold={positive_threshold}"
        )
    # One object more that is none, so that an image may have no object at all.
    boxes = ops.pad(boxes, ((0, 0), (0, 1), (0, 0)))
    classes = ops.pad(classes, ((0, 0), (0, 1)), constant_values=BACKGROUND)
    overlaps = keras.utils.bounding_boxes.compute_iou(anchors, boxes, "xyxy")  # (B, A, M + 1)
    overlaps = ops.where(classes[:, None] < 0, -1.0, overlaps)
    best = ops.argmax(overlaps, axis=-1)
    overlap = ops.max(overlaps, axis=-1)
    positive = overlap >= positive_threshold
    labels = ops.where(overlap < negative_threshold, BACKGROUND, IGNORED)
    labels = ops.where(positive, ops.take_along_axis(classes, best, axis=1), labels)
    offsets = keras.utils.bounding_boxes.encode_box_to_deltas(
        anchors,
        ops.take_along_axis(boxes, best[..., None], axis=1),
        anchor_format="xyxy",
        box_format="xyxy",
        encoding_format="center_xywh",
    )
    marked = ops.pad(offsets, ((0, 0), (0, 0), (0, 1)), constant_values=1.0)
    return {
        "boxes": ops.where(positive[..., None], marked, 0.0),
        "classes": ops.cast(labels, "int32"),
    }


def detections(
    outputs: Mapping[str, Tensor],
    anchors: Tensor,
    image_size: IntOrPair,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    max_candidates: int = 1000,
) -> dict[str, Tensor]:
    """Turns a detector's outputs into boxes, scores and classes, the best first.

    The `max_candidates` best pairs of an anchor and a class are candidates. A candidate falls if
    it overlaps a better one of its class that stands, by more than `iou_threshold`.

    Args:
        outputs: Dictionary of `"boxes"`, `(B, A, 4)`, offsets as in `match_anchors`, and
            `"classes"`, `(B, A, classes)`, logits: what `models.RetinaNet` answers.
        anchors: Tensor `(A, 4)`, as `anchor_boxes` gives it.
        image_size: Integer or pair, height and width of the images; boxes are clipped to them.
        score_threshold: Float, the scores above it count.
        iou_threshold: Float, the largest overlap of two detections of a class.
        max_detections: Integer, the most detections of an image.
        max_candidates: Integer, how many pairs are looked at. The paper takes as many of each
            level.

    Returns:
        Dictionary of `"boxes"` `(B, D, 4)`, `"scores"` `(B, D)` and `"classes"`, int32 `(B, D)`,
        with D the smaller of `max_detections` and the number of candidates. Where an image has
        fewer, boxes and scores are 0 and the class is -1.

    Raises:
        ValueError: If the shapes are none of these, or a number is not positive.

    Reference:
        Lin et al., 2017, "Focal Loss for Dense Object Detection", section 4.1
        (https://arxiv.org/abs/1708.02002).

    Examples:
        >>> anchors = keras.ops.convert_to_tensor([[0.0, 0, 8, 8], [0, 0, 8, 9], [9, 9, 16, 16]])
        >>> outputs = {"boxes": keras.ops.zeros((1, 3, 4)), "classes": keras.ops.ones((1, 3, 1))}
        >>> found = keras_visattn.ops.detections(outputs, anchors, 16, max_detections=3)
        >>> classes = found["classes"]
        >>> print([int(c) for c in classes[0]])
        [0, 0, -1]
    """
    anchors = _boxes("anchors", anchors, 2)
    offsets = _boxes("outputs['boxes']", outputs["boxes"], 3)
    logits = ops.cast(outputs["classes"], "float32")
    height, width = checks.pair("image_size", image_size)
    checks.positive_integer("max_detections", max_detections)
    checks.positive_integer("max_candidates", max_candidates)
    count = anchors.shape[0]
    if len(logits.shape) != 3 or {logits.shape[1], offsets.shape[1]} != {count}:
        raise ValueError(
            "`outputs` must have offsets and logits of each anchor. Received: "
            f"boxes={tuple(offsets.shape)}, classes={tuple(logits.shape)}, anchors={count}"
        )
    class_count = logits.shape[2]
    scores = ops.reshape(ops.sigmoid(logits), (-1, count * class_count))
    scores, places = ops.top_k(scores, min(max_candidates, count * class_count))
    classes = ops.cast(places % class_count, "int32")
    places = places // class_count

    offsets = ops.take_along_axis(offsets, places[..., None], axis=1)
    offsets = ops.concatenate(
        [offsets[..., :2], ops.minimum(offsets[..., 2:], LARGEST_LOG_RATIO)], axis=-1
    )
    boxes = keras.utils.bounding_boxes.decode_deltas_to_boxes(
        ops.take(anchors, places, axis=0),
        offsets,
        anchor_format="xyxy",
        box_format="xyxy",
        encoded_format="center_xywh",
    )
    edges = ops.convert_to_tensor([width, height, width, height], dtype="float32")
    boxes = ops.minimum(ops.maximum(boxes, 0.0), edges)

    scores = ops.where(scores > score_threshold, scores, 0.0)
    scores = ops.where(_standing(boxes, classes, iou_threshold), scores, 0.0)
    scores, places = ops.top_k(scores, min(max_detections, scores.shape[1]))
    boxes = ops.take_along_axis(boxes, places[..., None], axis=1)
    classes = ops.take_along_axis(classes, places, axis=1)
    return {
        "boxes": ops.where(scores[..., None] > 0, boxes, 0.0),
        "scores": scores,
        "classes": ops.where(scores > 0, classes, BACKGROUND),
    }


def _standing(boxes, classes, iou_threshold):
    """Non-maximum suppression of boxes in falling order of their scores.

    Each pass lets a box fall that overlaps an earlier one which stood after the pass before.
    Once no pass changes anything, that is the greedy answer: by induction the first n boxes are
    right after n passes, and few are needed, since chains of falls are short.
    """
    count = boxes.shape[1]
    overlaps = keras.utils.bounding_boxes.compute_iou(boxes, boxes, "xyxy")
    earlier = ops.convert_to_tensor(np.tri(count, k=-1, dtype="bool"))
    rivals = ops.logical_and(overlaps > iou_threshold, classes[:, :, None] == classes[:, None])
    rivals = ops.logical_and(rivals, earlier)

    def suppress(standing, _):
        fallen = ops.any(ops.logical_and(rivals, standing[:, None]), axis=-1)
        return ops.logical_not(fallen), ops.any(ops.equal(fallen, standing))

    return ops.while_loop(
        lambda _, changed: changed, suppress, (ops.ones_like(classes, dtype="bool"), True)
    )[0]


def _boxes(name, values, rank):
    """Checks the shape of boxes and gives them as float32."""
    values = ops.convert_to_tensor(values)
    if len(values.shape) != rank or values.shape[-1] != 4:
        raise ValueError(
            f"`{name}` must have {rank} axes, the last of size 4. "
            f"Received: {name}={tuple(values.shape)}"
        )
    return ops.cast(values, "float32")
