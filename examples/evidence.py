"""Which attention helps where: small networks on real images, with several seeds each.

Trains the networks of `evidence_networks.py` on all of Fashion-MNIST, with the same budget, and
some of them on clothes placed on textures in colour (`placed_clothes.py`), where it is known where
a network should look. Every run is a line of a CSV file: a second call goes on where the first was
stopped. Then it writes the tables and draws the figures. Run it with

    python examples/evidence.py --output runs/evidence

It takes about an hour on 2 cores; `--long` trains wider networks for longer, on a GPU.
"""

import argparse
import concurrent.futures
import csv
import functools
import importlib.util
import multiprocessing
import os
import pathlib
import time
from typing import NamedTuple

if "KERAS_BACKEND" not in os.environ:
    backends = ("jax", "torch", "tensorflow")
    os.environ["KERAS_BACKEND"] = next(b for b in backends if importlib.util.find_spec(b))

import evidence_networks
import evidence_report
import fashion_mnist
import keras
import numpy as np
import placed_clothes

from keras_visattn import complexity, visualize
from keras_visattn.layers import CBAM

BATCH = 128
LEARNING_RATE = 3e-3


class Form(NamedTuple):
    """How much work goes into the evidence."""

    seeds: int
    width: int
    epochs: int
    placed_epochs: int
    placed_images: int


SHORT = Form(seeds=3, width=16, epochs=1, placed_epochs=3, placed_images=10_000)
LONG = Form(seeds=5, width=64, epochs=20, placed_epochs=20, placed_images=60_000)
PLACED_VARIANTS = ("convolution", "squeeze-excite", "CBAM", "CBAM, spatial only")


class Task(NamedTuple):
    """One training run."""

    data: str
    variant: str
    seed: int


class Settings(NamedTuple):
    """What all runs share."""

    form: Form
    data: pathlib.Path
    archives: pathlib.Path


@functools.cache
def load(data, settings):
    """Gives train images and labels, test images and labels, and the boxes of the test images."""
    if data == "fashion_mnist":
        train, test, _ = fashion_mnist.load(settings.data, settings.archives)
        return *train, *test, None
    *train, test_images, test_labels, _ = load("fashion_mnist", settings)
    images, labels, _ = placed_clothes.place(*train, settings.form.placed_images, seed=0)
    return images, labels, *placed_clothes.place(test_images, test_labels, 2_000, seed=1)


