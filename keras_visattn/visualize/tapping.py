"""Listens to the calls of layers inside a model, and leaves the model as it was."""

import contextlib
import threading

import keras
import numpy as np

_lock = threading.RLock()


@contextlib.contextmanager
def tapped(taps):
    """Puts functions round the calls of layers, for this thread and while it lasts.

    It reaches layers in any model, also those that a graph does not show. Other threads that call
    the model at the same time get what they would have got.

    Args:
        taps: Dictionary, a function `tap(call, *args, **kwargs)` for each layer; `call` is the
            layer's own.
    """
    thread = threading.get_ident()

    def around(layer, tap):
        own = getattr(layer, _entry(layer))

        def call(*args, **kwargs):
            if threading.get_ident() != thread:
                return own(*args, **kwargs)
            return tap(own, *args, **kwargs)

        return call

    with _lock:
        before = {layer: vars(layer).get(_entry(layer)) for layer in taps}
        try:
            for layer, tap in taps.items():  # past the bookkeeping of Keras: nothing is tracked
                vars(layer)[_entry(layer)] = around(layer, tap)
            yield
        finally:
            for layer, call in before.items():
                if call is None:
                    vars(layer).pop(_entry(layer), None)
                else:
                    vars(layer)[_entry(layer)] = call


def _entry(layer):
    quantized = getattr(layer, "quantization_mode", None) is not None
    return "quantized_call" if quantized else "call"


def in_batches(function, inputs, batch_size, verbose):
    """Applies a function to batches of arrays, and joins what it gives.

    Args:
        function: Function of a batch, in the structure of `inputs`, that gives a structure of
            tensors.
        inputs: Array or structure of arrays, one leading axis.
        batch_size: Integer.
        verbose: 1 shows the progress, 0 does not, `"auto"` does if there are several batches.

    Returns:
        The structure, of arrays.
    """
    count = len(keras.tree.flatten(inputs)[0])
    starts = range(0, max(count, 1), batch_size)
    shown = verbose == 1 or (verbose == "auto" and len(starts) > 1)
    bar = keras.utils.Progbar(len(starts), unit_name="batch") if shown else None
    found = []
    for number, start in enumerate(starts, 1):
        batch = keras.tree.map_structure(lambda x, s=start: x[s : s + batch_size], inputs)
        found.append(keras.tree.map_structure(keras.ops.convert_to_numpy, function(batch)))
        if bar is not None:
            bar.update(number)
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *found)
