"""Fashion-MNIST from Debian's package `dataset-fashion-mnist`, through TensorFlow Datasets.

70,000 photographs of clothes, 28 x 28 grey pixels, ten classes, under the MIT licence (Xiao et al.,
2017, https://arxiv.org/abs/1708.07747). `apt install dataset-fashion-mnist` puts four archives on
the disk; this hands them to the official builder `fashion_mnist`, once. Run it with

    python examples/fashion_mnist.py --data runs/data
"""

import argparse
import gzip
import pathlib
import shutil
import tempfile
from unittest import mock

import numpy as np

ARCHIVES = pathlib.Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts them


def builder_of(data, archives=ARCHIVES):
    """Gives the official builder, its data prepared in the folder `data`."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("fashion_mnist", data_dir=str(data))
    if builder.info.splits:
        return builder
    if not sorted(archives.glob("*-ubyte.gz")):
        raise SystemExit(
            "Fashion-MNIST must be prepared in `--data`, or its four archives must lie in "
            "`--archives`: `apt install dataset-fashion-mnist`, or `apt-get download` it, "
            "`dpkg -x` it into a folder and name that folder's usr/share/datasets/fashion-mnist. "
            f"Received: data={data}, archives={archives}"
        )
    with tempfile.TemporaryDirectory() as folder:

        def unpack(_, addresses):
            return {
                role: _unpacked(archives / address.rpartition("/")[-1], pathlib.Path(folder))
                for role, address in addresses.items()
            }

        # The builder can only download: it gets what it would have downloaded.
        with mock.patch.object(tfds.download.DownloadManager, "download_and_extract", unpack):
            builder.download_and_prepare()
    return builder


def _unpacked(archive, folder):
    path = folder / archive.stem
    with gzip.open(archive) as packed, path.open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    return str(path)


def load(data, archives=ARCHIVES):
    """Gives both splits as arrays: images in [0, 1] of the shape `(count, 28, 28, 1)`, labels.

    Returns:
        `(train, train_labels), (test, test_labels), names`, the names of the ten classes.
    """
    import tensorflow_datasets as tfds

    builder = builder_of(data, archives)
    splits = builder.as_dataset(["train", "test"], batch_size=-1, as_supervised=True)
    train, test = (
        (images.astype("float32") / 255, labels.astype("int32"))
        for images, labels in tfds.as_numpy(splits)
    )
    return train, test, builder.info.features["label"].names


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("runs/data"))
    parser.add_argument("--archives", type=pathlib.Path, default=ARCHIVES)
    arguments = parser.parse_args()
    (images, labels), (test, _), names = load(arguments.data, arguments.archives)
    print(f"{len(images)} images to train on, {len(test)} to test on, in {arguments.data}.")
    print(", ".join(f"{n} {name}" for n, name in zip(np.bincount(labels), names, strict=True)))


if __name__ == "__main__":
    main()
