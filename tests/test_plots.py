"""What is drawn is what was computed; how it looks is for eyes."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from train_dynamics.plots import curves, grids, groups, scatter, style
from train_dynamics.study.motion import Frame


def test_accuracy_draws_mean_and_band():
    axes = curves.accuracy(np.array([0, 2, 3]), np.array([[0.1, 0.4, 0.9], [0.1, 0.6, 0.9]])).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 0.1], [2, 0.5], [3, 0.9]])
    band = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(sorted({round(y, 9) for x, y in band if x == 2}), [0.4, 0.6])
    assert "updates" in axes.get_xlabel()
    assert "2 seeds" in axes.get_title("left")


def test_by_chunk_draws_a_line_for_each_chunk(rng):
    values = rng.random((2, 5, 10))
    figure = curves.by_chunk(np.arange(5), values, "length (cm)", "Lengths", share=False)
    lines = figure.axes[0].lines
    np.testing.assert_allclose([line.get_ydata() for line in lines], values.mean(axis=0).T)
    brightness = [np.dot(line.get_color()[:3], (0.299, 0.587, 0.114)) for line in lines]
    assert (np.diff(brightness) > 0).all()  # the order shows in grey too
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [str(k) for k in range(10)]
    assert figure.axes[0].get_ylabel() == "length (cm)"


def test_learning_draws_three_curves_a_panel_and_shades_between(rng):
    first, accuracy, last = (np.sort(rng.random((2, 6, 3)), axis=1) for _ in range(3))
    figure = curves.learning(np.arange(6), first, accuracy, last, ["a", "b", "c"])
    assert [axes.get_title("left") for axes in figure.axes] == ["a", "b", "c"]
    for g, axes in enumerate(figure.axes):
        for line, values in zip(axes.lines, (first, accuracy, last), strict=True):
            np.testing.assert_allclose(line.get_ydata(), values[..., g].mean(axis=0))
        colors = [line.get_color() for line in axes.lines]
        assert colors == [style.BLUE, style.GREEN, style.ORANGE]
        assert len({line.get_linestyle() for line in axes.lines}) == 3  # told apart without colour
        assert len(axes.collections) == 1


def test_mosaic_by_hand():
    images = np.array(
        [[[[1], [2]], [[3], [4]]], [[[5], [6]], [[7], [8]]]], np.uint8
    )  # two images of 2 x 2, cells 3 x 3
    found = grids.mosaic(images)
    assert found.shape == (3, 8 * 3)
    np.testing.assert_array_equal(found[:, :6], [[0, 0, 0, 0, 0, 0], [1, 2, 0, 5, 6, 0], [3, 4, 0, 7, 8, 0]])
    assert not found[:, 6:].any()


def test_grid_shows_the_images_in_order(rng):
    for count, channels in [(64, 1), (11, 3)]:
        images = rng.integers(0, 256, (count, 4, 4, channels)).astype(np.uint8)
        figure = grids.image_grid(images, [str(n) for n in range(count)], "title")
        (axes,) = figure.axes
        (drawn,) = axes.images
        np.testing.assert_array_equal(drawn.get_array(), grids.mosaic(images))
        for n, text in enumerate(axes.texts):
            row, column = divmod(n, 8)
            cell = drawn.get_array()[5 * row : 5 * row + 5, 5 * column : 5 * column + 5]
            np.testing.assert_array_equal(cell[1:, :4], images[n].squeeze())
            x, y = text.get_position()
            assert (text.get_text(), int(x), int(y)) == (str(n), column, row)


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        style.save(curves.accuracy(np.arange(2), np.array([[0.1, 0.5]])), tmp_path / name)
    for kind in ("png", "svg"):
        one = (tmp_path / f"a.{kind}").read_bytes()
        assert one == (tmp_path / f"b.{kind}").read_bytes()
        assert len(one) > 1000


@pytest.mark.parametrize("count", [1, 4])
def test_names_of_layers_are_paths_and_have_room(rng, count):
    """Titles and legends of networks with long names lie within their figures, and do not run into each other."""
    names = tuple(f"encoder/block{k}/attention/query/kernel" for k in range(count))
    curve = {f"within a class in {name}": rng.normal(size=(2, 4)) for name in names}
    drawn = [
        curves.by_chunk(
            np.arange(4), rng.random((2, 4, 3)), "norm", f"Gradient norm of each chunk in {names[0]}", False
        ),
        groups.panels(np.arange(4), [curve], ["mean cosine"], [False], "Stiffness"),
    ]
    frame = Frame(3, rng.random((count, 5)), rng.random((count, 5)), np.ones(count), np.arange(5) > 2)
    view = scatter.View(names, np.ones(count), "five examples")
    drawn += [scatter.key_frames(view, [frame, frame]), scatter.scatter(view, frame)]
    for figure in drawn:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        boxes = [axes.get_title("left") and axes._left_title.get_window_extent() for axes in figure.axes]
        boxes += [legend.get_window_extent() for legend in figure.legends]
        boxes += [text.get_window_extent() for axes in figure.axes for text in axes.texts if text.get_text()]
        boxes = [box for box in boxes if box]
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 + 1 for box in boxes)
        assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k])


def test_short_texts_are_drawn_larger():
    sizes = [grids.text_grid([text], ["a"], "title").axes[0].texts[0].get_fontsize() for text in ("()", "w" * 26)]
    assert sizes == [11, 5]


def test_letters_that_the_font_lacks_are_listed_once_and_drawn_without_a_warning(tmp_path):
    assert style.lacking(["cat", "日本", "本"]) == "日本"
    figure = Figure(figsize=(1, 1))
    figure.suptitle("日本")
    style.save(figure, tmp_path / "boxes")
    assert (tmp_path / "boxes.png").is_file()
