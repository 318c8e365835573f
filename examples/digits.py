"""The handwritten digits that scikit-learn packages, with a fifth held out."""

import importlib.util
import pathlib

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HAS_TFDS = importlib.util.find_spec("tensorflow_datasets") is not None


def digits_by_split():
    """Splits the digits, stratified by label and with a fixed seed.

    Returns:
        A dict of `(images, labels)` under `"train"` and `"test"`: unsigned bytes from 0 to 16 of
        the shape `(count, 8, 8, 1)`, and integers.
    """
    digits = load_digits()
    images = digits.images.astype("uint8")[..., None]
    train, test, train_labels, test_labels = train_test_split(
        images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    return {"train": (train, train_labels), "test": (test, test_labels)}


if HAS_TFDS:
    import tensorflow_datasets as tfds

    class Digits(tfds.core.GeneratorBasedBuilder):
        """Builds the digits from the installed package, without a network."""

        VERSION = tfds.core.Version("1.0.0")
        # TFDS looks for metadata files beside the class; this one has none.
        pkg_dir_path = pathlib.Path(__file__).parent

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="Handwritten digits of 8 x 8 pixels, as scikit-learn packages them.",
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                        "label": tfds.features.ClassLabel(num_classes=10),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {
                split: self._generate_examples(*arrays)
                for split, arrays in digits_by_split().items()
            }

        def _generate_examples(self, images, labels):
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield index, {"image": image, "label": int(label)}


def load(folder):
    """Gives the digits as arrays, through TensorFlow Datasets where that is installed.

    Args:
        folder: Path, where TensorFlow Datasets keeps the prepared data.

    Returns:
        The images of both splits in [0, 1], their labels, and a line that says how they came:
        `(train, train_labels), (test, test_labels), line`.
    """
    if HAS_TFDS:
        builder = Digits(data_dir=str(folder), file_format="array_record")
        builder.download_and_prepare()
        splits = {split: _arrays(builder.as_data_source(split)) for split in ("train", "test")}
        line = f"TensorFlow Datasets, {builder.info.full_name}, as array_record"
    else:
        splits = digits_by_split()
        line = "arrays from scikit-learn (tensorflow_datasets is not installed)"
    train, test = (
        (images.astype("float32") / 16, labels.astype("int32"))
        for images, labels in (splits["train"], splits["test"])
    )
    return train, test, line


def _arrays(source):
    examples = [source[index] for index in range(len(source))]
    return tuple(np.stack([example[name] for example in examples]) for name in ("image", "label"))