def run(task, settings):
    """Trains and measures one network; gives a line of the table."""
    images, labels, test_images, test_labels, boxes = load(task.data, settings)
    placed = boxes is not None
    epochs = settings.form.placed_epochs if placed else settings.form.epochs
    keras.utils.set_random_seed(task.seed)
    variant = evidence_networks.VARIANTS[task.variant]
    shape = images.shape[1:]
    model = evidence_networks.network(variant, shape, 10, settings.form.width)
    cost = complexity.profile(model)
    steps = epochs * -(-len(images) // BATCH)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    start = time.perf_counter()
    model.fit(images, labels, batch_size=BATCH, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - start
    loss, accuracy = model.evaluate(test_images, test_labels, batch_size=500, verbose=0)
    line = {
        **task._asdict(),
        "width": settings.form.width,
        "epochs": epochs,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "seconds": round(seconds, 1),
        "loss": round(loss, 5),
        "accuracy": round(accuracy, 5),
    }
    return line | (where_it_looks(model, test_images, boxes) if placed else {})


def where_it_looks(model, images, boxes, count=500):
    """Measures how much of what a network looks at lies in the boxes of the first images."""
    images, boxes = images[:count], boxes[:count]
    maps = {
        f"grad_cam_{stage}": visualize.grad_cam(model, images, stage, batch_size=100, verbose=0)
        for stage in ("stage2", "stage3")
    }
    if any(isinstance(layer, CBAM) and layer.spatial for layer in model.layers):
        found = visualize.attention_maps(model, images[:100], batch_size=100, verbose=0)
        side = images.shape[1]
        # a gate lets everything through to a degree: what counts is what it lets through more
        gates = [layer["spatial"] for layer in found.values()]
        gates = [gate - gate.min(axis=(1, 2), keepdims=True) for gate in gates]
        gates = [gate.repeat(side // gate.shape[1], 1) for gate in gates]
        maps["gate"] = np.mean([gate.repeat(side // gate.shape[2], 2) for gate in gates], axis=0)
    line = {"box_share": round(float(placed_clothes.inside(boxes, images.shape).mean()), 4)}
    for name, values in maps.items():
        masks = placed_clothes.inside(boxes[: len(values)], images.shape)
        totals = values.sum(axis=(1, 2))
        seen = totals > 0
        shares = (values * masks).sum(axis=(1, 2))[seen] / totals[seen]
        line[f"{name}_inside"] = round(float(shares.mean()), 4)
    return line


def use_one_core(counter):
    """Gives a worker one core of its own."""
    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})


COLUMNS = [
    *Task._fields,
    *("width", "epochs", "parameters", "macs", "seconds", "loss", "accuracy", "box_share"),
    *("grad_cam_stage2_inside", "grad_cam_stage3_inside", "gate_inside"),
]


def add(line, path):
    """Adds a line to the CSV file."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(line)


def run_all(tasks, settings, path, jobs):
    """Runs what is not yet in the CSV file, and adds each line to it as it comes."""
    done = set()
    if path.exists():
        lines = evidence_report.read(path)
        widths = {line["width"] for line in lines}
        if widths - {settings.form.width}:
            raise SystemExit(
                f"{path} must hold runs of the same form; choose another `--output`. "
                f"Received: width={settings.form.width}, there {sorted(widths)}"
            )
        done = {Task(*(line[name] for name in Task._fields)) for line in lines}
    tasks = [task for task in tasks if task not in done]
    context = multiprocessing.get_context("spawn")
    pin = {} if jobs == 1 else {"initializer": use_one_core, "initargs": (context.Value("i", 0),)}
    bar = keras.utils.Progbar(len(tasks), unit_name="run")
    with concurrent.futures.ProcessPoolExecutor(jobs, context, **pin) as pool:
        runs = [pool.submit(run, task, settings) for task in tasks]
        try:
            for number, finished in enumerate(concurrent.futures.as_completed(runs), 1):
                add(finished.result(), path)
                bar.update(number)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what is lost shows at once
            raise


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/evidence"))
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("runs/data"))
    parser.add_argument("--archives", type=pathlib.Path, default=fashion_mnist.ARCHIVES)
    parser.add_argument("--long", action="store_true", help="wider, longer, more seeds")
    parser.add_argument("--seeds", type=int, help="another number of seeds")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side; 1 on a GPU")
    parser.add_argument("--only", help="runs whose `data: variant` holds this")
    parser.add_argument("--report", action="store_true", help="tables and figures of what there is")
    parser.add_argument("--write", type=pathlib.Path, help="page that ends with the tables")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "runs.csv"
    if not arguments.report:
        fashion_mnist.builder_of(arguments.data, arguments.archives)
        form = LONG if arguments.long else SHORT
        settings = Settings(form, arguments.data.resolve(), arguments.archives.resolve())
        variants = {
            "fashion_mnist": [
                name
                for name in evidence_networks.VARIANTS
                if arguments.long or name not in evidence_networks.LONG
            ],
            "placed": PLACED_VARIANTS,
        }
        tasks = [
            Task(data, variant, seed)
            for seed in range(arguments.seeds or form.seeds)
            for data in variants
            for variant in variants[data]
            if (arguments.only or "") in f"{data}: {variant}"
        ]
        if arguments.jobs > 1:  # before a worker loads what reads it
            os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")
        run_all(tasks, settings, path, arguments.jobs)
    print(evidence_report.write(path, arguments.output, arguments.write))


if __name__ == "__main__":
    main()
