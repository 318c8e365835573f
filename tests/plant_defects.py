"""Plants defects one by one in a copy of the package and says which the suite catches.

`python tests/plant_defects.py torch jax` runs it under these backends; each defect must be caught.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS, REFERENCE = "tests/test_layers.py", "tests/test_reference.py"
KERNELS = "tests/test_kernels.py"
GATE_KERNELS = "tests/test_gate_kernels.py"
SURGERY = "tests/test_surgery.py"
VISUALIZE = "tests/test_visualize.py"
LOOPS = "kernels/window_loops.py"
BLOCK_LOOPS = "kernels/block_loops.py"
HEAD_LOOPS = "kernels/attention_loops.py"
GATE_LOOPS = "kernels/gate_loops.py"
THREADS = "kernels/threads.py"
WITHOUT = {
    LOOPS: ("tensorflow",),
    GATE_LOOPS: ("tensorflow", "jax"),
    "error lost in a thread of PyTorch's": ("tensorflow", "jax"),
    "threads of the parent kept after a fork": ("torch",),  # whose own threads work there
}  # where a file, or a defect, is never met
DEFECTS = [
    ("wrong sign of the offset", "ops/relative_position.py", REFERENCE,
     "positions[None, :] - positions[:, None]", "positions[:, None] - positions[None, :]"),
    ("unscaled logits", "layers/augmented_conv2d.py", REFERENCE,
     "scale=self.key_dim**-0.5", "scale=1.0"),
    ("padding in the softmax", "ops/tiles.py", KERNELS,
     "ops.cast(inside, \"bool\")[:, None, :])", "ops.ones_like(inside, \"bool\")[:, None, :])"),
    ("window mask left out", "ops/tiles.py", KERNELS,
     "ops.any(cut.window, axis=-1)[None],", "True,"),
    ("heads merged without the transpose", "layers/augmented_conv2d.py", REFERENCE,
     "        outputs = ops.swapaxes(outputs, 1, 2)\n", ""),
    ("columns read with the rows' half", "ops/tiled_attention.py", KERNELS,
     "query[..., size // 2 :], columns_placed", "query[..., : size // 2], columns_placed"),
    ("last chunk not cut off", "ops/chunks.py", KERNELS,
     "return outputs[:count]", "return outputs[-count:]"),
    ("sigmoid before the sum", "layers/channel_attention.py", REFERENCE,
     "sum(self.excite(self.squeeze(x)) for", "sum(ops.sigmoid(self.excite(self.squeeze(x))) for"),
    ("spatial gate of the unrefined map", "ops/gating.py", REFERENCE,
     "gate(inputs if parallel else outputs)", "gate(inputs)"),
    ("missing config entry", "layers/local_self_attention2d.py", LAYERS,
     '            "dilation_rate": self.dilation_rate,\n', ""),
    ("dead argument", "layers/position_encoding.py", REFERENCE,
     "sinusoidal_encoding(length, channels, self.max_wavelength)",
     "sinusoidal_encoding(length, channels)"),
    ("softmax in half precision", "ops/attention.py", "tests/test_ops.py",
     'keras.backend.result_type(query.dtype, "float32")', "query.dtype"),
    ("stride forgotten", "layers/local_self_attention2d.py", LAYERS,
     "average_pool_2d(outputs, self.strides, self.strides)", "outputs"),
    ("dropout alike in every chunk", "ops/attention.py", KERNELS,
     "more.pop()[0, 0, 0, 0]", "0 * more.pop()[0, 0, 0, 0]"),
    ("masked rows not zero", "ops/attention.py", "tests/test_multi_head_attention.py",
     "        weights = ops.where(mask, weights, 0.0)\n", "        pass\n"),
    ("padding in the softmax of the loops", LOOPS, KERNELS,
     "while first < rows and y + first * step - top < 0:", "while False:"),
    ("softmax of the loops differentiated without its sum", LOOPS, KERNELS,
     "weights[i] * (slope[i] - average[i])", "weights[i] * slope[i]"),
    ("averages of the heads' loops not corrected by a larger logit", HEAD_LOOPS, KERNELS,
     "average[i] *= shrunk[i]", "average[i] *= np.float32(1)"),
    ("columns of keys counted as rows by the heads' loops", HEAD_LOOPS, KERNELS,
     "to_column = to_terms[1][column * BLOCK", "to_column = to_terms[1][row % width * BLOCK"),
    ("keys beyond the last in the softmax of the heads' loops", HEAD_LOOPS, KERNELS,
     "scores[real * BLOCK : many * BLOCK] = HIDDEN", "pass"),
    ("keys beyond the image in the softmax of the blocks' loops", BLOCK_LOOPS, KERNELS,
     "(number - first + 1) * heads] = HIDDEN",
     "(number - first + 1) * heads] = 0"),
    ("error lost in a thread of PyTorch's", THREADS, "tests/test_threads.py",
     "    if errors:\n", "    if False:\n"),
    ("ties of the loops not shared", GATE_LOOPS, GATE_KERNELS,
     "np.float32(1) if exceeds else counts[c] + equals", "np.float32(1)"),
    ("channel gate of the loops without the pixels' largest values", GATE_LOOPS, GATE_KERNELS,
     "to_gate[c] += (share + equals * share_of_most) * line[c]", "to_gate[c] += share * line[c]"),
    ("NaN lost by the loops", GATE_LOOPS, GATE_KERNELS, "if total == total:", "if True:"),
    ("threads of the parent kept after a fork", THREADS, "tests/test_parallel.py",
     "os.register_at_fork(after_in_child=_pool.cache_clear)", "pass"),
    ("map's gradient not handed on by the loops", GATE_LOOPS, GATE_KERNELS,
     "to_line[c] = up[c] + to_mean[c]", "to_line[c] = to_mean[c]"),
    ("cached keys seen too early", "layers/transformer.py", "tests/test_transformer_blocks.py",
     "causal=True, start=position", "causal=False, start=position"),
    ("embeddings not scaled", "layers/token_embedding.py", "tests/test_transformer_blocks.py",
     "rows * self.output_dim**0.5", "rows"),
    ("memory's mask forgotten", "models/greedy_decoder.py", "tests/test_greedy_decoder.py",
     "memory_mask=mask, cache", "memory_mask=None, cache"),
    ("state of what stays not copied", "surgery/rebuilding.py", SURGERY,
     "        for old, new in self.copies:\n            copy_values(old, new)\n", ""),
    ("frozen layers train", "surgery/rebuilding.py", SURGERY,
     "trainable = old.trainable and id(old) not in frozen", "trainable = True"),
    ("shortcut gated, not the branch", "surgery/graph.py", SURGERY,
     "branch = max(call.input_tensors", "branch = min(call.input_tensors"),
    ("kernels of other channels kept", "surgery/recipes.py", SURGERY,
     "weight[..., : kept.filters]", "weight[..., -kept.filters :]"),
    ("maximum and mean not swapped", "weights.py", "tests/test_weights.py",
     "value[:, :, ::-1]", "value"),
    ("negative evidence kept", "visualize/grad_cam.py", VISUALIZE,
     "ops.relu(ops.sum(maps * weights(maps, slopes), axis=-1))",
     "ops.abs(ops.sum(maps * weights(maps, slopes), axis=-1))"),
    ("gradient of the probability", "visualize/grad_cam.py", VISUALIZE,
     "tapped({target: listen, **gives_scores(model)})", "tapped({target: listen})"),
    ("one class for all images", "visualize/grad_cam.py", VISUALIZE,
     "ops.where(classes < 0, best, classes)", "ops.where(classes < 0, best, classes[:1])"),
    ("rows and columns of a window mixed up", "visualize/attention_maps.py", VISUALIZE,
     "index * len(columns) + other", "other * len(rows) + index"),
    ("taps left in the model", "visualize/tapping.py", VISUALIZE,
     "vars(layer).pop(_entry(layer), None)", "pass"),
    ("taps heard by other threads", "visualize/tapping.py", VISUALIZE,
     "if threading.get_ident() != thread:", "if False:"),
]  # fmt: skip


def caught(backend, file, test, old, new):
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignore = shutil.ignore_patterns(".*", "site", "runs")
        shutil.copytree(ROOT, copy, ignore=ignore)
        path = copy / "keras_visattn" / file
        path.write_text(path.read_text().replace(old, new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--backend", backend, test]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True)
        return b" failed" in run.stdout


def main(backends):
    missed = 0
    for backend in backends:
        for name, file, test, old, new in DEFECTS:
            if backend in (*WITHOUT.get(file, ()), *WITHOUT.get(name, ())):
                continue
            found = caught(backend, file, test, old, new)
            missed += not found
            print(f"{backend:10} {'caught' if found else 'MISSED':6} {name}", flush=True)
    raise SystemExit(f"{missed} missed" if missed else 0)


if __name__ == "__main__":
    main(sys.argv[1:] or ["tensorflow", "jax", "torch"])
