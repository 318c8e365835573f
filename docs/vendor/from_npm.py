"""Puts beside this file what the site serves of npm's packages, as `package-lock.json` pins them.

mkdocs runs it before each build; `python docs/vendor/from_npm.py` does the same by hand.
"""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
STAMP = HERE / ".fetched"
SERVED = [
    "katex/LICENSE",
    "katex/dist/katex.min.css",
    "katex/dist/katex.min.js",
    "katex/dist/fonts/*.woff2",
    "onnxruntime-web/dist/ort.wasm.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
]


def on_pre_build(config):
    fetch()


def fetch():
    """Fetches the files, unless those of the same lock are there."""
    wanted = hashlib.sha256((HERE / "package-lock.json").read_bytes() + str(SERVED).encode())
    if STAMP.is_file() and STAMP.read_text() == wanted.hexdigest():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm must be installed: it fetches what the site serves. Received: no npm")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        options = ["--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run([npm, "ci", *options], cwd=folder, check=True)
        for pattern in SERVED:
            packages = Path(folder, "node_modules")
            for path in packages.glob(pattern):
                target = HERE / path.relative_to(packages)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    STAMP.write_text(wanted.hexdigest())


if __name__ == "__main__":
    fetch()
