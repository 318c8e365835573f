"""Trains and predicts for long, with images and batches of varying sizes: does memory grow?

A small network of every attention and one of convolutions alone, its peer, each in a process of
its own: 2,000 steps of `fit`, then 2,000 calls of `predict`. At ten points of each the process
notes its resident memory and how many programs were compiled. Run it with

    python examples/soak.py --output runs/soak

`--setting` chooses backends, `--small` tries the command. The numbers must keep to the bounds that
`broken` states, or the command fails. `--records runs/soak/soak.json` prints the table of a run
that was made, `--write` writes it into a page.
"""

import argparse
import gc
import importlib.util
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

from pages import write_between

SETTINGS = {  # the backend, and whether XLA compiles the model
    "TensorFlow": ("tensorflow", False),
    "TensorFlow with XLA": ("tensorflow", True),
    "JAX": ("jax", True),
    "PyTorch": ("torch", False),
}
NETWORKS = ("attention", "convolution")
SIZES = ((16, 16), (24, 20), (16, 28), (32, 32))
BATCHES = (2, 4, 8)
POINTS = 10
GROWTH = 16 * 2**20  # bytes, what the second half may add to the resident memory
TRACES = 4  # times that TensorFlow may trace the model for each of the two phases
OTHERS = 20  # programs of JAX that are not the model's step
MARKS = "<!-- table of examples/soak.py -->", "<!-- end of table -->"


def shapes_of(small):
    """Gives the batches' shapes. TensorFlow learns from the first two which sizes vary."""
    shapes = [
        (BATCHES[(number + turn) % len(BATCHES)], *SIZES[number], 3)
        for turn in range(len(BATCHES))
        for number in range(len(SIZES))
    ]
    return shapes[:2] if small else shapes


# From here to `run`, the functions run in the process of one backend. Keras takes its backend at
# import, and the process that starts the others must not import it.


def network(name, dropout=0.0):
    import keras

    from keras_visattn import layers

    images = keras.Input((None, None, 3))
    if name == "convolution":
        x = keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(images)
        for _ in range(4):
            x = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    else:
        x = layers.LocalAttentionStem2D(16, num_heads=2, num_mixtures=2, pool_size=2)(images)
        x = layers.LocalSelfAttention2D(16, 5, num_heads=4)(x)
        x = layers.CBAM(reduction_ratio=4, kernel_size=3)(x)
        x = layers.AugmentedConv2D(
            16, 3, total_key_dim=8, total_value_dim=8, num_heads=2, max_height=16, max_width=16
        )(x)
        positions = layers.RelativePositionEmbedding2D(max_height=16, max_width=16)
        heads = layers.MultiHeadAttention(2, 8, dropout=dropout, position_embedding=positions)
        x = keras.layers.Add()([x, heads(x, x)])
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(10)(x))


def resident():
    """The memory that this process holds, where Linux counts it."""
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def counter(backend, model):
    """Gives a function that says how many programs there are: JAX's own count, TensorFlow's traces.

    PyTorch compiles none.
    """
    if backend == "jax":
        import jax

        compiled = []

        def listen(event, *_, **__):
            if event == "/jax/core/compile/backend_compile_duration":
                compiled.append(event)

        jax.monitoring.register_event_duration_secs_listener(listen)
        return lambda: len(compiled)
    if backend == "tensorflow":  # Python runs the model only while TensorFlow traces it
        calls, call = [], model.call

        def counted(*arguments, **options):
            calls.append(None)
            return call(*arguments, **options)

        model.call = counted
        return lambda: len(calls)
    return lambda: 0


