"""Puts attention into networks that are trained already, and trains them on.

A small residual network learns handwritten digits. Then CBAM goes into it with an identity start,
or its last convolutions are augmented; each is shown at step 0 and after some more epochs, beside
the network as it was after as many. With KerasCV installed, the same is done to one of its
classifiers, which is saved and loaded again. Run it with

    python examples/surgery.py --output runs/surgery
"""

import argparse
import importlib.util
import os
import pathlib

if "KERAS_BACKEND" not in os.environ:
    backends = ("jax", "torch", "tensorflow")
    os.environ["KERAS_BACKEND"] = next(b for b in backends if importlib.util.find_spec(b))

import digits
import keras
import numpy as np

from keras_visattn import surgery

BATCH = 64
LAYERS = keras.layers


def residual_network():
    """Three stages of a residual block each, as anyone would write them."""
    images = keras.Input((8, 8, 1))
    x = LAYERS.Conv2D(32, 3, padding="same", use_bias=False)(images)
    x = LAYERS.ReLU()(LAYERS.BatchNormalization()(x))
    for filters, strides in ((32, 1), (64, 2), (128, 2)):
        y = LAYERS.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        y = LAYERS.ReLU()(LAYERS.BatchNormalization()(y))
        y = LAYERS.Conv2D(filters, 3, padding="same", use_bias=False)(y)
        y = LAYERS.BatchNormalization()(y)
        if strides > 1:
            x = LAYERS.Conv2D(filters, 1, strides, use_bias=False)(x)
        x = LAYERS.ReLU()(LAYERS.Add()([x, y]))
    x = LAYERS.GlobalAveragePooling2D()(x)
    return keras.Model(images, LAYERS.Dense(10)(x), name="residual")


def add_cbam(model):
    return surgery.add_cbam(model, reduction_ratio=4, kernel_size=3)


def augment_last_stage(model):
    sizes = {"total_key_dim": 32, "total_value_dim": 32, "num_heads": 4}
    return surgery.augment_convolutions(model, last=2, **sizes)


VARIANTS = {"as it was": lambda model: model, "CBAM": add_cbam, "augmented": augment_last_stage}


def fit(model, train, epochs, learning_rate):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"])
    model.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0)


def accuracy(model, test):
    images, labels = test
    return float(np.mean(model.predict(images, verbose=0).argmax(-1) == labels))


def change(model, other, images):
    """The largest change of a logit, against the largest logit."""
    before, after = (m.predict(images, verbose=0) for m in (model, other))
    return float(np.abs(after - before).max() / np.abs(before).max())


def compare_variants(train, test, epochs):
    """Trains the network, operates on it, trains on; gives a row of a table for each variant."""
    trained = residual_network()
    fit(trained, train, epochs, 1e-3)
    before = accuracy(trained, test)
    rows = []
    for name, operate in VARIANTS.items():
        model = operate(trained)
        if model is not trained:
            print(f"\n{surgery.report(trained, model)}")
        else:
            model = keras.models.clone_model(trained)
            model.set_weights(trained.get_weights())
        start = accuracy(model, test), change(trained, model, test[0])
        fit(model, train, epochs, 1e-4)
        rows.append((name, model.count_params(), before, *start, accuracy(model, test)))
    return rows


def classifier_of_keras_cv(train, test, epochs, folder):
    """Does the same to a classifier of KerasCV: train, operate, train on, save, load."""
    import keras_cv

    train, test = ((np.tile(x, (1, 4, 4, 3)) * 255, labels) for x, labels in (train, test))
    backbone = keras_cv.models.ResNetV2Backbone(
        stackwise_filters=[64],
        stackwise_blocks=[2],
        stackwise_strides=[1],
        include_rescaling=True,
        input_shape=(32, 32, 3),
    )
    plain = keras_cv.models.ImageClassifier(backbone, num_classes=10, activation=None)
    fit(plain, train, epochs, 1e-3)
    model = surgery.add_cbam(plain)
    start = accuracy(model, test), change(plain, model, test[0])
    fit(model, train, epochs, 1e-4)
    row = ("KerasCV, CBAM", model.count_params(), accuracy(plain, test), *start)
    model.save(folder / "keras_cv.keras")
    loaded = keras.saving.load_model(folder / "keras_cv.keras")
    if change(model, loaded, test[0]) > 1e-6:
        raise RuntimeError("The loaded classifier must answer as the saved one did.")
    print(f"\n{type(loaded).__name__} of KerasCV, saved and loaded: the same answers")
    return (*row, accuracy(loaded, test))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/surgery"))
    parser.add_argument("--epochs", type=int, default=8, help="before surgery, and after")
    parser.add_argument("--images", type=int, help="use the first so many only")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    train, test, line = digits.load(arguments.output / "data")
    train, test = (tuple(x[: arguments.images] for x in split) for split in (train, test))
    print(f"{len(train[0])} digits to train on, {len(test[0])} held out: {line}")
    print(f"Keras {keras.__version__} on {keras.backend.backend()}")

    rows = compare_variants(train, test, arguments.epochs)
    if importlib.util.find_spec("keras_cv"):
        rows.append(classifier_of_keras_cv(train, test, arguments.epochs, arguments.output))
    else:
        print("\nKerasCV is not installed: pip install 'keras_visattn[cv]'")
    titles = ("network", "parameters", "before", "at step 0", "logits moved", "after")
    form = "{:14} {:>10} {:>8} {:>10} {:>13} {:>8}"
    print("\n" + form.format(*titles))
    for name, parameters, before, start, moved, after in rows:
        shares = (f"{share:.2%}" for share in (before, start))
        print(form.format(name, f"{parameters:,}", *shares, f"{moved:.1e}", f"{after:.2%}"))


if __name__ == "__main__":
    main()
