"""The film, as a user asks for it."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import time

import av
import numpy as np
import pytest

from tests.conftest import contents, run, run_anew
from train_dynamics import animate, commands
from train_dynamics.config import InputError
from train_dynamics.plots import film


def decoded(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        about = (stream.codec_context.name, stream.pix_fmt, stream.average_rate, stream.frames)
        return about, [one.to_ndarray(format="rgb24") for one in container.decode(video=0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":", range(17)),
        ("0:5", range(5)),
        ("3:", range(3, 17)),
        ("::5", range(0, 17, 5)),
        ("-3:", range(14, 17)),
        ("2:500:10", range(2, 17, 10)),
        ("4", range(4, 5)),
        ("0", range(1)),
        ("-1", range(16, 17)),
    ],
)
def test_spans_are_slices_of_what_is_there(text, expected):
    assert list(animate.span(text, np.arange(17))) == list(expected)


@pytest.mark.parametrize("text", ["", "a", "1:b", "1:2:3:4", "::-1", "::0", "5:5", "9:2", "17", "-18", "1.5"])
def test_spans_that_are_none(text):
    with pytest.raises(InputError, match="--iterations="):
        animate.span(text, np.arange(17))


def test_an_mp4_that_browsers_play(small_path, tmp_path):
    arguments = ["--iterations=2:12:2", "--fps=25", "--seed=1", "--output=out.mp4"]
    done = run_anew("animate", f"--recording={small_path}", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Wrote out.mp4: 5 frames, iterations 2 to 10 of seed 1, ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mp4"]
    about, pictures = decoded(tmp_path / "out.mp4")
    assert about == ("h264", "yuv420p", 25, 5) and len(pictures) == 5
    assert pictures[0].shape == (648, 960, 3)
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before all of it is there
    assert (pictures[0] != pictures[-1]).any()


def test_a_gif_looks_like_what_was_painted(small, tmp_path):
    film.film(small, tmp_path / "out.gif", 0, range(0, 17, 4), fps=10, history=1, width=480)
    about, pictures = decoded(tmp_path / "out.gif")
    assert (about[0], about[2]) == ("gif", 10)
    assert len(pictures) == 5 and pictures[0].shape == (324, 480, 3)
    painter = film.scatter.Painter(film.view(small, 0, range(0, 17, 4)), history=1, width=480)
    for found, frame in zip(pictures, film.frames(small, 0, range(0, 17, 4)), strict=True):
        difference = np.abs(found.astype(int) - painter.paint(frame)[..., :3])
        assert difference.max() < 50 and difference.mean() < 2


def test_the_trail_of_the_first_frame_begins_before_it(small, tmp_path):
    assert list(film._before(small, range(10, 17, 3), 2)) == [4, 7]
    assert list(film._before(small, range(4, 17, 3), 2)) == [1]
    assert list(film._before(small, range(0, 17), 5)) == list(film._before(small, range(3, 9), 0)) == []


def test_pictures_of_one_iteration(small, small_path, tmp_path):
    arguments = ["--iterations=-1", "--history=3", f"--output={tmp_path / 'one.PNG'}"]
    done = run("animate", f"--recording={small_path}", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "iteration 16 of seed 0" in done.stdout
    for name in ("same.png", "one.svg", "same.svg"):
        film.save(film.still(small, 0, 16, history=3), tmp_path / name)
    data = (tmp_path / "one.PNG").read_bytes()
    assert struct.unpack(">II", data[16:24]) == (1200, 810)
    assert data == (tmp_path / "same.png").read_bytes()
    text = (tmp_path / "one.svg").read_text()
    assert "</svg>" in text and "<image" in text  # points are pixels, so that thousands do not make megabytes
    assert text == (tmp_path / "same.svg").read_text()


def test_unfinished_recordings_show_what_is_there(small_path, tmp_path):
    shutil.copytree(small_path, tmp_path / "unfinished")
    shutil.rmtree(tmp_path / "unfinished" / "blocks" / "15")
    done = run("animate", "--recording=unfinished", "--iterations=10:", "--output=out.gif", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "5 frames, iterations 10 to 14" in done.stdout


def test_a_file_is_replaced_only_when_told(small_path, tmp_path):
    (tmp_path / "out.png").write_text("mine")
    arguments = [f"--recording={small_path}", "--iterations=0", f"--output={tmp_path / 'out.png'}"]
    refused = run("animate", *arguments)
    assert refused.returncode == 1
    assert "out.png: exists; choose another name, or add --overwrite" in refused.stderr
    assert (tmp_path / "out.png").read_text() == "mine"
    assert run("animate", *arguments, "--overwrite").returncode == 0
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"


def test_mistakes_get_one_clear_line_and_nothing_is_written(small_path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used.mp4").write_text("mine")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty").mkdir()
    shutil.copytree(small_path, tmp_path / "begun")
    shutil.rmtree(tmp_path / "begun" / "blocks")
    shutil.copytree(small_path, tmp_path / "damaged")
    shutil.rmtree(tmp_path / "damaged" / "blocks" / "3" / "record.cotangent.fc2" / "c")
    before = contents(tmp_path)
    for arguments, message in [
        (["--iterations=a:b"], "--iterations=a:b: must look like 0:120, ::10 or 40"),
        (["--iterations=::-1"], "--iterations=::-1: must look like 0:120, ::10 or 40, with a stride of 1 or more"),
        (["--iterations=9:3"], "--iterations=9:3: selects none of the 17 recorded iterations, which go from 0 to 16"),
        (["--iterations=17"], "--iterations=17: selects none of the 17 recorded iterations, which go from 0 to 16"),
        (["--seed=3"], "--seed=3: was not recorded; "),
        (["--seed=x"], "--seed=x: must be a whole number, 0 to 2147483647"),
        (["--layers=fc1"], "--layers=fc1: must be one or more of those recorded, each once: fc2"),
        (["--layers="], "--layers=: must be one or more of those recorded"),
        (["--fps=0"], "--fps=0: must be a whole number, 1 to 120"),
        (["--fps=60", "--output=out.gif"], "--fps=60: must be a whole number, 1 to 50"),
        (["--history=-1"], "--history=-1: must be a whole number, 0 to 100"),
        (["--output=out.avi"], "--output=out.avi: must end in one of .mp4, .gif, .png, .svg"),
        (["--output=out"], "--output=out: must end in one of .mp4"),
        (["--output="], "--output=.: must end in one of .mp4"),
        (
            ["--output=out.png", "--iterations=0:2"],
            "--output=out.png: shows one iteration and not 2; use --iterations=1",
        ),
        (["--output=used.mp4"], "--output=used.mp4: exists; choose another name, or add --overwrite"),
        (["--output=folder.mp4", "--overwrite"], "--output=folder.mp4: is a directory; name a file"),
        (["--output=missing/out.mp4"], "--output=missing/out.mp4: there is no directory missing to write into"),
        ([f"--output={'x' * 300}.mp4"], "cannot be written: File name too long"),
        (["--output=/proc/out.mp4"], "--output=/proc/out.mp4: cannot be written"),
        (["--recording="], "--recording=: must name a directory"),
        (["--recording=empty"], "empty is not a recording: it has no config.json"),
        (["--recording=begun"], "--recording=begun: has no records yet"),
        (["--recording=damaged"], "damaged/blocks/3/record.cotangent.fc2 is damaged or missing"),
        (["0:3"], "'0:3' is not a flag; flags look like --recording=DIR"),
    ]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        flags = animate.flags.FLAGS
        rest = flags(["animate", f"--recording={small_path}", *arguments])
        try:
            with pytest.raises(SystemExit) as ended:
                commands.call("animate", animate.main, rest)
        finally:
            flags.unparse_flags()
            for name in flags.flags_by_module_dict()["train_dynamics.animate"]:
                name.unparse()
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
                signal.signal(number, handler)
        assert message in str(ended.value.code), arguments
        assert len(str(ended.value.code).splitlines()) == 1
        assert contents(tmp_path) == before, arguments
    assert capsys.readouterr().out == ""


def test_a_mistake_as_the_shell_sees_it(small_path, tmp_path):
    done = run("animate", f"--recording={small_path}", "--output=out.avi", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "animate: --output=out.avi: must end in one of .mp4, .gif, .png, .svg\n"
    assert not list(tmp_path.iterdir())


def test_help_reads_well():
    done = run("animate", "--help")
    for name in ("recording", "output", "iterations", "seed", "layers", "fps", "history"):
        assert f"--{name}:" in done.stdout
    assert "--[no]overwrite:" in done.stdout
    assert "(default: scatter.mp4)" in done.stdout


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_film_leaves_nothing(small_path, tmp_path, number, status):
    program = (
        "import itertools, pathlib, signal, numpy as np\n"
        "from train_dynamics import animate\n"
        "from train_dynamics.plots import film\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, animate.stop)\n"
        "film.encode(itertools.repeat(np.zeros((64, 64, 4), np.uint8)), pathlib.Path('out.mp4'), 30)\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    while not (tmp_path / "out.mp4.incomplete").exists():
        assert running.poll() is None
        time.sleep(0.005)
    running.send_signal(number)
    _, errors = running.communicate(timeout=300)
    assert (running.returncode, errors) == (status, "animate: interrupted; nothing was written\n")
    assert not list(tmp_path.iterdir())