def soak(setting, name, steps, predictions, small, rows):
    """Trains and predicts; writes a line of numbers for each point."""
    import keras
    import numpy as np

    backend, jit_compile = SETTINGS[setting]
    keras.utils.set_random_seed(0)
    model = network(name)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=jit_compile)
    programs, shapes = counter(backend, model), shapes_of(small)
    draw = np.random.default_rng(0)
    batches = [
        (draw.normal(size=shape).astype("float32"), draw.integers(10, size=shape[:1]))
        for shape in shapes
    ]

    def note(phase, done, of):
        if done % max(1, of // POINTS):
            return
        row = {
            "setting": setting,
            "network": name,
            "phase": phase,
            "done": done,
            "resident_bytes": resident(),
            "programs": programs(),
        }
        mib = row["resident_bytes"] / 2**20
        print(f"{setting} {name} {phase} {done}: {mib:.1f} MiB, {row['programs']} programs")
        print(json.dumps(row), file=rows, flush=True)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return steps

        def __getitem__(self, index):
            return batches[index % len(batches)]

    class Notes(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            note("train", batch + 1, steps)

    note("train", 0, steps)
    model.fit(Batches(), shuffle=False, verbose=0, callbacks=[Notes()])
    note("predict", 0, predictions)
    for number in range(predictions):
        images, _ = batches[number % len(batches)]
        answers = model.predict(images, verbose=0)
        if answers.shape != (len(images), 10) or not np.isfinite(answers).all():
            raise SystemExit(f"Predictions must be finite. Received: {answers}")
        note("predict", number + 1, predictions)


# From here on: the process that starts the others.


def run(setting, name, options):
    """Soaks one network in a process of its backend, and gives what it noted."""
    environment = {**os.environ, "KERAS_BACKEND": SETTINGS[setting][0], "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows"
        job = {**options, "setting": setting, "name": name, "rows": str(path)}
        command = [sys.executable, __file__, "--job", json.dumps(job)]
        subprocess.run(command, env=environment, check=True)
        return [json.loads(line) for line in path.read_text().splitlines()]


def summaries(rows):
    """Gives for each setting, network and phase what the halves added."""
    runs = {}
    for row in rows:
        runs.setdefault((row["setting"], row["network"], row["phase"]), []).append(row)
    found, before = [], {}
    for (setting, name, phase), points in runs.items():
        half = next(row for row in points if 2 * row["done"] >= points[-1]["done"])
        first, last = points[0], points[-1]
        memory = [row["resident_bytes"] for row in (first, half, last)]
        found.append(
            {
                "setting": setting,
                "network": name,
                "phase": phase,
                "steps": last["done"],
                "memory": memory,
                "growth": memory[2] - memory[1],
                "programs": last["programs"] - before.get((setting, name), 0),
                "late_programs": last["programs"] - half["programs"],
            }
        )
        before[setting, name] = last["programs"]
    return found


def broken(found, shapes):
    """Says which bounds a run breaks.

    - The second half of a phase, which brings no new shape, compiles nothing, and adds at most
      `GROWTH` bytes to the resident memory.
    - TensorFlow traces the model at most `TRACES` times for training, and for predictions: it makes
      a size that varies unknown. XLA, if it is asked for, compiles one program a shape within them.
    - JAX compiles the model once a shape in each phase, and at most `OTHERS` other programs.
    """
    for each in found:
        name = f"{each['setting']}, {each['network']}, {each['phase']}"
        if each["growth"] > GROWTH:
            yield f"{name}: the second half adds {each['growth'] / 2**20:.1f} MiB"
        if each["late_programs"]:
            yield f"{name}: the second half compiles {each['late_programs']} programs"
        most = {"tensorflow": TRACES, "jax": shapes + OTHERS, "torch": 0}
        if each["programs"] > most[SETTINGS[each["setting"]][0]]:
            yield f"{name}: {each['programs']} programs for {shapes} shapes"


def table(found):
    """Writes the table as Markdown."""
    header = "", "network", "", "MiB at the start, half, end", "programs", "in the second half"
    lines = [header, ["---"] * len(header)]
    for each in found:
        memory = " / ".join(f"{size / 2**20:,.0f}" for size in each["memory"])
        programs = [each["programs"], each["late_programs"]]
        if SETTINGS[each["setting"]][0] == "torch":
            programs = ["none", "none"]
        work = f"{each['steps']:,} {'steps' if each['phase'] == 'train' else 'predictions'}"
        lines.append([each["setting"], each["network"], work, memory, *programs])
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    present = [name for name, (backend, _) in SETTINGS.items() if importlib.util.find_spec(backend)]
    parser.add_argument("--setting", action="append", choices=present, help="may be repeated")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--predictions", type=int, default=2000)
    parser.add_argument("--small", action="store_true", help="two shapes, to try the command")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/soak"))
    parser.add_argument("--records", type=pathlib.Path, help="print the table of this file")
    parser.add_argument("--write", type=pathlib.Path, help="page that holds the table")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job is not None:
        with open(arguments.job.pop("rows"), "a") as rows:
            return soak(rows=rows, **arguments.job)
    if arguments.records is not None:
        text = table(summaries(json.loads(arguments.records.read_text())["rows"]))
        if arguments.write is None:
            return print(text)
        return write_between(arguments.write, MARKS, text)

    arguments.output.mkdir(parents=True, exist_ok=True)
    options = {name: getattr(arguments, name) for name in ("steps", "predictions", "small")}
    settings = arguments.setting or present
    rows = [row for setting in settings for name in NETWORKS for row in run(setting, name, options)]
    record = {**options, "shapes": len(shapes_of(arguments.small)), "rows": rows}
    path = arguments.output / "soak.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    found = summaries(rows)
    print(f"\n{table(found)}\n\nsoak.json is in {arguments.output}.")
    errors = list(broken(found, record["shapes"]))
    if errors:
        raise SystemExit("\n".join(errors))


if __name__ == "__main__":
    main()
