"""A classification set of TensorFlow Datasets as batches for `train.py`."""

import math

import keras
import numpy as np

FEATURES = ("image", "label")
PREPARE = """`--data` must hold the prepared data set. With a network, this prepares it:
python -c "import tensorflow_datasets as tfds; \
tfds.builder('{name}', data_dir='{folder}').download_and_prepare()"
{other}Received: --dataset {name} --data {folder}"""
PREPARE_OTHERWISE = {
    "fashion_mnist": "Debian's package needs none: "
    "python examples/fashion_mnist.py --data {folder}\n"
}


def refuse(rule, received):
    raise SystemExit(f"{rule} Received: {received}")


def prepared(name, folder):
    """Gives the builder of a data set that lies in the folder; the digits are put there."""
    import tensorflow_datasets as tfds

    received = f"--dataset {name} --data {folder}"
    if name == "digits":
        import digits

        tfds.disable_progress_bar()
        builder = digits.Digits(data_dir=str(folder))
        builder.download_and_prepare()
    else:
        try:
            builder = tfds.builder(name, data_dir=str(folder))
        except (AssertionError, ValueError, tfds.core.registered.DatasetNotFoundError):
            refuse("`--dataset` must be a name that TensorFlow Datasets knows.", received)
    if not builder.data_path.exists():
        other = PREPARE_OTHERWISE.get(name, "").format(folder=folder)
        raise SystemExit(PREPARE.format(name=name, folder=folder, other=other))
    features = dict(builder.info.features.items())
    if "image" not in features or not isinstance(features.get("label"), tfds.features.ClassLabel):
        refuse("`--dataset` must have an image and a label, a class.", f"{received}: {features}")
    if builder.info.file_format.value != "tfrecord":
        refuse("`--data` must be in tfrecord.", f"{received}: {builder.info.file_format.value}")
    return builder


def load(arguments, drop_remainder):
    """Reads the data set as batches of images in [0, 1] with one-hot labels.

    Returns:
        The batches to train on, those to choose the best epoch by, which end the training split,
        and those of the test split; the shape of an image, and the number of classes.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    if keras.backend.backend() != "tensorflow" and tf.config.get_visible_devices("GPU"):
        tf.config.set_visible_devices([], "GPU")  # their memory is for the network
    builder = prepared(arguments.dataset, arguments.data)
    image, label = (builder.info.features[name] for name in FEATURES)
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    test_split = arguments.test_split or ("test" if "test" in counts else "validation")
    if not {"train", test_split} <= counts.keys():
        refuse("`--dataset` must have the splits `train` and `--test-split`.", list(counts))
    config = tfds.ReadConfig(shuffle_seed=arguments.seed)
    kept = counts["train"] - counts["train"] * arguments.validation_percent // 100

    def read(split, start, stop, shuffle=False):
        stop = min(stop, start + arguments.images) if arguments.images else stop
        part = f"{split}[{start}:{stop}]"
        dataset = builder.as_dataset(split=part, shuffle_files=shuffle, read_config=config)
        return dataset.map(lambda example: [example[name] for name in FEATURES])

    train = read("train", 0, kept, shuffle=True)
    if isinstance(image, tfds.features.Image) and np.dtype(image.np_dtype).kind == "u":
        largest = np.iinfo(image.np_dtype).max
    else:  # an array that need not fill its type, such as the digits' bytes from 0 to 16
        maxima = train.map(lambda x, _: tf.reduce_max(tf.cast(x, "float32")))
        largest = maxima.reduce(0.0, tf.maximum).numpy()
    side = arguments.image_size or (224 if None in image.shape else None)
    resize = keras.layers.Resizing(side, side, crop_to_aspect_ratio=True, dtype="float32")

    def scaled(x, y):
        x = tf.cast(x, "float32") / float(largest)
        return resize(x) if side else x, tf.one_hot(y, label.num_classes)

    def batches(dataset, drop_remainder):
        dataset = dataset.map(scaled, tf.data.AUTOTUNE)
        return dataset.batch(arguments.batch, drop_remainder)

    gibibyte = 2**30 // math.prod(side or 512 for side in image.shape)
    train = batches(train.shuffle(min(kept, gibibyte), arguments.seed), True)
    for layer in augmentation(arguments):
        train = train.map(lambda x, y, layer=layer: (layer(x, training=True), y), tf.data.AUTOTUNE)
    validation = batches(read("train", kept, counts["train"]), drop_remainder)
    if not len(train) or not len(validation):
        refuse("`--batch` must leave a batch to train on and one to validate.", arguments.batch)
    test = batches(read(test_split, 0, counts[test_split]), False)
    shape = (side, side, image.shape[-1]) if side else image.shape
    sets = (dataset.prefetch(tf.data.AUTOTUNE) for dataset in (train, validation, test))
    return *sets, shape, label.num_classes


def augmentation(arguments):
    """Gives the layers that change each image that is trained on."""
    options = {"seed": arguments.seed, "dtype": "float32"}
    if arguments.shift:
        factors = (arguments.shift, arguments.shift)
        yield keras.layers.RandomTranslation(*factors, fill_mode="constant", **options)
    if arguments.flip:
        yield keras.layers.RandomFlip("horizontal", **options)
