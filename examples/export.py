"""Trains a small network, exports it, runs the file in the format's own runtime, and compares.

The exported file takes any number of images. Run it with

    python examples/export.py --format onnx --output runs/export

Formats: tf_saved_model (TensorFlow, JAX), onnx (all backends), openvino (TensorFlow, PyTorch),
litert (TensorFlow), torch (PyTorch).
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

from keras_visattn.layers import CBAM, LocalSelfAttention2D

FILES = {
    "tf_saved_model": "saved_model",
    "onnx": "model.onnx",
    "openvino": "model.xml",
    "litert": "model.tflite",
    "torch": "model.pt2",
}
OFFERED = {
    "tensorflow": ("tf_saved_model", "onnx", "openvino", "litert"),
    "jax": ("tf_saved_model", "onnx"),
    "torch": ("onnx", "openvino", "torch"),
}


def network():
    images = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(16, 3, padding="same", use_bias=False)(images)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    x = CBAM(reduction_ratio=4, kernel_size=3)(x)
    x = keras.layers.ReLU()(LocalSelfAttention2D(16, 3, num_heads=4)(x))
    return keras.Model(images, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def export(model, file_format, folder, shapes, sample):
    """Exports a functional model.

    Args:
        model: `keras.Model`.
        file_format: One of `FILES`.
        folder: Path, where the file goes.
        shapes: List of shapes, one an input; a size that may change is `None`.
        sample: List of shapes without `None`, which PyTorch traces a `.pt2` with.

    Returns:
        The path of the file.
    """
    path = pathlib.Path(folder) / FILES[file_format]
    arguments = {"format": file_format, "verbose": False}
    if file_format == "torch":
        import torch

        sizes = [
            {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(shape) if size is None}
            for shape in shapes
        ]
        if any(sizes):
            arguments["dynamic_shapes"] = [(sizes[0] if len(sizes) == 1 else sizes,)]
        shapes = sample
    specs = [
        keras.InputSpec(shape=shape, dtype=x.dtype, name=x.name)
        for shape, x in zip(shapes, model.inputs, strict=True)
    ]
    model.export(str(path), input_signature=specs if len(specs) == 1 else [specs], **arguments)
    return path


def runtime(file_format, path):
    """Opens a file in its runtime, and gives a function of a list of arrays."""
    return RUNTIMES[file_format](str(path))


def _tensorflow(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(path)  # it owns the variables
    return lambda arrays: loaded.serve(arrays if len(arrays) > 1 else arrays[0]).numpy()


def _onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


def _openvino(path):
    import openvino

    # By default it may compute in bfloat16.
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda arrays: compiled(arrays)[0]


def _litert(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    inputs = sorted(interpreter.get_input_details(), key=lambda x: x["name"])
    (output,) = interpreter.get_output_details()

    def run(arrays):
        for x, array in zip(inputs, arrays, strict=True):
            interpreter.resize_tensor_input(x["index"], array.shape)
        interpreter.allocate_tensors()
        for x, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(x["index"], array)
        interpreter.invoke()
        return interpreter.get_tensor(output["index"])

    return run


def _torch(path):
    import torch

    module = torch.export.load(path).module()

    def run(arrays):
        tensors = [torch.from_numpy(x) for x in arrays]
        with torch.no_grad():
            return module(tensors if len(tensors) > 1 else tensors[0]).numpy()

    return run


RUNTIMES = {
    "tf_saved_model": _tensorflow,
    "onnx": _onnx,
    "openvino": _openvino,
    "litert": _litert,
    "torch": _torch,
}


def main():
    offered = OFFERED[keras.backend.backend()]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--format", choices=offered, default="onnx")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/export"))
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)

    train, (images, labels), line = digits.load(arguments.output / "data")
    print(f"data: {line}")
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    model.fit(*train, batch_size=64, epochs=arguments.epochs, verbose=0)

    shape = images.shape[1:]
    path = export(model, arguments.format, arguments.output, [(None, *shape)], [(2, *shape)])
    run = runtime(arguments.format, path)
    for count in (1, 7, len(images)):
        logits = model.predict(images[:count], verbose=0)
        exported = run([images[:count]])
        difference = np.abs(exported - logits).max()
        accuracy = np.mean(exported.argmax(-1) == labels[:count])
        print(f"{count:4} images: accuracy {accuracy:.3f}, largest difference {difference:.1e}")
        if difference > 1e-4:
            raise SystemExit(f"{path} does not answer as the model does.")
    print(f"{arguments.format} in {path}")


if __name__ == "__main__":
    main()
