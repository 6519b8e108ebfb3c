"""The loops of examples/, in small: each is the framework's own, and three lines."""

import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import train_dynamics as td

EXAMPLES = Path(__file__).parents[1] / "examples"
LAYERS = {
    "nnx_loop": ("conv1/kernel", "conv2/kernel", "head/kernel", "all"),
    "equinox_loop": ("mlp/layers/1/weight",),
    "linen_loop": ("conv1/kernel", "conv2/kernel", "head/kernel", "all"),
    "devices_loop": ("head",),
}


def module(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_all_are_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_three_lines_make_a_recording_of_it(tmp_path, name):
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    counted = [re.search(r"# ([1-3]): ", line).group(1) for line in lines if re.search(r"# \d: ", line)]
    assert counted == ["1", "2", "3"]
    assert sum("recorder" in line.split("#")[0].lower().replace("recording", "") for line in lines) == 3
    example_module = module(name)
    example_module.main(str(tmp_path / "out"), 3, 32)
    recording = td.Recording(tmp_path / "out")
    assert recording.finished and recording.iterations.tolist() == [0, 1, 2] and recording.layers == LAYERS[name]
    assert recording.images is not None or recording.inputs().shape == (32, 28, 28, 1)
    assert len({recording.loss(t).mean() for t in range(3)}) == 3  # it is trained
    if name == "devices_loop":  # whose parameters are as in the recording
        params = jax.tree.map(lambda leaf: leaf[0], recording.parameters(2))
        examples = recording.inputs(), recording.labels
        of_one = jax.grad(lambda params, example: example_module.loss_of_one(params, example)[0])
        expected = jax.vmap(of_one, (None, 0))(params, examples)["head"]
        np.testing.assert_allclose(recording.gradients("head", 2)[0], expected, rtol=1e-4, atol=1e-6)
