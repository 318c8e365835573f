"""Sets the networks' parameters and operations beside those that the papers print.

Nothing is computed with weights: the networks are made without values, and walked by
`complexity.profile`. Run it with

    python examples/published_figures.py

With `--write docs/papers.md`, the tables replace those at the end of that page.
"""

import argparse
import functools
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import keras

from keras_visattn import complexity, models

HEADING = "## Published and computed figures\n"
INTRODUCTION = (
    "Made by `python examples/published_figures.py --write docs/papers.md`. Parameters are the "
    "trainable ones. Operations are those of one image of 224 x 224, of 32 x 32 for WRN, of "
    "640 x 640 for RetinaNet. A star marks what is quoted from memory of the paper; a row without "
    "a published figure has been derived by the same rules."
)


class Figure(NamedTuple):
    """A network and what its paper prints of it; a star marks what is quoted from memory."""

    network: str
    make: Callable
    parameters: str = ""  # as printed, such as "25.8 M"
    operations: str = ""  # as printed, such as "8.3 G"
    reason: str = ""  # of a difference beyond the rounding of what is printed
    shape: tuple = (224, 224, 3)


class Table(NamedTuple):
    """The figures of a paper, in its unit: `"macs"`, or `"flops"`, two for a multiply-add."""

    title: str
    unit: str
    figures: tuple
    note: str = ""


def resnet(depth, *arguments, **keywords):
    return functools.partial(models.ResNet, depth, *arguments, **keywords)


def ratios(ratio):
    return resnet(50, "augmented", key_ratio=ratio, value_ratio=ratio)


def local(depth=50, **keywords):
    return resnet(depth, "local", **keywords)


def mnasnet(*arguments):
    return functools.partial(models.MnasNet, *arguments)


def wide_resnet(*arguments):
    return functools.partial(models.WideResNet, 28, 10, *arguments)


def retinanet(backbone, **keywords):
    def make():
        network = backbone(include_top=False)
        return models.RetinaNet(network, 90, num_anchors=6, **keywords)

    return make


def transformer(vocabulary_size, **keywords):
    return functools.partial(models.Transformer, vocabulary_size, **keywords)


VERSION_1 = "the paper strides in the first 1x1 convolution, ours in the 3x3"
LOGITS = "ours include the relative logits; what the paper's include is not known"
STEM = "192 weights say where in its block a pixel of the stem is"
STEM_OPERATIONS = f"{STEM}; our stem has no relative logits"
UNKNOWN = "the paper does not say what it counts"
MOBILE = "the key channels are our reading; ours include the relative logits"
VOCABULARY = "the paper's vocabulary is of about 37,000 tokens"
BIG = {"hidden_dim": 1024, "intermediate_dim": 4096, "num_heads": 16, "dropout": 0.3}
SEQUENCE = [(32,), (32,)]
DETECTOR = {"shape": (640, 640, 3)}
DETECTOR_NORMS = "batch normalization in the pyramid and the heads would add 0.02 M"
DETECTOR_HEADS = "not known; the guide to RetinaNet has the readings that were tried"

