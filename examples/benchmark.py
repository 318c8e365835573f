"""Compares our layers with their peers, in time and in memory, on every installed backend.

The subjects of a case run in turns in one process (A, B, C, A, B, C, ...), each through the
public path of a user, and the ratios are those of their medians. Each backend has processes of
its own; for its peak memory, so has each subject. Run it with

    python examples/benchmark.py --output runs/benchmark

All of it takes long on a CPU: choose with `--backend` and `--group`, or try it with `--small`.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from typing import NamedTuple

BACKENDS = ("tensorflow", "jax", "torch")
ALL_MODES = ("predict", "train", "call")
LOCAL = ("Conv2D", "LocalSelfAttention2D")
TIMM_LOCAL = ("timm HaloAttn", "timm BottleneckAttn")
CHECKED = {  # in these groups a naive layer stands for ours: both must answer the same
    "unfold": ("LocalSelfAttention2D", "naive unfold"),
    "augmented": ("AugmentedConv2D", "dense logits"),
}


def installed(name):
    return importlib.util.find_spec(name) is not None


class Case(NamedTuple):
    """What runs in turns: the first subject is the reference, the second is ours."""

    group: str
    shape: tuple  # of the input
    subjects: tuple
    modes: tuple = ("train",)
    kernel_size: int | None = None
    axis: str | None = None  # what a figure shows it against

    @property
    def channels(self):
        return self.shape[-1]

    @property
    def name(self):
        window = "" if self.kernel_size is None else f" k={self.kernel_size}"
        return "x".join(map(str, self.shape)) + window

    def subjects_on(self, backend):
        """Gives those that a backend can run: modules of PyTorch's own run on PyTorch alone."""
        absent = ("timm",) if backend == "torch" else ("timm", "torch")
        if backend == "torch" and installed("timm"):
            return list(self.subjects)
        return [subject for subject in self.subjects if not subject.startswith(absent)]

    def row(self, backend, mode):
        """Gives what a result says of its case."""
        return {
            "backend": backend,
            "group": self.group,
            "case": self.name,
            "shape": self.shape,
            "side": self.shape[1],
            "kernel_size": self.kernel_size,
            "axis": self.axis,
            "mode": mode,
        }

    def shrunk(self):
        """Gives the case on a quarter of the side or of the tokens, for a trial."""
        batch, *lengths, channels = self.shape
        lengths = (max(2, length // 4) for length in lengths)
        return self._replace(shape=(min(batch, 2), *lengths, channels))


def series(group, shape, kernel_size, axis):
    """Makes a case of a figure. The naive layer joins while its copies fit in 320 MB."""
    fits = math.prod(shape) * kernel_size**2 <= 80e6
    subjects = (*LOCAL, "naive unfold") if fits else LOCAL
    return Case(group, shape, subjects, kernel_size=kernel_size, axis=axis)


SIDES = (14, 28, 56, 112, 224, 512)
CBAMS = ("x * 2", "CBAM", "torch naive CBAM", "timm CbamModule")
HEADS = ("keras MultiHeadAttention", "MultiHeadAttention", "torch MultiheadAttention")
EVERY = (
    *LOCAL,
    "AugmentedConv2D of the paper",
    "MultiHeadAttention",
    *("CBAM", "ChannelAttention", "SpatialAttention"),
    *("SqueezeExcite", "GatherExcite", "BAM", "GALA"),
)
CASES = (
    Case("layers", (8, 28, 28, 128), EVERY, ("predict", "train"), 7),
    Case("local", (8, 56, 56, 64), LOCAL, ALL_MODES, 7),
    Case("local", (8, 28, 28, 128), LOCAL + TIMM_LOCAL, ALL_MODES, 7),
    Case("local", (8, 14, 14, 256), LOCAL + TIMM_LOCAL, ALL_MODES, 7),
    Case("local", (8, 7, 7, 512), LOCAL, ALL_MODES, 7),
    Case("unfold", (8, 56, 56, 64), ("naive unfold", LOCAL[1]), ("predict", "train"), 7),
    *(series("window", (8, 28, 28, 128), k, "kernel_size") for k in (3, 5, 7, 11, 15, 19)),
    *(series("map", (1, side, side, 32), 7, "side") for side in SIDES),
    Case("augmented", (8, 64, 64, 64), ("dense logits", "AugmentedConv2D"), ("predict", "train")),
    Case("heads", (4, 196, 256), HEADS, ("predict", "train")),
    Case("heads", (4, 784, 256), HEADS, ("predict", "train")),
    Case("heads", (1, 3136, 256), HEADS, ("predict", "train")),
    Case("cbam", (32, 56, 56, 256), CBAMS, ("call", "train")),
    Case("network", (4, 224, 224, 3), ("ResNet50", "attention ResNet50"), ("predict", "train"), 7),
    *(series("memory", (8, 56, 56, 64), k, "kernel_size") for k in (3, 7, 11, 15)),
    *(series("memory", (1, side, side, 32), 7, "side") for side in SIDES),
    Case("memory", (8, 56, 56, 64), ("LocalSelfAttention2D k=3", "LocalSelfAttention2D k=15")),
    Case("memory", (8, 64, 64, 64), ("dense logits", "AugmentedConv2D")),
)
GROUPS = tuple(dict.fromkeys(case.group for case in CASES))


def cases_of(numbers, small):
    return [CASES[number].shrunk() if small else CASES[number] for number in numbers]


# From here to `measure`, the functions run in the process of one backend. Keras takes its backend
# at import, and the process that starts the others must not import it.


def attempt(function, *arguments):
    """Calls a function; gives what it returns, or None, and the error that it raised if any."""
    try:
        return function(*arguments), {}
    except Exception as error:  # most often memory, and each backend has its own error for it
        traceback.print_exc()
        return None, {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}


def warm_run(subject, case, mode, device):
    """Makes the function that runs a subject, and lets it compile."""
    from benchmark_peers import make_run

    run = make_run(subject, case, mode, device)
    for _ in range(2):
        loss = run()
        # A step that ran out of memory may end early and say nothing.
        if mode == "train" and not 0 < float(loss) < math.inf:
            raise RuntimeError(f"A training step must give a positive loss. Received: {loss}")
    return run


def seconds_of(case, mode, device, subjects, repetitions):
    """Runs the subjects in turns; gives the median of each, or its error."""
    warmed = {subject: attempt(warm_run, subject, case, mode, device) for subject in subjects}
    seconds = {subject: [] for subject, (run, _) in warmed.items() if run is not None}
    for _ in range(repetitions):
        for subject, values in seconds.items():
            start = time.perf_counter()
            warmed[subject][0]()
            values.append(time.perf_counter() - start)
    medians = {subject: {"median_s": statistics.median(v)} for subject, v in seconds.items()}
    return {subject: medians.get(subject, error) for subject, (_, error) in warmed.items()}


def memory_of(subject, case, mode, device):
    """Gives the bytes that a first run takes beyond what is held before it.

    A tiny case goes first, for what the libraries take once. It is the first run of the full one
    that counts: memory that an allocator keeps when it is freed would hide the second's.
    """
    from benchmark_peers import make_run

    warm_run(subject, case.shrunk().shrunk(), mode, device)
    run = make_run(subject, case, mode, device)
    gc.collect()
    device.forget_peak()
    before = device.held()
    run()
    return device.peak() - before


def measure(rows, numbers, subject, small, repetitions, dtype):
    """Measures the time of cases, or the memory of one subject; appends a line a result."""
    import benchmark_peers as peers
    import keras

    backend = keras.backend.backend()
    device = peers.device_of_backend()
    cases = cases_of(numbers, small)
    group = cases[0].group
    if group in CHECKED:
        peers.check(*CHECKED[group], Case(group, (2, 19, 18, 32), CHECKED[group], kernel_size=5))
    keras.config.set_dtype_policy(dtype)
    turns = [(case, mode) for case in cases for mode in case.modes]
    for case, mode in turns:
        if subject is None:
            results = seconds_of(case, mode, device, case.subjects_on(backend), repetitions)
        else:
            size, error = attempt(memory_of, subject, case, mode, device)
            results = {subject: error or {"peak_bytes": size}}
        words = ", ".join(f"{name} {in_words(result)}" for name, result in results.items())
        print(f"{backend} {group} {case.name} {mode}: {words}", flush=True)
        row = {**case.row(backend, mode), "device": device.name}
        with open(rows, "a") as file:
            for name, result in results.items():
                print(json.dumps({**row, "subject": name, **result}), file=file)


# From here on: the process that starts the others.


def jobs(group, backend):
    """Gives what each process measures: the numbers of cases, and a subject if it is alone."""
    numbers = [number for number, case in enumerate(CASES) if case.group == group]
    if group != "memory":
        return [(numbers, None)]
    return [
        ([number], subject) for number in numbers for subject in CASES[number].subjects_on(backend)
    ]


def run_job(backend, numbers, subject, options):
    """Measures in a process of a backend, and gives the rows.

    Those that are missing because the system killed the process say so.
    """
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **os.environ,
        "KERAS_BACKEND": backend,
    }
    if subject is not None:  # memory that is freed goes back at once, for what it counts later
        environment["MALLOC_MMAP_THRESHOLD_"] = environment["MALLOC_TRIM_THRESHOLD_"] = "65536"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows"
        path.touch()
        job = {**options, "rows": str(path), "numbers": numbers, "subject": subject}
        command = [sys.executable, __file__, "--job", json.dumps(job)]
        status = subprocess.run(command, env=environment).returncode
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    if status == 0:
        return rows
    if status > 0:  # it has said why
        raise SystemExit(status)
    print(f"The process ended with status {status}.", flush=True)
    found = {(row["case"], row["mode"], row["subject"]) for row in rows}
    for case in cases_of(numbers, options["small"]):
        subjects = case.subjects_on(backend) if subject is None else [subject]
        rows += [
            {
                **case.row(backend, mode),
                "subject": name,
                "error": f"process ended with status {status}",
            }
            for mode in case.modes
            for name in subjects
            if (case.name, mode, name) not in found
        ]
    return rows


def value_of(row):
    """Gives the seconds or the bytes of a row, None if its subject could not run."""
    return row.get("median_s", row.get("peak_bytes"))


def in_words(row):
    if "error" in row:
        return row["error"]
    if "median_s" in row:
        return f"{1e3 * row['median_s']:.4g} ms"
    return f"{row['peak_bytes'] / 2**20:.1f} MiB"


def with_ratios(rows):
    """Sets each subject against the first of its case, and ours against the others too."""
    runs = {}
    for row in rows:
        key = tuple(row[name] for name in ("backend", "group", "case", "mode"))
        runs.setdefault(key, {})[row["subject"]] = row
    compared = []
    for run in runs.values():
        reference, *others = run
        pairs = [(name, reference) for name in run] + [(others[0], name) for name in others[1:]]
        for name, against in pairs:
            value, other = value_of(run[name]), value_of(run[against])
            ratio = value / other if value and other else None
            compared.append({**run[name], "ratio": ratio, "against": against})
    return compared


def print_table(rows):
    form = "{:11}{:10}{:20}{:8}{:26}{:>12}{:>9}  {}"
    print("\n" + form.format("backend", "group", "case", "mode", "subject", "value", "ratio", "to"))
    for row in rows:
        if row["subject"] != row["against"]:
            ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
            names = (row[name] for name in ("backend", "group", "case", "mode", "subject"))
            print(form.format(*names, in_words(row)[:11], ratio, row["against"]))


def versions():
    names = {
        "keras_visattn",
        "keras",
        "numba",
        "numpy",
        "jaxlib",
        "tensorflow_cpu",
        *BACKENDS,
        "timm",
    }
    found = importlib.metadata.distributions()
    return {each.name: each.version for each in found if each.name.replace("-", "_") in names}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    present = [backend for backend in BACKENDS if installed(backend)]
    parser.add_argument("--backend", action="append", choices=present, help="may be repeated")
    parser.add_argument("--group", action="append", choices=GROUPS, help="may be repeated")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/benchmark"))
    parser.add_argument("--small", action="store_true", help="small maps, to try the command")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job is not None:
        return measure(**arguments.job)

    arguments.output.mkdir(parents=True, exist_ok=True)
    options = {name: getattr(arguments, name) for name in ("repetitions", "dtype", "small")}
    rows = [
        row
        for backend in arguments.backend or present
        for group in arguments.group or GROUPS
        for numbers, subject in jobs(group, backend)
        for row in run_job(backend, numbers, subject, options)
    ]
    rows = with_ratios(rows)
    print_table(rows)
    record = {"versions": versions(), "cores": os.cpu_count(), **options, "rows": rows}
    path = arguments.output / "benchmark.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    import benchmark_figures  # the jobs do without matplotlib

    benchmark_figures.draw_all(rows, arguments.output)
    print(f"\nbenchmark.json and the figures are in {arguments.output}.")


if __name__ == "__main__":
    main()
