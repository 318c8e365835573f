"""Trains a network with attention on a data set of TensorFlow Datasets, by a paper's schedule.

The same command, given again, goes on with a run that was killed. Run it with

    python examples/train.py --output runs/train
"""

import argparse
import ast
import csv
import dataclasses
import importlib.util
import inspect
import json
import os
import pathlib

if "KERAS_BACKEND" not in os.environ:
    backends = ("jax", "torch", "tensorflow")
    os.environ["KERAS_BACKEND"] = next(b for b in backends if importlib.util.find_spec(b))

import keras
import numpy as np
from train_data import load, refuse

from keras_visattn import distribution, models

NETWORKS = {  # and their sizes where none are given
    "wide_resnet": (models.WideResNet, {"depth": 10, "width": 1}),
    "resnet": (models.ResNet, {"depth": 18}),
    "mnasnet": (models.MnasNet, {"width": 1.0}),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A paper's numbers: the learning rate for 256 images a step, times as shares of the run."""

    learning_rate: float
    weight_decay: float
    warm_up: float = 0.0
    drops: tuple = ()  # where the rate is divided by ten; without any it falls along a cosine
    nesterov: bool = False
    average: float = 0.0  # how far the moving average of the weights reaches back
    momentum: float = 0.9


RECIPES = {  # docs/guides/training.md says where they are from, and what they leave out
    "cbam": Recipe(0.1, 1e-4, drops=(30 / 90, 60 / 90)),
    "augmented": Recipe(0.128, 1e-4, warm_up=0.05, drops=(0.3, 0.6, 0.8, 0.9)),
    "augmented-cifar": Recipe(0.2, 5e-4, warm_up=0.05),
    "local": Recipe(0.1, 0.0, warm_up=10 / 130, nesterov=True, average=0.25),
}


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Climbs in a line to where another schedule is after so many steps."""

    def __init__(self, schedule, steps):
        self.schedule, self.steps = schedule, steps

    def __call__(self, step):
        share = keras.ops.cast(step, "float32") / self.steps
        return keras.ops.minimum(share, 1.0) * self.schedule(step)


def make_optimizer(recipe, batch, steps):
    """Makes a recipe's optimizer for a run of so many steps."""
    schedules = keras.optimizers.schedules
    rate, climb = recipe.learning_rate * batch / 256, max(1, round(recipe.warm_up * steps))
    if recipe.drops:
        drops = [round(drop * steps) for drop in recipe.drops]
        rates = [rate * 0.1**index for index in range(len(drops) + 1)]
        schedule = schedules.PiecewiseConstantDecay(drops, rates)
        schedule = WarmUp(schedule, climb) if recipe.warm_up else schedule
    else:
        schedule = schedules.CosineDecay(0.0, steps - climb, warmup_target=rate, warmup_steps=climb)
    return keras.optimizers.SGD(
        schedule,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        # The papers' decay passes through the momentum, which multiplies it; Keras' does not.
        weight_decay=recipe.weight_decay / (1 - recipe.momentum) or None,
        use_ema=recipe.average > 0,
        ema_momentum=1 - 1 / max(2.0, recipe.average * steps),
    )


def network(arguments, shape, classes):
    """Makes the network that the arguments name; it gives logits."""
    function, sizes = NETWORKS[arguments.network]
    sizes = sizes | {
        name: value for name in ("depth", "width", "filters") if (value := vars(arguments)[name])
    }
    if not sizes.keys() <= inspect.signature(function).parameters.keys():
        refuse(f"`--network {arguments.network}` must get the sizes that it has.", sizes)
    attention = None if arguments.attention == "none" else arguments.attention
    fixed = {"input_shape": shape, "classes": classes, "classifier_activation": None}
    try:
        return function(attention=attention, **sizes, **fixed, **dict(arguments.argument))
    except (TypeError, ValueError) as error:
        raise SystemExit(f"{function.__name__}: {error}") from None


def make_distribution(arguments):
    """Spreads batches over the devices, or also the heads and channels over some."""
    devices = keras.distribution.list_devices()
    shards = arguments.shards if arguments.distribute == "model" else 1
    replicas = len(devices) // shards
    if replicas * shards != len(devices) or arguments.batch % max(1, replicas):
        received = f"{len(devices)} devices, --shards {shards}, --batch {arguments.batch}"
        refuse("`--shards` must divide the devices, their quotient `--batch`.", received)
    if arguments.distribute == "data":
        return keras.distribution.DataParallel(devices=devices)
    return distribution.parallel(channels=shards, devices=devices)


def describe(spread, variables):
    mesh = spread.device_mesh
    sharded = [v for v in variables if any(spread.get_variable_layout(v).axes)]
    axes = " x ".join(map("{} {}".format, mesh.shape, mesh.axis_names))
    print(f"{mesh.devices.size} devices, {axes}: {len(sharded)} of {len(variables)} sharded")


class Log(keras.callbacks.Callback):
    """Writes a row for each epoch into a table, with which a run goes on that was killed."""

    def __init__(self, path, checkpoint):
        super().__init__()
        self.path, self.checkpoint = path, checkpoint

    def on_epoch_begin(self, epoch, logs=None):
        """Forgets epochs that run again, and tells the checkpoint the best of the others."""
        rows = csv.DictReader(self.path.read_text().splitlines()) if self.path.exists() else ()
        self.rows = [row for row in rows if int(row["epoch"]) < epoch]
        accuracies = (float(row["val_accuracy"]) for row in self.rows)
        self.checkpoint.best = max(accuracies, default=None)

    def on_epoch_end(self, epoch, logs=None):
        state = {"iterations": int, "learning_rate": float}
        state = {name: kind(getattr(self.model.optimizer, name)) for name, kind in state.items()}
        self.rows.append({"epoch": epoch, **state, **logs})
        unfinished = self.path.with_suffix(".unfinished")
        with unfinished.open("w", newline="") as file:
            table = csv.DictWriter(file, self.rows[-1])
            table.writeheader()
            table.writerows(self.rows)
        unfinished.replace(self.path)


def make_callbacks(output, recipe):
    """Makes what keeps each epoch; the backup is last, so that a kill before it is mended."""
    best = keras.callbacks.ModelCheckpoint(
        output / "best.weights.h5", "val_accuracy", save_best_only=True, save_weights_only=True
    )
    callbacks = [keras.callbacks.SwapEMAWeights()] * bool(recipe.average)  # to validate
    callbacks += [best, Log(output / "log.csv", best)]
    if importlib.util.find_spec("tensorboard"):
        callbacks.append(keras.callbacks.TensorBoard(output / "tensorboard", write_graph=False))
    else:
        print("TensorBoard's logs are off: pip install 'keras_visattn[train]'")
    backup = keras.callbacks.BackupAndRestore(
        output / "backup", double_checkpoint=True, delete_checkpoint=False
    )
    return [*callbacks, backup]


def parse():
    def literal(text):
        try:
            return ast.literal_eval(text)
        except SyntaxError as error:  # argparse knows the other kind
            raise ValueError(error) from None

    def setting(text):
        name, _, value = text.partition("=")
        return name, literal(value)

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/train"))
    add("--network", choices=NETWORKS, default="wide_resnet")
    add("--depth", type=int, help="of a ResNet or a WideResNet")
    add("--width", type=literal, help="of a WideResNet or a MnasNet")
    add("--filters", type=int, help="of a ResNet's first stage")
    add("--attention", default="cbam", help="what the network takes, or none")
    add("--argument", type=setting, action="append", default=[], metavar="NAME=VALUE")
    add("--dataset", default="digits", help="a name of TensorFlow Datasets")
    add("--data", type=pathlib.Path, help="folder where it is prepared; OUTPUT/data by default")
    add("--test-split", help="test if there is one, else validation")
    add("--validation-percent", type=int, default=10, help="of the training split, its end")
    add("--images", type=int, help="use so many of each part only")
    add("--image-size", type=int, help="resize to this; to 224 where the images' sizes differ")
    add("--shift", type=float, default=0.1, help="the most an image moves, as a share of it")
    add("--flip", action="store_true", help="mirror half of the images")
    add("--recipe", choices=RECIPES, default="augmented-cifar")
    add("--learning-rate", type=float, help="for 256 images a step; the recipe's by default")
    add("--label-smoothing", type=float, default=0.0)
    add("--epochs", type=int, default=20)
    add("--batch", type=int, default=64)
    add("--precision", choices=("float32", "mixed_float16", "mixed_bfloat16"), default="float32")
    add("--distribute", choices=("data", "model"), help="over all devices; on JAX only")
    add("--shards", type=int, default=2, help="devices that share a kernel, if model")
    add("--simulated-devices", type=int, metavar="N", help="make N of the processor; on JAX only")
    add("--seed", type=int, default=0)
    add("--quiet", action="store_true", help="a line an epoch instead of a bar")
    arguments = parser.parse_args()
    arguments.data = arguments.data or arguments.output / "data"
    return arguments


def check(arguments):
    """Refuses what this environment lacks."""
    needed = ["tensorflow", "tensorflow_datasets", "importlib_resources", "sklearn"]
    missing = [name for name in needed if not importlib.util.find_spec(name)]
    if missing:
        refuse("pip install 'keras_visattn[train]' must come first.", f"no {', '.join(missing)}")
    backend = keras.backend.backend()
    if (arguments.distribute or arguments.simulated_devices) and backend != "jax":
        rule = "Several devices must be JAX's, where alone Keras distributes: KERAS_BACKEND=jax."
        refuse(rule, f"KERAS_BACKEND={backend}")


def claim(arguments):
    """Refuses an output folder with another run, and marks it as this one's."""
    ours = {k: v for k, v in vars(arguments).items() if k not in ("output", "data", "quiet")}
    text, path = json.dumps(ours, indent=1), arguments.output / "arguments.json"
    if path.exists() and path.read_text() != text:
        refuse("`--output` must be new, or of a run with the same arguments.", path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def main():
    arguments = parse()
    check(arguments)
    if arguments.simulated_devices:  # JAX reads it when it is first asked for its devices
        flag = f"--xla_force_host_platform_device_count={arguments.simulated_devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    keras.utils.set_random_seed(arguments.seed)
    keras.config.set_image_data_format("channels_last")  # as TensorFlow Datasets has them
    keras.config.set_dtype_policy(arguments.precision)
    spread = make_distribution(arguments) if arguments.distribute else None
    train, validation, test, *shape_and_classes = load(arguments, spread is not None)
    keras.distribution.set_distribution(spread)
    model = network(arguments, *shape_and_classes)
    print(f"Keras {keras.__version__} on {keras.backend.backend()}, {len(train)} steps an epoch")
    print(f"{model.name}, {model.count_params():,} parameters, input {model.input_shape}")
    if spread:
        describe(spread, model.variables)
    claim(arguments)
    recipe = RECIPES[arguments.recipe]
    if arguments.learning_rate is not None:
        recipe = dataclasses.replace(recipe, learning_rate=arguments.learning_rate)
    optimizer = make_optimizer(recipe, arguments.batch, arguments.epochs * len(train))
    loss = keras.losses.CategoricalCrossentropy
    smoothed = loss(from_logits=True, label_smoothing=arguments.label_smoothing)
    model.compile(optimizer, smoothed, metrics=["accuracy"])
    model.fit(
        train,
        validation_data=validation,
        epochs=arguments.epochs,
        callbacks=make_callbacks(arguments.output, recipe),
        verbose=2 if arguments.quiet else 1,
        shuffle=False,  # the data set does it
    )
    model.load_weights(arguments.output / "best.weights.h5")
    model.optimizer.finalize_variable_values(model.trainable_variables)

    keras.distribution.set_distribution(None)
    best = network(arguments, *shape_and_classes)  # on one device, and without an optimizer
    best.set_weights(model.get_weights())
    path = arguments.output / "model.keras"
    best.save(path)
    figures = []
    for model in (best, keras.saving.load_model(path)):
        model.compile(loss=loss(from_logits=True), metrics=["accuracy"])
        figures.append(model.evaluate(test, verbose=0))
    print("Test split: loss {:.4f}, accuracy {:.2%}".format(*figures[1]))
    if not np.allclose(*figures, rtol=1e-4, equal_nan=True):
        refuse(f"{path} must be as good as the model that it was saved from.", figures)


if __name__ == "__main__":
    main()
