"""The flag files of real networks and data, in small, from the root of the repository as run.sh runs them."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.conftest import run
from train_dynamics.recording.reader import Recording

ROOT = Path(__file__).parents[1]
CONFIGS = {  # few examples, and as few batches
    "cnn": ["--num_examples=40", "--batch_size=20"],
    "cnn_nnx": ["--num_examples=40", "--batch_size=20"],
    "brackets": [  # one of each layout
        *("--num_examples=40", "--batch_size=20"),
        "--layers=embed/embedding,attention1/query/kernel,narrow1/kernel,head/kernel",
    ],
    "breast_cancer": ["--num_examples=60"],
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Recordings by the flag files, each made once."""
    found = {}

    def record(name):
        if name not in found:
            path = tmp_path_factory.mktemp("configs") / name
            flags = [f"--flagfile=configs/{name}.flags", *CONFIGS[name], "--epochs=1", "--seeds=2"]
            done = run("train", *flags, f"--recording={path}", cwd=ROOT)
            assert (done.returncode, done.stderr) == (0, "")
            found[name] = Recording(path)
        return found[name]

    return record


def module(name):
    """A file beside the flag files."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def forward(name):
    """The network of a flag file as a function of parameters, variables and one input, put together anew."""
    networks = module("networks")
    if name == "cnn_nnx":

        def run(params, variables, x):
            model = networks.NormalisedCNN(nnx.Rngs(0))
            model.eval()
            for kind, values in ((nnx.Param, params), (nnx.BatchStat, variables)):
                state = nnx.state(model, kind)
                nnx.replace_by_pure_dict(state, numbered(values))
                nnx.update(model, state)
            return model(x[None])[0]

        return run
    if name == "breast_cancer":
        return lambda params, _, x: (
            jax.nn.relu(x @ params["fc1"]["kernel"] + params["fc1"]["bias"]) @ params["fc2"]["kernel"]
            + params["fc2"]["bias"]
        )
    model = {"cnn": networks.cnn, "brackets": networks.transformer}[name]
    return lambda params, _, x: model.apply({"params": params}, x[None])[0]


def numbered(tree):
    """Lists of NNX have numbers for names, which are texts in a recording."""
    if not isinstance(tree, dict):
        return tree
    return {int(name) if name.isdigit() else name: numbered(value) for name, value in tree.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_recorded_is_what_the_definition_gives(name, recorded):
    recording = recorded(name)
    assert recording.finished and len(recording.seeds) == 2
    t, seed = int(recording.iterations[-1]), 1
    params, variables = (
        jax.tree.map(lambda leaf: leaf[seed], of(t)) for of in (recording.parameters, recording.variables)
    )
    examples = jnp.asarray(recording.inputs()), jnp.asarray(recording.labels)
    network = forward(name)

    def loss(params, x, label):
        logits = network(params, variables, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label), logits

    with jax.default_matmul_precision("highest"):
        definition = jax.vmap(jax.value_and_grad(loss, has_aux=True), (None, 0, 0))
        (losses, logits), gradients = jax.jit(definition)(params, *examples)
    np.testing.assert_allclose(recording.loss(t)[seed], losses, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(recording.predictions(t)[seed], logits.argmax(-1))
    for layer in recording.layers:
        kept = recording.kept(layer)
        if layer == "all":
            continue
        expected = gradients
        for part in kept.layer.name.split("/"):
            expected = expected[part]
        expected = np.asarray(expected)
        size = np.abs(expected).max()
        if kept.layout in ("factored", "dense"):
            np.testing.assert_allclose(recording.gradients(layer, t)[seed], expected, rtol=1e-4, atol=1e-5 * size)
        elif kept.layout == "measures":
            flat = expected.reshape(len(expected), -1)
            norm, product = (of[seed] for of in recording.measures(layer, t))
            np.testing.assert_allclose(norm, np.linalg.norm(flat, axis=1), rtol=1e-4, atol=1e-5 * size)
            np.testing.assert_allclose(product, flat @ flat.mean(axis=0), rtol=1e-3, atol=1e-4 * size**2)
        else:
            (sketch,) = recording.vectors(layer, t)
            expected = sketches(kept, expected, recording.config.sketch_size)
            np.testing.assert_allclose(sketch[seed], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def sketches(kept, gradients, size):
    from train_dynamics.recording.sketch import sketch_of

    return np.stack([sketch_of(kept.layer, size, gradient) for gradient in gradients])


@pytest.mark.slow
def test_the_transformers_recording_is_analysed(recorded, tmp_path):
    recording = recorded("brackets")
    done = run("analyze", f"--recording={recording.path}", "--parts=cones", f"--output={tmp_path / 'analysis'}")
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "analysis" / "report.html").read_text()
    assert "attention1/query/kernel" in page and "balanced" in page
    claims = json.loads((tmp_path / "analysis" / "claims.json").read_text())
    assert any("attention1/query/kernel" in claim["name"] for claim in claims)
    figures = {file.name for file in (tmp_path / "analysis" / "figures").iterdir()}
    assert {"attention1_query_kernel_alignment.png", "head_kernel_cones.png"} <= figures


def test_half_of_the_texts_are_balanced_and_the_ids_tell_of_which_kind_the_others_are():
    brackets = module("brackets")
    data = brackets.brackets(40)
    texts = ["".join(brackets.VOCABULARY[word] for word in text) for text in data["inputs"]]
    assert len(set(texts)) == 40 and {len(text) for text in texts} == {12}
    for text, label, name in zip(texts, data["labels"], data["ids"], strict=True):
        left = text
        while (shorter := left.replace("()", "").replace("[]", "")) != left:
            left = shorter
        assert label == ("unbalanced" if left else "balanced") and (label == "balanced") == name.startswith("balanced")
    assert [sum(name.startswith(kind) for name in data["ids"]) for kind in ("balanced", "changed", "noise")] == [
        20,
        10,
        10,
    ]
    again = brackets.brackets(40)
    assert np.array_equal(data["inputs"], again["inputs"])