TABLES = (
    Table(
        "Attention is all you need (Vaswani et al., 2017)",
        "macs",
        (
            Figure("base", transformer(37_000), "65 M", "", VOCABULARY, SEQUENCE),
            Figure("big", transformer(37_000, **BIG), "213 M", "", VOCABULARY, SEQUENCE),
        ),
        "Operations are those of a pair of sentences of 32 tokens.",
    ),
    Table(
        "CBAM (Woo et al., 2018)",
        "macs",
        (
            Figure("ResNet-18", resnet(18), "11,689,512", "1.814 G*"),
            Figure("ResNet-18 + CBAM", resnet(18, "cbam"), "11,779,392", "1.815 G*"),
            Figure("ResNet-34", resnet(34), "21,797,672", "3.664 G*"),
            Figure("ResNet-34 + CBAM", resnet(34, "cbam"), "21,960,468", "3.665 G*"),
            Figure("ResNet-50", resnet(50), "25,557,032", "3.858 G", VERSION_1),
            Figure("ResNet-50 + SE", resnet(50, "se"), "28.09 M", "3.860 G", VERSION_1),
            Figure("ResNet-50 + CBAM", resnet(50, "cbam"), "28,089,624", "3.864 G", VERSION_1),
            Figure("ResNet-101", resnet(101), "44,549,160"),
            Figure("ResNet-101 + CBAM", resnet(101, "cbam"), "49,330,172"),
            Figure("WideResNet-18 (1.5) + CBAM", resnet(18, "cbam", filters=96), "26.08 M*"),
            Figure("WideResNet-18 (2) + CBAM", resnet(18, "cbam", filters=128), "45.97 M*"),
            Figure("ResNeXt-50 + CBAM", resnet(50, "cbam", cardinality=32, width=4), "27.56 M*"),
            Figure("ResNeXt-101 + CBAM", resnet(101, "cbam", cardinality=32, width=4), "48.96 M*"),
        ),
        "Parameters to the last digit are counted in the authors' code.",
    ),
    Table(
        "Attention augmented convolutional networks (Bello et al., 2019)",
        "flops",
        (
            Figure("ResNet-34", resnet(34), "21.8 M"),
            Figure("AA-ResNet-34", resnet(34, "augmented"), "20.7 M", "7.1 G", LOGITS),
            Figure("ResNet-50", resnet(50), "25.6 M", "8.2 G"),
            Figure("AA-ResNet-50", resnet(50, "augmented"), "25.8 M", "8.3 G", LOGITS),
            Figure("the same, no map pooled", resnet(50, "augmented", attention_pool=1), "25.8 M"),
            Figure("AA-ResNet-101", resnet(101, "augmented"), "45.4 M", "16.1 G", LOGITS),
            Figure("AA-ResNet-152", resnet(152, "augmented"), "61.6 M*", "23.8 G*", LOGITS),
            Figure("ResNet-50, both ratios 0.25", ratios(0.25), "24.3 M*", "7.9 G*", LOGITS),
            Figure("both ratios 0.5", ratios(0.5), "22.3 M*", "7.3 G*", LOGITS),
            Figure("both ratios 0.75", ratios(0.75), "20.7 M*", "6.8 G*", LOGITS),
            Figure("both ratios 1", ratios(1.0), "19.4 M*", "6.3 G*", LOGITS),
            Figure("no positions", resnet(50, "augmented", position=None)),
            Figure("2-D sinusoids", resnet(50, "augmented", position="sinusoidal")),
            Figure("CoordConv", resnet(50, "augmented", position="coordinates")),
            Figure("WRN-28-10", wide_resnet(), "36.3 M*", "10.4 G*", UNKNOWN, (32, 32, 3)),
            Figure(
                *("AA-WRN-28-10", wide_resnet("augmented"), "36.2 M*", "10.9 G*"),
                *(UNKNOWN, (32, 32, 3)),
            ),
            Figure("MnasNet, width 0.75", mnasnet(0.75), "2.91 M*"),
            Figure("AA-MnasNet, width 0.75", mnasnet(0.75, "augmented"), "3.02 M*", "", MOBILE),
            Figure("MnasNet, width 1", mnasnet(1.0), "3.89 M*", "0.62 G*"),
            Figure("AA-MnasNet, width 1", mnasnet(1.0, "augmented"), "4.06 M*", "", MOBILE),
            Figure("MnasNet, width 1.25", mnasnet(1.25), "5.26 M*"),
            Figure("AA-MnasNet, width 1.25", mnasnet(1.25, "augmented"), "5.53 M*", "", MOBILE),
            Figure("MnasNet, width 1.4", mnasnet(1.4), "6.1 M*"),
            Figure("AA-MnasNet, width 1.4", mnasnet(1.4, "augmented"), "6.44 M*", "", MOBILE),
        ),
    ),
    Table(
        "Stand-alone self-attention (Ramachandran et al., 2019)",
        "flops",
        (
            Figure("ResNet-26", resnet(26), "13.7 M", "4.7 G"),
            Figure("ResNet-38", resnet(38), "19.6 M", "6.5 G", UNKNOWN),
            Figure("ResNet-50", resnet(50), "25.6 M", "8.2 G"),
            Figure("26, convolution stem + attention", local(26), "10.3 M", "4.5 G"),
            Figure("38, convolution stem + attention", local(38), "14.1 M", "5.7 G", UNKNOWN),
            Figure("50, convolution stem + attention", local(50), "18.0 M", "7.0 G"),
            *(
                Figure(f"{depth}, attention alone", local(depth, stem="attention"), *published)
                for depth, *published in (
                    (26, "10.3 M", "4.7 G", STEM_OPERATIONS),
                    (38, "14.1 M", "6.0 G", STEM_OPERATIONS),
                    (50, "18.0 M", "7.2 G", STEM_OPERATIONS),
                )
            ),
            *(Figure(f"50, k = {size}", local(kernel_size=size)) for size in (3, 5, 9, 11)),
            *(
                Figure(f"50, attention in stages {stages}", local(attention_stages=stages))
                for stages in ((2, 3, 4), (3, 4), 4, 1, (1, 2), (1, 2, 3))
            ),
            Figure("50, absolute positions", local(position="absolute")),
            Figure("50, no positions", local(position=None)),
            Figure(
                *("RetinaNet, ResNet-50", retinanet(resnet(50)), "33.4 M", "182 G"),
                **DETECTOR,
            ),
            Figure(
                *("its backbone attends", retinanet(local(stem="attention")), "25.9 M", "173 G"),
                reason=DETECTOR_NORMS,
                **DETECTOR,
            ),
            Figure(
                "its pyramid and heads too",
                retinanet(local(stem="attention"), attention="local"),
                *("22.0 M", "111 G", DETECTOR_HEADS),
                **DETECTOR,
            ),
        ),
    ),
)


