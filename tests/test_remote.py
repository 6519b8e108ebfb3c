"""Recordings elsewhere are read as those on this machine, and never written."""

import contextlib
import functools
import http.server
import pickle
import re
import shutil
import threading

import numpy as np
import pytest

from tests.conftest import SMALL, run, silent, sketching
from train_dynamics.config import InputError
from train_dynamics.explorer.explored import opened_for_showing
from train_dynamics.recording import parts
from train_dynamics.recording.format import RecordingError
from train_dynamics.recording.histories import Histories
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.remote import Url, leading, located
from train_dynamics.recording.storage import StoredArray, write_array
from train_dynamics.recording.verification import verify
from train_dynamics.report import analysis
from train_dynamics.study.histories import make_histories
from train_dynamics.study.results import compute

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")


@pytest.fixture
def memory():
    """Puts a directory into fsspec's memory, and tells its URL."""
    files = fsspec.filesystem("memory")

    def put(path, name="study"):
        files.put(str(path), f"/bucket/{name}", recursive=True)
        return f"memory://bucket/{name}"

    yield put
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves stretches of files, as web servers do, and lists nothing; notes the bytes that it is asked for."""

    asked: list

    def do_GET(self):
        path = self.translate_path(self.path)
        stretch = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError:
            self.send_error(404)
            return
        if stretch:
            content = content[int(stretch[1]) : int(stretch[2]) + 1]
        self.asked.append(len(content))
        self.send_response(206 if stretch else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Plain(http.server.SimpleHTTPRequestHandler):
    """What `python -m http.server` is: whole files only, and pages that list directories."""

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(directory, handler=Ranges):
    """Serve a directory on this machine alone, and tell its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def asked(monkeypatch):
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    monkeypatch.setattr(Ranges, "asked", [], raising=False)
    return Ranges.asked


def check_alike(remote, local):
    """Whether everything that can be asked for is the same."""
    assert remote.finished == local.finished and remote.iterations.tolist() == local.iterations.tolist()
    assert remote.checksum == local.checksum and remote.ids.tolist() == local.ids.tolist()
    np.testing.assert_array_equal(remote.images, local.images)
    np.testing.assert_array_equal(remote.held_out, local.held_out)
    for t in (0, 7, int(local.iterations[-1])):
        np.testing.assert_array_equal(remote.loss(t), local.loss(t))
        np.testing.assert_array_equal(remote.gradients("fc2", t), local.gradients("fc2", t))
        np.testing.assert_array_equal(remote.probabilities(t), local.probabilities(t))
        kernels = [of.parameters(t)["fc1"]["kernel"] for of in (remote, local)]
        np.testing.assert_array_equal(*kernels)
    for one, other in zip(remote.blocks(), local.blocks(), strict=True):
        np.testing.assert_array_equal(one.read("loss"), other.read("loss"))
        np.testing.assert_array_equal(one.columns("loss", 3, 9), other.columns("loss", 3, 9))
    found = remote.loss(0)
    found += 1  # and belongs to whoever asked


def test_memory_reads_as_a_disk_does(small, small_path, memory):
    remote = Recording(memory(small_path))
    check_alike(remote, small)
    check_alike(pickle.loads(pickle.dumps(remote)), small)
    assert verify(remote, 5).problems == [] and verify(remote, 5).num_bytes == verify(small, 5).num_bytes
    assert str(remote.path) == "memory://bucket/study" and remote.reopened().num_records == 17
    assert remote.further is None
    pytest.importorskip("dask.array", reason="dask is not installed")
    data = remote.to_xarray(chunks={})
    np.testing.assert_array_equal(data["gradient.fc2"].sel(iteration=9), small.gradients("fc2", 9))
    with pytest.raises(InputError, match=r"memory://bucket/study/histories is not there"):
        _ = remote.histories


def test_a_web_server_is_asked_for_pieces_only(small, small_path, asked):
    make_histories(small)
    with served(small_path.parent) as url:
        remote = Recording(f"{url}/{small_path.name}/")
        assert max(asked) < 5000  # the last block is there, so all are
        check_alike(remote, small)
        assert verify(remote, 5).problems == []
        np.testing.assert_array_equal(remote.gradients_of(42, "fc2"), small.gradients_of(42, "fc2"))
        np.testing.assert_array_equal(remote.history(42).margin, small.history(42).margin)
        asked.clear()
        block = next(remote.blocks())
        block.read("loss", 1)
        assert asked[1] == 3 * 3 * 50 * 4 + 4
        asked.clear()
        write_array(small_path / "long", np.arange(30_000.0).reshape(1, 30, 1000), rows=1)
        array = StoredArray(Url(f"{url}/{small_path.name}/long"))
        np.testing.assert_array_equal(array.read()[0, 29], np.arange(29_000.0, 30_000))
        assert len(asked) == 3 and asked[1] == 8004  # the description, the first piece, and all others at once
        asked.clear()
        assert [row[0, 0] for row in array.take([3, 20])] == [3000, 20_000] and asked == [8004, 8004]


