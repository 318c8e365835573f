"""Runs the suite once a backend, each in its own process; `--backend` narrows it to some."""

import ctypes
import gc
import os
import re
import sys
import zlib

import pytest
from hypothesis import HealthCheck, settings

CACHE = ".pytest_cache/jax"

settings.register_profile(
    "suite",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "long", settings.get_profile("suite"), derandomize=False, max_examples=5000
)
settings.load_profile("suite")


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        action="append",
        choices=("tensorflow", "jax", "torch"),
        help="run under this backend only; may be given more than once",
    )
    parser.addoption(
        "--examples",
        type=int,
        default=5000,
        help="how many a layer --hypothesis-profile long tries",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    backends = config.getoption("backend")
    if backends and not hasattr(config, "workerinput"):
        config.option.tx = [
            tx for tx in config.option.tx if any(f"KERAS_BACKEND={name}" in tx for name in backends)
        ]


@pytest.hookimpl(tryfirst=True)  # before the plugins that read these settings
def pytest_configure(config):
    if config.getoption("hypothesis_profile") == "long":
        long = settings.get_profile("long")
        settings.register_profile("long", long, max_examples=config.getoption("examples"))
        if config.getoption("timeout") is None:
            config.option.timeout = 0
    if not hasattr(config, "workerinput"):
        return
    backend = os.environ.get("KERAS_BACKEND")
    if backend == "torch":
        import torch

        torch.set_num_threads(1)
    if backend == "jax":  # what it compiled once, it reads the next time
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.rootpath / CACHE))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def pytest_collection_modifyitems(config, items):
    """Leaves a process whose name ends in `-1of2` the first half of its backend's tests."""
    worker = getattr(config, "workerinput", {}).get("workerid", "")
    share = re.search(r"-(\d+)of(\d+)$", worker)
    if share:
        part, parts = map(int, share.groups())
        items[:] = [x for x in items if zlib.crc32(x.nodeid.encode()) % parts == part - 1]


def pytest_terminal_summary(terminalreporter):
    """Prints what the tests with random inputs have counted, of each layer and of all."""
    sums = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            counts = dict(getattr(report, "user_properties", ()))
            if "examples" in counts and report.when == "call":
                name, *numbers = counts["examples"]
                worker = report.node.gateway.id if hasattr(report, "node") else "this process"
                backend = worker.partition("-")[0]
                for key in ((backend, name), (backend, "all layers")):
                    sums[key] = list(map(sum, zip(sums.get(key, (0, 0, 0)), numbers, strict=True)))
    for (backend, name), numbers in sorted(sums.items()):
        words = "tried {:,}, refused {:,}, failed {:,}".format(*numbers)
        terminalreporter.write_line(f"{backend}, {name}: {words}")


@pytest.fixture(autouse=True)
def seeded():
    import keras

    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session(free_memory=False)


@pytest.fixture(autouse=True, scope="module")
def released():
    """Gives the memory of a file's tests back to the system: compiled programs take gigabytes."""
    yield
    if os.environ.get("KERAS_BACKEND") == "jax":
        import jax

        jax.clear_caches()
    gc.collect()
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)
