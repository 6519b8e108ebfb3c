import csv
import dataclasses
import shutil
import struct

import numpy as np
import pytest

from tests import oracles
from tests.conftest import SMALL, contents, silent
from tests.test_train import run
from train_dynamics import analyze, sweep
from train_dynamics.recording import Recording


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def results(small_path, tmp_path_factory):
    output = tmp_path_factory.mktemp("analysis") / "results"
    analyze.analyze(Recording(small_path), output)
    return output


def test_scores_rank_all_examples_by_agreement_of_the_trained_networks(small, results):
    table = rows(results / "scores.csv")
    assert list(table[0]) == ["example", "id", "label", "agr", "rank", "chunk"]
    assert [int(row["example"]) for row in table] == list(range(50))
    assert [int(row["id"]) for row in table] == small.ids.tolist()
    assert [int(row["label"]) for row in table] == small.labels.tolist()
    agr = np.array([float(row["agr"]) for row in table])
    np.testing.assert_allclose(agr, oracles.agreement(small.probabilities(16)), rtol=1e-4, atol=1e-7)
    rank = np.array([int(row["rank"]) for row in table])
    assert sorted(rank) == list(range(50))
    assert (np.diff(agr[np.argsort(rank)]) >= 0).all()
    assert [int(row["chunk"]) for row in table] == [r // 5 for r in rank]


def test_curves_are_the_accuracy_of_each_group(small, results):
    table = rows(results / "curves.csv")
    assert list(table[0]) == ["metric", "group", "iteration", "mean", "std"]
    assert len(table) == 11 * 17
    chunk = np.array([int(row["chunk"]) for row in rows(results / "scores.csv")])
    members = {"all": np.arange(50), **{f"chunk_{k}": np.flatnonzero(chunk == k) for k in range(10)}}
    for row in table:
        assert row["metric"] == "accuracy"
        correct = small.predictions(int(row["iteration"])) == small.labels
        of_seeds = [correct[s, members[row["group"]]].mean() for s in range(3)]
        assert float(row["mean"]) == pytest.approx(np.mean(of_seeds), rel=1e-8)
        assert float(row["std"]) == pytest.approx(np.std(of_seeds), rel=1e-8, abs=1e-12)


def test_blocks_make_no_difference(small, results, tmp_path, device, monkeypatch, small_dataset):
    monkeypatch.setattr(sweep, "BLOCK_BYTES", 3 * sweep.plan(SMALL, small_dataset).record_bytes)
    sweep.train(SMALL, tmp_path / "recording", device, say=silent)
    blocks = Recording(tmp_path / "recording")
    assert len(list(blocks.blocks())) == 6
    chunk = np.array([int(row["chunk"]) for row in rows(results / "scores.csv")])
    np.testing.assert_allclose(analyze.accuracy_curves(blocks, chunk), analyze.accuracy_curves(small, chunk), atol=0.02)


@pytest.mark.parametrize(
    "name", ["accuracy", "chunk_accuracy", "examples_random", "examples_typical", "examples_atypical"]
)
def test_figures_are_pictures(results, name):
    data = (results / "figures" / f"{name}.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > 600 and height > 400


def test_the_command_writes_into_the_recording_or_elsewhere(small_path, tmp_path):
    shutil.copytree(small_path, tmp_path / "copy")
    done = run("analyze", "--recording=copy", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Results of copy are in copy/analysis\n"
    assert (tmp_path / "copy" / "analysis" / "scores.csv").is_file()
    before = contents(tmp_path / "copy")
    assert run("analyze", f"--recording={tmp_path / 'copy'}", f"--output={tmp_path / 'other'}").returncode == 0
    assert contents(tmp_path / "other").keys() == contents(tmp_path / "copy" / "analysis").keys()
    assert contents(tmp_path / "copy") == before


def test_directories_that_will_not_do_get_one_clear_line(small_path, tmp_path, device):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("[]")
    shutil.copytree(small_path, tmp_path / "unfinished")
    shutil.rmtree(tmp_path / "unfinished" / "blocks" / "0")
    sweep.train(dataclasses.replace(SMALL, num_seeds=1), tmp_path / "single", device, say=silent)
    few = dataclasses.replace(SMALL, num_examples=8, batch_size=8)
    sweep.train(few, tmp_path / "few", device, say=silent)
    (tmp_path / "file").write_text("mine")
    for arguments, message in [
        (["--recording=missing"], "missing is not a directory"),
        (["--recording=empty"], "empty is not a recording: it has no config.json"),
        (["--recording=foreign"], "is not that of a recording"),
        (["--recording=file"], "file is not a directory"),
        (["--recording=unfinished"], "is unfinished: it holds 0 of 17 records; run the train command again"),
        (["--recording=single"], "has one seed, and ranking by agreement needs two"),
        (["--recording=few"], "has 8 examples, and 10 chunks need one each"),
        ([f"--recording={small_path}", "--output=file"], "--output=file: cannot be made"),
        ([f"--recording={small_path}", "--outputs=x"], "Unknown command line flag 'outputs'"),
        ([], "flag --recording=None: Flag --recording must have a value other than None"),
    ]:
        before = contents(tmp_path)
        done = run("analyze", *arguments, cwd=tmp_path)
        assert done.returncode in (1, 2)
        assert message in done.stderr.splitlines()[0]
        assert "Traceback" not in done.stderr
        assert contents(tmp_path) == before