def test_a_web_server_without_ranges(small, small_path, asked):
    make_histories(small)
    with served(small_path.parent, Plain) as url:
        remote = Recording(f"{url}/{small_path.name}")
        check_alike(remote, small)
        np.testing.assert_array_equal(remote.gradients_of(42, "fc2"), small.gradients_of(42, "fc2"))
    with pytest.raises(RecordingError, match=f"^{url}/recording cannot be read: .*[Cc]onnect"):
        Recording(f"{url}/recording")


def test_results_are_those_of_the_disk(small, small_path, memory):
    found, expected = compute(Recording(memory(small_path))), compute(small)
    np.testing.assert_array_equal(found.agr, expected.agr)
    for name, curve in expected.curves.items():
        np.testing.assert_array_equal(found.curves[name], curve, err_msg=name)


def test_unfinished_ones_and_histories(small, small_path, memory, tmp_path):
    for start in (9, 12, 15):
        shutil.rmtree(small_path / "blocks" / str(start))
    unfinished = Recording(memory(small_path))
    assert unfinished.num_records == 9 and not unfinished.finished
    np.testing.assert_array_equal(unfinished.loss(8), small.loss(8))
    shutil.rmtree(small_path / "blocks")
    assert Recording(memory(small_path, "empty")).num_records == 0
    with pytest.raises(InputError, match="could not be written: it is a URL, and URLs can only be read"):
        make_histories(unfinished)


def test_histories_of_a_url_are_kept_among_the_caches(small, small_path, memory, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lines = []
    remote = Recording(memory(small_path))
    explored = opened_for_showing(remote, log=lines.append)
    assert list(explored.recordings) == ["study"] and "the histories are stored in" in lines[0]
    cached = Histories(remote, tmp_path / "train_dynamics" / "histories")
    make_histories(small)
    np.testing.assert_array_equal(cached.of_example("margin", 3), small.history(3).margin)
    with_its_own = Recording(memory(small_path, "whole"))
    np.testing.assert_array_equal(with_its_own.history(3).margin, small.history(3).margin)
    assert make_histories(with_its_own).num_records == 17


def test_parts_and_several_are_read_as_one(tmp_path, device, small_dataset, memory):
    import dataclasses

    from train_dynamics.training import sweep

    config = dataclasses.replace(SMALL, epochs=1)
    for part in parts.begin(tmp_path / "by_several", config, 2):
        share = dataclasses.replace(config, first_seed=part.seeds[0], num_seeds=len(part.seeds))
        sweep.train(share, tmp_path / "by_several" / part.name, device, log=silent, dataset=small_dataset)
    url, local = memory(tmp_path / "by_several"), Recording(tmp_path / "by_several")
    directories = [part.name for part in local.paths]
    for remote in (Recording(url), Recording([f"{url}/{name}" for name in directories])):
        assert remote.seeds.tolist() == [0, 1, 2]
        np.testing.assert_array_equal(remote.loss(2), local.loss(2))
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(remote)).loss(2), local.loss(2))
    mixed = Recording([local.paths[0], f"{url}/{directories[1]}"])
    np.testing.assert_array_equal(mixed.loss(2), local.loss(2))


def test_loops_are_listed(tmp_path, memory, asked):
    import jax.numpy as jnp

    import train_dynamics as td

    def loss(params, example):
        out = example[0] @ params["w"]
        return jnp.square(out - example[1]).sum(), out

    data = np.eye(4, 3, dtype=np.float32), np.ones(4, np.float32)
    with td.Recorder(tmp_path / "loop", loss, data, log=silent) as recorder:
        for t in (0, 1, 5):
            recorder.record(t, {"w": jnp.full(3, t / 10)})
    local = Recording(tmp_path / "loop")
    with served(tmp_path, Plain) as plain, served(tmp_path) as ranges:
        for url in (memory(tmp_path / "loop"), f"{plain}/loop"):
            remote = Recording(url)
            assert remote.finished and remote.iterations.tolist() == [0, 1, 5]
            np.testing.assert_array_equal(remote.loss(5), local.loss(5))
            assert verify(remote, 0).problems == []
        with pytest.raises(RecordingError, match=f"^{ranges}/loop/blocks cannot be listed: "):
            Recording(f"{ranges}/loop")


def test_a_byte_that_flips_elsewhere_is_found(small, small_path, memory):
    url, files = memory(small_path), fsspec.filesystem("memory")
    (file,) = (one for one in files.find("/bucket/study/blocks/6/record.loss") if one.endswith("c/0/0/0"))
    content = bytearray(files.cat_file(file))
    content[100] ^= 8
    files.pipe_file(file, bytes(content))
    remote = Recording(url)
    np.testing.assert_array_equal(remote.loss(5), small.loss(5))
    with pytest.raises(
        RecordingError, match=r"^memory://bucket/study/blocks/6/record.loss is damaged or missing: piece"
    ):
        remote.loss(6)
    assert any("blocks/6/record.loss is damaged" in problem for problem in verify(remote, 0).problems)
    files.pipe_file(file, bytes(content[:150]))
    with pytest.raises(RecordingError, match="the file ends at byte 150, before it should"):
        remote.loss(6)
    files.rm_file(file)
    with pytest.raises(RecordingError, match=r"blocks/6/record.loss is damaged or missing"):
        remote.loss(6)
    images = "/bucket/study/dataset/images.npy"
    files.pipe_file(images, files.cat_file(images)[:-1] + b"?")
    with pytest.raises(RecordingError, match="its checksum differs"):
        _ = Recording(url).images


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/nothing", "^memory://bucket/nothing is not a recording: it has no config.json$"),
        (
            "nonsense://bucket/study",
            "^nonsense://bucket/study: fsspec does not know nonsense://; it knows for example s3://",
        ),
        ("zip://study::memory://a.zip", "^zip://study::memory://a.zip: is a chain of URLs; name one alone"),
        ("smb://host/study", "^smb://host/study: smb:// needs a package that is not installed: .*smb"),
    ],
)
def test_what_is_not_to_be_read_gets_a_line(url, message):
    with pytest.raises(InputError, match=message) as caught:
        Recording(url)
    assert "\n" not in str(caught.value)


