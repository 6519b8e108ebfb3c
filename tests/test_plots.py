"""What is drawn is what was computed; how it looks is for eyes."""

import io

import numpy as np

from train_dynamics.plots import curves, grids, style


def test_accuracy_draws_mean_and_band():
    mean, std = np.array([0.1, 0.5, 0.9]), np.array([0.0, 0.1, 0.05])
    axes = curves.accuracy(mean, std, num_seeds=3).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), np.stack([np.arange(3), mean], 1))
    band = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [0.1, 0.95])
    assert "updates" in axes.get_xlabel() and "3 seeds" in axes.get_title("left")


def test_chunk_accuracy_draws_a_line_for_each_chunk(rng):
    mean = rng.random((5, 10))
    figure = curves.chunk_accuracy(mean, num_seeds=2)
    lines = figure.axes[0].lines
    np.testing.assert_array_equal([line.get_ydata() for line in lines], mean.T)
    brightness = [np.dot(line.get_color()[:3], (0.299, 0.587, 0.114)) for line in lines]
    assert (np.diff(brightness) > 0).all()  # the order shows in grey too
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [str(k) for k in range(10)]


def test_grid_shows_the_images_in_order(rng):
    for count, channels in [(64, 1), (5, 3)]:
        images = rng.integers(0, 256, (count, 4, 4, channels)).astype(np.uint8)
        figure = grids.image_grid(images, [str(n) for n in range(count)], "title")
        shown = [axes for axes in figure.axes if axes.images]
        assert len(shown) == count
        for n, axes in enumerate(shown):
            np.testing.assert_array_equal(axes.images[0].get_array(), images[n].squeeze())
            assert axes.get_title() == str(n)


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        style.save(curves.accuracy(np.array([0.1, 0.5]), np.zeros(2), 1), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert io.BytesIO((tmp_path / "a.png").read_bytes()).getbuffer().nbytes > 1000
