"""Saves models and what they answer, for `test_layers.py` to read under another backend.

`KERAS_BACKEND=jax python tests/saved_models.py FOLDER` writes `0.keras`, `0.npz`, `1.keras`, ...
in the order of `cases.py`, weights files and gradients of the first row of each layer, and small
networks with theirs. `KERAS_BACKEND=torch python tests/saved_models.py` writes
`tests/saved/VERSION.keras` and `.npz` anew, which later versions must still read.
"""

import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
from building import answer, inputs_of, make, randomize
from cases import CASES, FIRST_CASES
from gradients import answer_and_gradients, gradients

import keras_visattn
from keras_visattn import models

SAVED = Path(__file__).parent / "saved"
SEQUENCES = np.random.default_rng(0).integers(1, 9, size=(2, 2, 5)).astype("int32")
PICTURES = np.random.default_rng(0).normal(size=(1, 33, 40, 3)).astype("float32")


def model_of(case, **arguments):
    inputs = [keras.Input(shape[1:]) for shape in case.shapes]
    layer = make(case, **arguments)
    model = keras.Model(inputs, layer(*inputs))
    randomize(layer)
    return model


def model_of_all():
    """A model with every layer, side by side, and its inputs."""
    inputs, outputs, arrays = [], [], []
    for case in FIRST_CASES:
        layer = make(case, name=case.layer)
        inputs.append([keras.Input(shape[1:]) for shape in case.shapes])
        outputs.append(keras.layers.Flatten()(layer(*inputs[-1])))
        randomize(layer)
        arrays += inputs_of(case)
    model = keras.Model(keras.tree.flatten(inputs), keras.layers.Concatenate()(outputs))
    for weight in model.trainable_weights:  # round numbers are small when packed
        weight.assign(np.round(keras.ops.convert_to_numpy(weight.value) * 8) / 8)
    return model, [np.round(x * 8) / 8 for x in arrays]


def _resnet(attention, depth=18, stem="conv", **arguments):
    return lambda: models.ResNet(depth, attention, stem=stem, filters=8, classes=4, **arguments)


def _retinanet():
    backbone = models.ResNet(18, filters=8)
    return models.RetinaNet(backbone, 3, num_anchors=2, attention="local", filters=8, num_heads=2)


LOCAL = {"num_heads": 4, "kernel_size": 3}
AUGMENTED = {"num_heads": 2, "min_key_dim": 4, "value_ratio": 0.25}
NETWORKS = {  # how to make it, and its inputs
    "resnet": (_resnet(None, stem="attention"), PICTURES),
    "resnet_se": (_resnet("se", reduction_ratio=4), PICTURES),
    "resnet_ge": (_resnet("ge", extent=2, parametric=True), PICTURES),
    "resnet_bam": (_resnet("bam", reduction_ratio=4), PICTURES),
    "resnet_cbam": (_resnet("cbam", reduction_ratio=4), PICTURES),
    "resnet_gala": (_resnet("gala", reduction_ratio=4), PICTURES),
    "resnet_augmented": (_resnet("augmented", **AUGMENTED), PICTURES),
    "resnet_local": (_resnet("local", 26, "attention", **LOCAL), PICTURES),
    "wide_resnet": (
        lambda: models.WideResNet(10, 1, "augmented", classes=4, **AUGMENTED),
        PICTURES,
    ),
    "mnasnet": (lambda: models.MnasNet(0.35, "cbam", classes=4, attention_stages=7), PICTURES),
    "retinanet": (_retinanet, PICTURES),
    "transformer": (
        lambda: models.Transformer(9, num_layers=1, hidden_dim=8, intermediate_dim=16, num_heads=2),
        list(SEQUENCES),
    ),
}


def network_of(name):
    """A network with weights and statistics that are neither zero nor one."""
    keras.utils.set_random_seed(7)
    model = NETWORKS[name][0]()
    draw = np.random.default_rng(7)
    for variable in model.weights:
        if len(variable.shape) == 1 and "seed" not in variable.path:
            old = keras.ops.convert_to_numpy(variable.value)
            variable.assign(old + draw.uniform(-0.2, 0.2, size=variable.shape))
    return model


def gradients_of(model, case):
    """The gradients of the weights of a case's layer, in order; none where tokens come in."""
    if case.layer == "TokenEmbedding":
        return []
    layer, outputs = model.layers[-1], model.output
    factors = np.random.default_rng(4).normal(size=(case.shapes[0][0], *outputs.shape[1:]))
    return gradients(layer, inputs_of(case), factors.astype("float32"))[1]


def main(folder):
    for index, case in enumerate(CASES):
        model = model_of(case)
        model.save(folder / f"{index}.keras")
        found = {"answer": answer(model, inputs_of(case))}
        if case in FIRST_CASES:
            model.save_weights(folder / f"{index}.weights.h5")
            found |= {str(place): x for place, x in enumerate(gradients_of(model, case))}
        np.savez(folder / f"{index}.npz", **found)
    for name, (_, inputs) in NETWORKS.items():
        model = network_of(name)
        model.save(folder / f"{name}.keras")
        model.save_weights(folder / f"{name}.weights.h5")
        answers, found = answer_and_gradients(model, inputs)
        names = [f"answer {place}" for place in range(len(answers))]
        names += [f"gradient {place}" for place in range(len(found))]
        np.savez(folder / f"{name}.npz", **dict(zip(names, [*answers, *found], strict=True)))


def keep(folder):
    folder.mkdir(exist_ok=True)
    model, arrays = model_of_all()
    path = folder / f"{keras_visattn.__version__}.keras"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, part in parts.items():
            archive.writestr(zipfile.ZipInfo(name), part, zipfile.ZIP_DEFLATED)
    np.savez_compressed(path.with_suffix(".npz"), answer(model, arrays), *arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1])) if sys.argv[1:] else keep(SAVED)
