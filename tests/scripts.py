"""Scripts of the tests: each runs under one backend, once for all processes of the suite."""

import os
import subprocess
import sys
import time


def folder_written_by(script, backend, tmp_path_factory):
    """Gives the folder that a script wrote to; one process runs it, the others wait.

    Args:
        script: Module, whose file takes the folder as its argument.
        backend: String, the backend of Keras that it runs under.
        tmp_path_factory: Fixture of pytest.
    """
    shared = tmp_path_factory.getbasetemp().parent
    folder = shared / f"{script.__name__}-{backend}"
    done = folder.with_name(f"{folder.name}-done")
    try:
        folder.mkdir()
    except FileExistsError:
        while not done.exists():
            time.sleep(0.5)
        return folder
    command = [sys.executable, script.__file__, folder]
    try:
        subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, check=True)
    finally:
        done.touch()
    return folder
