"""What the functions on boxes compute, in loops from the equations."""

import math

import numpy as np


def anchor_boxes(image_size, levels, scales, aspect_ratios, size):
    boxes = []
    for level in levels:
        stride = 2**level
        rows, columns = (math.ceil(length / stride) for length in image_size)
        for row in range(rows):
            for column in range(columns):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                for ratio in aspect_ratios:
                    for scale in scales:
                        area = (size * stride * scale) ** 2
                        width = math.sqrt(area / ratio)
                        height = area / width
                        boxes.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return np.array(boxes)


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared) if shared else 0.0


def encode(box, anchor):
    def centre_and_size(corners):
        left, top, right, bottom = corners
        return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top

    x, y, width, height = centre_and_size(box)
    x_a, y_a, width_a, height_a = centre_and_size(anchor)
    return [
        (x - x_a) / width_a,
        (y - y_a) / height_a,
        math.log(width / width_a),
        math.log(height / height_a),
    ]


def decode(offsets, anchor):
    width_a, height_a = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = anchor[0] + width_a / 2 + offsets[0] * width_a
    y = anchor[1] + height_a / 2 + offsets[1] * height_a
    width, height = width_a * math.exp(offsets[2]), height_a * math.exp(offsets[3])
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def match_anchors(boxes, classes, anchors, positive_threshold=0.5, negative_threshold=0.4):
    """Targets of one image."""
    offsets, labels = [], []
    for anchor in anchors:
        best, best_overlap = None, 0.0
        for index, box in enumerate(boxes):
            if classes[index] >= 0 and iou(anchor, box) > best_overlap:
                best, best_overlap = index, iou(anchor, box)
        if best_overlap >= positive_threshold:
            offsets.append([*encode(boxes[best], anchor), 1])
            labels.append(classes[best])
        else:
            offsets.append([0] * 5)
            labels.append(-1 if best_overlap < negative_threshold else -2)
    return np.array(offsets), np.array(labels)


def detections(offsets, logits, anchors, image_size, score_threshold, iou_threshold, most):
    """List of (score, class, box) of one image: best first, one standing after the other."""
    height, width = image_size
    candidates = []
    for anchor, offset, scores in zip(anchors, offsets, logits, strict=True):
        box = np.clip(decode(offset, anchor), 0, [width, height, width, height])
        for label, logit in enumerate(scores):
            candidates.append((1 / (1 + math.exp(-logit)), label, box))
    standing = []
    for score, label, box in sorted(candidates, key=lambda c: -c[0]):
        if score > score_threshold and all(
            label != other or iou(box, better) <= iou_threshold for _, other, better in standing
        ):
            standing.append((score, label, box))
    return standing[:most]


def focal_loss(labels, logits, alpha, gamma):
    """Loss of one image."""
    total = 0.0
    for label, scores in zip(labels, logits, strict=True):
        if label == -2:
            continue
        for index, logit in enumerate(scores):
            p = 1 / (1 + math.exp(-logit))
            p_t, alpha_t = (p, alpha) if index == label else (1 - p, 1 - alpha)
            total -= alpha_t * (1 - p_t) ** gamma * math.log(p_t)
    return total / max(1, sum(label >= 0 for label in labels))


def smooth_l1_loss(targets, offsets, beta):
    """Loss of one image."""
    total = 0.0
    for target, offset in zip(targets, offsets, strict=True):
        if target[4]:
            for error in np.abs(target[:4] - offset):
                total += 0.5 * error**2 / beta if error < beta else error - beta / 2
    return total / max(1, sum(targets[:, 4]))