def profile_of(figure):
    with keras.StatelessScope(initialize_variables=False):
        return complexity.profile(figure.make(), figure.shape)


def read(published):
    """Gives what is printed as a number, and the step to which it is rounded."""
    digits, unit = re.fullmatch(r"([\d.,]+) ?([MG]?)\*?", published).groups()
    scale = {"": 1, "M": 10**6, "G": 10**9}[unit]
    return float(digits.replace(",", "")) * scale, scale / 10 ** len(digits.partition(".")[2])


def beyond_rounding(published, counted):
    """Says whether a count differs from what is printed by more than the printing rounds."""
    number, step = read(published)
    return abs(number - counted) > 0.5001 * step


def with_difference(text, published, counted):
    if not published:
        return text
    difference = counted / read(published)[0] - 1
    return f"{text} ({difference:+.2%})" if difference else f"{text} (the same)"


def row_of(figure, unit):
    """Gives the cells of a network's row."""
    profile = profile_of(figure)
    printed = figure.parameters, figure.operations
    counts = profile.parameters, getattr(profile, unit)
    texts = f"{counts[0]:,}", f"{counts[1] / 1e9:.3f} G"
    differs = any(beyond_rounding(p, c) for p, c in zip(printed, counts, strict=True) if p)
    if differs and not figure.reason:
        raise ValueError(
            "A figure beyond its rounding must have its reason. "
            f"Received: network={figure.network}, published={printed}, counted={counts}"
        )
    ours = map(with_difference, texts, printed, counts)
    pairs = [cell for pair in zip(printed, ours, strict=True) for cell in pair]
    return [figure.network, *pairs, figure.reason if differs else ""]


def write(table):
    """Writes a table as Markdown."""
    operations = {"macs": "Multiply-adds", "flops": "FLOPs, two a multiply-add"}[table.unit]
    header = ["Network", "Parameters", "ours", operations, "ours", "Beyond the rounding"]
    rows = [
        header,
        ["---"] * len(header),
        *(row_of(figure, table.unit) for figure in table.figures),
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([f"### {table.title}", "", *([table.note, ""] if table.note else []), *lines])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=pathlib.Path, help="page that ends with the tables")
    arguments = parser.parse_args()
    text = "\n\n".join([INTRODUCTION, *map(write, TABLES)]) + "\n"
    if arguments.write is None:
        print(text)
    else:
        page, _, _ = arguments.write.read_text().partition(HEADING)
        arguments.write.write_text(page + HEADING + "\n" + text)


if __name__ == "__main__":
    main()
