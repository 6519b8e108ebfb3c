"""The programs in the pages of docs/ do what the pages say."""

import re
from pathlib import Path

import numpy as np

from train_dynamics.config import StudyConfig
from train_dynamics.data.datasets import load_dataset
from train_dynamics.training.setup import prepare

DOCS = Path(__file__).parents[1] / "docs"


def test_networks_of_your_own(tmp_path, device, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "NETWORKS.md").read_text()
    linen, module, plain, again = re.findall(r"```python\n(.*?)```", text, re.S)
    for name, program in {"net": linen, "Net": module}.items():
        Path(f"{name}_{len(program)}.py").write_text(program)
        config = StudyConfig(model=f"{name}_{len(program)}.py:{name}", num_examples=20)
        prepared = prepare(config, load_dataset(config))
        assert {"conv1/kernel", "head/kernel"} < set(prepared.contents.layers)
    rng = np.random.default_rng(0)
    names = {"inputs": rng.normal(size=(12, 4)), "labels": rng.integers(3, size=12)}
    program = plain.replace("epochs=5", "epochs=1")
    assert program != plain
    exec(compile(program, "NETWORKS.md", "exec"), names)
    assert names["recording"].gradients("out", 1).shape == (3, 12, 8, 3)
    program, analysis = again.split("analyze(recording")
    exec(compile(program, "NETWORKS.md", "exec"), names)
    assert capsys.readouterr().out.splitlines()[-1] == "[]" and "networks=networks" in analysis


def test_pictures_and_pages_are_there():
    for page in DOCS.glob("*.md"):
        for place in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (DOCS / place).exists(), (page.name, place)
    assert all(file.stat().st_size < 400_000 for file in (DOCS / "figures").glob("networks_*.png"))
