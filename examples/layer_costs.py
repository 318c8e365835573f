"""Sets every layer beside its paper, its file, and its cost against a convolution of 3x3.

`python examples/layer_costs.py docs/benchmarks/cpu.json --write README.md` makes the table of
that page again. Operations are counted here; times are those of `benchmark.py --group layers`.
"""

import argparse
import inspect
import json
import pathlib

import keras
from pages import write_between

from keras_visattn import complexity, layers

SHAPE = (28, 28, 128)
BACKENDS = ("tensorflow", "jax", "torch")
MARKS = "<!-- layers -->", "<!-- end of layers -->"
HEADER = ("Layer", "Paper", "File in `keras_visattn/layers`", "Multiply-adds", "Training step")
PAPERS = {
    "Vaswani et al., 2017": [
        "MultiHeadAttention",
        "SinusoidalPositionEncoding",
        "TransformerEncoderBlock",
        "TransformerDecoderBlock",
        "TokenEmbedding",
    ],
    "Liu et al., 2018": ["CoordinateChannels2D"],
    "Shaw et al., 2018; Bello et al., 2019": ["RelativePositionEmbedding2D"],
    "Woo et al., 2018": ["ChannelAttention", "SpatialAttention", "CBAM"],
    "Hu et al., 2018": ["SqueezeExcite", "GatherExcite"],
    "Park et al., 2018": ["BAM"],
    "Linsley et al., 2018": ["GALA"],
    "Bello et al., 2019": ["AugmentedConv2D"],
    "Ramachandran et al., 2019": ["LocalSelfAttention2D", "LocalAttentionStem2D"],
}
COSTED = {  # on maps of `SHAPE`, by the papers' settings
    "MultiHeadAttention": lambda x: layers.MultiHeadAttention(8, 16)(x, x),
    "AugmentedConv2D": layers.AugmentedConv2D(128, 3),
    "LocalSelfAttention2D": layers.LocalSelfAttention2D(128, 7),
    **{
        name: getattr(layers, name)()
        for name in (*PAPERS["Woo et al., 2018"], "SqueezeExcite", "GatherExcite", "BAM", "GALA")
    },
}


def multiply_adds(layer):
    inputs = keras.Input(SHAPE)
    return complexity.profile(keras.Model(inputs, layer(inputs))).macs


def times(rows, name):
    """The ratio of a layer's training step to the convolution's, for each backend."""
    found = {
        row["backend"]: f"{row['ratio']:.2g}"
        for row in rows
        if (row["group"], row["mode"], row["against"]) == ("layers", "train", "Conv2D")
        and row["subject"].removesuffix(" of the paper") == name
    }
    return " / ".join(found[backend] for backend in BACKENDS) if found else ""


def table(records):
    """Writes the table as Markdown."""
    convolution = multiply_adds(keras.layers.Conv2D(SHAPE[-1], 3, padding="same"))
    lines = [HEADER, ["---"] * len(HEADER)]
    for paper, names in PAPERS.items():
        for name in names:
            file = pathlib.Path(inspect.getsourcefile(getattr(layers, name))).name
            cost = ""
            if name in COSTED:
                count = multiply_adds(COSTED[name]) / convolution
                cost = "below 0.01" if count < 0.01 else f"{count:.2g}"
            lines.append([f"`{name}`", paper, f"`{file}`", cost, times(records, name)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("records", type=pathlib.Path, help="file that benchmark.py wrote")
    parser.add_argument("--write", type=pathlib.Path, help="page that holds the table")
    settings = parser.parse_args()
    text = table(json.loads(settings.records.read_text())["rows"])
    if settings.write is None:
        print(text)
        return
    write_between(settings.write, MARKS, text)


if __name__ == "__main__":
    main()