def test_without_fsspec_a_line_says_so(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^s3://b/study: a URL needs the package fsspec, .*: pip install fsspec$"):
        Recording("s3://b/study")


def test_nothing_is_written_to_urls(small_path, memory, tmp_path, monkeypatch, device):
    import train_dynamics as td
    from train_dynamics.training import sweep

    monkeypatch.chdir(tmp_path)
    line = r"is a URL, and URLs can only be read; write to a local disk and copy the result there"
    with pytest.raises(InputError, match=f"^--recording=memory://bucket/new: {line}"):
        sweep.train(SMALL, "memory://bucket/new", device, log=silent)
    with pytest.raises(InputError, match=line):
        td.Recorder("s3://bucket/new", lambda params, example: 0.0, (np.zeros((2, 2)), np.zeros(2)))
    with pytest.raises(InputError, match=line), Recording(memory(small_path)).writing():
        pass
    for command in ("train", "further"):
        done = run(command, "--recording=s3://bucket/new", cwd=tmp_path)
        assert done.returncode and re.search(line, done.stderr) and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_commands_read_urls(small_path, tmp_path, asked):
    with served(small_path.parent) as url:
        study = f"--recording={url}/{small_path.name}"
        done = run("verify", study, cwd=tmp_path)
        assert done.returncode == 0 and f"{url}/recording: all 17 records of 3 seeds are there" in done.stdout
        done = run("analyze", study, cwd=tmp_path)
        right = "--output=: must name a directory for the results where a recording is read from a URL"
        assert done.returncode and right in done.stderr and done.stderr.count("\n") == 1
        done = run("analyze", study, "--parts=", "--output=s3://bucket/analysis", cwd=tmp_path)
        assert done.returncode and "--output=s3://bucket/analysis: is a URL" in done.stderr
        done = run("animate", study, "--iterations=5", "--output=still.png", cwd=tmp_path)
        assert done.returncode == 0 and (tmp_path / "still.png").is_file(), done.stderr


def test_analyses_of_urls(small_path, tmp_path, memory):
    lines, remote = [], Recording(memory(small_path))
    with sketching(blank=True):
        analysis.analyze(remote, tmp_path / "out", parts=("histories",), log=lines.append)
    assert (tmp_path / "out" / "report.html").is_file()
    (left_out,) = (line for line in lines if line.startswith("Left out: histories"))
    assert left_out.endswith("could not be written: it is a URL, and URLs can only be read")


def test_names_of_what_is_elsewhere(tmp_path):
    url = located("memory://bucket/study/")
    assert url == Url("memory://bucket/study") and url.name == "study" and {url} == {Url(str(url))}
    assert str(url / "a" / "b") == str(url.joinpath("a", "b")) == "memory://bucket/study/a/b"
    assert located(url) is url and located(tmp_path) == tmp_path


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8])
def test_what_was_made_in_order_is_counted_by_asking_for_few(count):
    for there in range(count + 1):
        tried = []
        assert leading(count, lambda k, there=there, tried=tried: tried.append(k) or k < there) == there
        assert len(tried) <= 5


def test_what_a_store_raises_of_its_own_is_one_line(small_path, memory, monkeypatch):
    url = memory(small_path)

    class NoCredentialsError(Exception):
        pass

    def refuse(*_, **__):
        raise NoCredentialsError("Unable to locate credentials\nand more")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", refuse)
    message = f"^{url} cannot be read: NoCredentialsError: Unable to locate credentials$"
    with pytest.raises(RecordingError, match=message):
        Recording(url)


def test_what_a_store_hides_is_not_there(small_path, memory, monkeypatch):
    """As buckets do that may be read and not listed: of a file that is not there they say that it is forbidden."""
    url = memory(small_path)
    files = type(fsspec.filesystem("memory"))
    cat_file = files.cat_file

    class ForbiddenError(Exception):
        status = 403

    def hide(self, path, *rest, **named):
        try:
            return cat_file(self, path, *rest, **named)
        except FileNotFoundError as error:
            raise ForbiddenError("403, message='Forbidden'") from error

    monkeypatch.setattr(files, "cat_file", hide)
    remote = Recording(url)
    assert remote.finished and remote.further is None
