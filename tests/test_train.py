"""The training recipe ends, goes on after a kill, distributes, and says what it lacks."""

import csv
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds

EXAMPLES = Path(__file__).parents[1] / "examples"
BACKEND = keras.backend.backend()


class Noise(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Pictures of several sizes in two classes: somebody's own data, known by its files only."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent
    label = tfds.features.ClassLabel(num_classes=2)

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": self.label}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(40), "validation": self._generate_examples(8)}

    def _generate_examples(self, count):
        generator = np.random.default_rng(0)
        for index in range(count):
            shape = (*generator.integers(20, 30, 2), 3)
            image = generator.integers(0, 256, shape, "uint8")
            yield index, {"image": image, "label": index % 2}


class Unlabelled(Noise, skip_registration=True):
    label = tfds.features.Scalar(np.int64)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def train(monkeypatch):
    """Gives the example, whose `main` takes the command line here."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import train

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, options)])
        return main()

    main = train.main
    monkeypatch.setattr(train, "main", run)
    yield train
    keras.config.set_dtype_policy("float32")


def start(*options):
    """Runs the example in a process of its own."""
    command = [sys.executable, EXAMPLES / "train.py", "--quiet", *map(str, options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}, **pipes)


def finish(process):
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    return text


def rows(output):
    path = output / "log.csv"
    table = csv.DictReader(path.read_text().splitlines()) if path.exists() else ()
    return [{name: float(value) for name, value in row.items()} for row in table]


# Protocol buffers that TensorFlow Datasets reads, and files that it leaves to the collector
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
class TestInProcess:
    def test_training_ends_with_its_files(self, train, data, tmp_path, capsys):
        options = ["--output", tmp_path, "--data", data, "--images", 96, "--batch", 32]
        options += ["--epochs", 2, "--recipe", "local", "--label-smoothing", 0.1, "--quiet"]
        train.main(*options)
        text = capsys.readouterr().out
        log = rows(tmp_path)
        assert [row["epoch"] for row in log] == [0, 1]
        assert [row["iterations"] for row in log] == [3, 6]
        assert log[-1]["learning_rate"] == 0
        assert "Test split: loss" in text
        model = keras.saving.load_model(tmp_path / "model.keras")
        assert model.input_shape == (None, 8, 8, 1) and model.output_shape == (None, 10)
        assert bool(importlib.util.find_spec("tensorboard")) == (tmp_path / "tensorboard").exists()

        train.main(*options)  # there is nothing left to do but to evaluate
        assert rows(tmp_path) == log
        assert capsys.readouterr().out.splitlines()[-1] == text.splitlines()[-1]
        with pytest.raises(SystemExit, match=r"`--output` must be new.* Received: "):
            train.main(*options, "--epochs", 3)

    def test_own_data_of_several_sizes(self, train, data, tmp_path):
        Noise(data_dir=data).download_and_prepare()
        options = ["--output", tmp_path, "--data", data, "--dataset", "noise", "--flip"]
        options += ["--attention", "none", "--argument", "dropout=0.1", "--epochs", 1]
        options += ["--image-size", 16, "--batch", 4, "--images", 8, "--quiet"]
        train.main(*options, "--precision", "mixed_bfloat16")
        model = keras.saving.load_model(tmp_path / "model.keras")
        assert model.input_shape == (None, 16, 16, 3) and model.output_shape == (None, 2)
        assert model.layers[-1].compute_dtype == "bfloat16"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("--dataset nonsense", r"must be a name .* Received: --dataset nonsense"),
            ("--dataset mnist", r"builder\('mnist', data_dir='.*'\)\.download_and_prepare\(\)"),
            ("--dataset fashion_mnist", r"python examples/fashion_mnist\.py --data /"),
            ("--dataset unlabelled", r"must have an image and a label.* Received: "),
            ("--test-split nonsense", r"splits .* Received: \['train', 'test'\]|\['test', 'train'"),
            ("--batch 2000", r"must leave a batch .* Received: 2000"),
            ("--attention nonsense", r"WideResNet: `attention` must be .* Received: "),
            ("--argument nonsense=1", r"WideResNet: .*nonsense"),
            ("--argument classes=3", r"WideResNet: .*classes"),
            ("--depth 11", r"WideResNet: `depth` must be .* Received: depth=11"),
            ("--network mnasnet --depth 18", r"the sizes that it has\. Received: .*'depth': 18"),
        ],
    )
    def test_bad_arguments_are_refused(self, train, data, tmp_path, options, message):
        if "unlabelled" in options:
            Unlabelled(data_dir=data).download_and_prepare()
        with pytest.raises(SystemExit, match=f"(?s){message}"):
            train.main("--output", tmp_path, "--data", data, *options.split())
        assert not list(tmp_path.iterdir())  # the folder stays free for the right ones


@pytest.mark.parametrize("option", ["--width=1x", "--argument=position=relative", "--recipe=mine"])
def test_unreadable_arguments_are_refused(train, tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        train.main("--output", tmp_path, option)
    assert f"error: argument {option.split('=')[0]}: invalid" in capsys.readouterr().err


def test_missing_packages_are_named(train, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: found(name) if name != "sklearn" else None
    )
    with pytest.raises(SystemExit, match=r"keras_visattn\[train\].* Received: no sklearn"):
        train.main("--output", tmp_path)


@pytest.mark.parametrize(
    ("recipe", "rates"),
    [
        ("cbam", {0: 0.1, 29: 0.1, 31: 0.01, 61: 0.001, 89: 0.001}),
        ("augmented", {0: 0.0, 2: 0.064, 5: 0.128, 28: 0.0128, 55: 1.28e-3, 89: 1.28e-5}),
        ("augmented-cifar", {0: 0.0, 2: 0.1, 4: 0.2, 47: 0.1, 90: 0.0}),
        ("local", {0: 0.0, 7: 0.1, 90: 0.0}),
    ],
)
def test_rates_follow_the_papers(train, recipe, rates):
    optimizer = train.make_optimizer(train.RECIPES[recipe], batch=256, steps=90)
    for step, rate in rates.items():
        optimizer.iterations.assign(step)
        np.testing.assert_allclose(float(optimizer.learning_rate), rate, rtol=1e-4, atol=1e-8)
    assert optimizer.use_ema == optimizer.nesterov == (recipe == "local")


def test_killed_training_goes_on(data, tmp_path):
    epochs, steps = 8, 5
    options = ["--output", tmp_path, "--data", data, "--images", 160, "--batch", 32]
    options += ["--attention", "none", "--epochs", epochs]
    process = start(*options)
    deadline = time.monotonic() + 300
    while len(rows(tmp_path)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    text = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, text
    before = rows(tmp_path)
    assert 2 <= len(before) < epochs

    text = finish(start(*options))
    after = rows(tmp_path)
    assert "Epoch 1/" not in text and f"Epoch {epochs}/" in text
    assert [row["epoch"] for row in after] == list(range(epochs))
    assert [row["iterations"] for row in after] == [steps * (n + 1) for n in range(epochs)]
    rates = [row["learning_rate"] for row in after]
    assert rates == sorted(rates, reverse=True)
    assert after[: len(before) - 1] == before[:-1]  # the last had perhaps no backup yet
    resumed, last, first = after[len(before)], before[-1], before[0]
    assert resumed["loss"] < last["loss"] + 0.2 * (first["loss"] - last["loss"])


@pytest.mark.skipif(BACKEND == "jax", reason="JAX distributes")
@pytest.mark.parametrize("option", ["--distribute=data", "--simulated-devices=8"])
def test_other_backends_refuse_several_devices(train, tmp_path, option):
    with pytest.raises(SystemExit, match=f"Received: KERAS_BACKEND={BACKEND}"):
        train.main("--output", tmp_path, option)


@pytest.mark.skipif(BACKEND != "jax", reason="Keras distributes on JAX only")
def test_devices_share_the_work(data, tmp_path):
    options = ["--data", data, "--images", 64, "--batch", 32, "--epochs", 1, "--shift", 0]
    options += ["--attention", "none", "--simulated-devices", 8]
    ways = {"none": [], "data": ["--distribute", "data"], "model": ["--distribute", "model"]}
    ways["model"] += ["--shards", 4]
    text = {way: finish(start("--output", tmp_path / way, *options, *ways[way])) for way in ways}
    assert "8 devices, 8 batch: 0 of " in text["data"]
    assert "8 devices, 2 batch x 1 rows x 4 channels: 9 of " in text["model"]
    losses = [rows(tmp_path / way)[0]["loss"] for way in ways]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-4)
    kernels = [
        keras.saving.load_model(tmp_path / way / "model.keras").get_layer("predictions").kernel
        for way in ways
    ]
    for kernel in kernels[1:]:
        np.testing.assert_allclose(kernel, kernels[0], rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(BACKEND != "jax", reason="Keras distributes on JAX only")
def test_devices_must_be_enough(train, tmp_path):
    with pytest.raises(SystemExit, match=r"Received: \d devices, --shards 16, --batch 64"):
        train.main("--output", tmp_path, "--distribute", "model", "--shards", 16)
