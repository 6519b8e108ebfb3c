"""Points are where they belong, in their shapes, on axes that hold still."""

import dataclasses

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from tests import oracles
from train_dynamics.config import InputError
from train_dynamics.plots import scatter
from train_dynamics.plots.style import GREEN, ORANGE
from train_dynamics.recording.contents import mlp_contents
from train_dynamics.recording.reader import Recording
from train_dynamics.study import motion

VIEW = scatter.View(("fc2",), np.array([4.0]), "about")


def frame(*points, iteration=7, mean_norm=0.5):
    """A frame of one layer, of points (norm, cosine, whether correct)."""
    norm, cosine, correct = np.array(points, float).reshape(-1, 3).T
    return motion.Frame(iteration, norm[None], cosine[None], np.array([mean_norm]), correct.astype(bool))


def place(painter, norm, cosine, panel=0):
    """Row and column of a point, from the axes of its panel and the square root scale."""
    box = painter._scaffold.panels[panel].bbox
    across = box.x0 + np.sqrt(norm / painter.view.reach[panel]) * box.width
    up = box.y0 + (cosine + 1) / 2 * box.height
    return int(painter.shape[0] - up), int(across)


def grey(picture):
    return picture[..., :3] @ np.array([0.299, 0.587, 0.114])


def around(picture, row, column, size=6):
    return picture[row - size : row + size + 1, column - size : column + size + 1]


@pytest.fixture(scope="module")
def painter():
    return scatter.Painter(VIEW)


class InMemory(Recording):
    """The small recording, as if fc1, whose activation is the images, had been recorded too, in either layout."""

    def __init__(self, path, layout):
        super().__init__(path)
        self.config = dataclasses.replace(self.config, layers=("fc1", "fc2"), gradient_layout=layout, first_seed=4)
        self.seeds = np.array(self.config.seeds)
        self.contents = mlp_contents(self.config, (784, 5, 10))

    def vectors(self, layer, t):
        if self.config.gradient_layout == "dense":
            return (self.gradients(layer, t).reshape(3, 50, -1),)
        return self.factors(layer, t)

    def factors(self, layer, t):
        if layer == "fc2":
            return super().factors(layer, t)
        cotangent = np.random.default_rng(t).standard_normal((3, 50, 5)).astype(np.float32)
        return self.inputs().reshape(1, 50, -1), cotangent

    def gradients(self, layer, t):
        activation, cotangent = self.factors(layer, t)
        return activation[..., :, None] * cotangent[..., None, :]


@pytest.mark.parametrize("layout", ["factored", "dense"])
def test_frames_against_one_example_at_a_time(small_path, layout):
    recording = InMemory(small_path, layout)
    found = list(motion.frames(recording, 5, [16, 0]))
    assert [one.iteration for one in found] == [16, 0]
    for one in found:
        assert one.norm.dtype == one.cosine.dtype == np.float32
        for k, layer in enumerate(("fc1", "fc2")):
            gradients = recording.gradients(layer, one.iteration)[1]  # seed 5 is the second
            norm, cosine = oracles.alignment(gradients)
            # Sums of 784 squares in float32, each of which rounds by 6e-8, half as much in their root.
            np.testing.assert_allclose(one.norm[k], norm, rtol=5e-5)
            np.testing.assert_allclose(one.cosine[k], cosine, atol=5e-5)
            mean = sum(gradient.astype(np.float64) for gradient in gradients) / 50
            np.testing.assert_allclose(one.mean_norm[k], np.sqrt((mean**2).sum()), rtol=5e-5)
        guesses = recording.predictions(one.iteration)[1]
        correct = [guess == label for guess, label in zip(guesses, recording.labels, strict=True)]
        np.testing.assert_array_equal(one.correct, correct)
        assert one.accuracy == sum(correct) / 50
    (one,) = motion.frames(recording, 5, [16], ["fc2"])
    np.testing.assert_array_equal(one.norm, found[0].norm[1:])


def test_frames_of_what_was_not_recorded(small):
    with pytest.raises(InputError, match=r"--seed=3: was not recorded; .* has seeds 0 to 2"):
        motion.frames(small, 3, [0])
    for layers in (["fc1"], ["fc2", "fc2"], []):
        with pytest.raises(InputError, match=r"--layers=.*: must be one or more of those recorded, each once: fc2"):
            motion.frames(small, 0, [0], layers)
    with pytest.raises(IndexError):
        list(motion.frames(small, 0, [17]))


def test_reach_leaves_out_the_few_and_takes_the_widest_frame():
    narrow, wide = (frame(*[(factor * n, 0, 1) for n in range(1001)]) for factor in (0.001, 0.01))
    assert motion.reach([narrow, wide, narrow]) == pytest.approx([9.95])  # 5 of 1,000 lie beyond
    assert motion.reach([frame((0, 0, 1))]) == [1.0]


@pytest.mark.parametrize(("norm", "cosine"), [(0.0, 0.0), (1.0, 0.5), (2.3, -0.7), (3.99, 0.99), (0.01, -1.0)])
def test_a_point_is_at_its_place(painter, norm, cosine):
    picture, empty = painter.paint(frame((norm, cosine, 1))), painter.paint(frame((0, 1, 1)))
    row, column = place(painter, norm, cosine)
    changed = np.argwhere((picture != empty).any(axis=-1) & (np.arange(picture.shape[1]) > 0))
    near = changed[np.abs(changed - [row, column]).max(axis=1) < 8]
    np.testing.assert_allclose(near.mean(axis=0), [row, column], atol=1)  # a pixel
    red, green, blue = picture[row, column, :3].astype(int)
    assert green > red and green > blue


def test_correct_and_wrong_differ_in_shape_without_colour(painter):
    row, column = place(painter, 1.4, 0.25)
    disc = grey(around(painter.paint(frame((1.4, 0.25, 1))), row, column)) < 240
    cross = grey(around(painter.paint(frame((1.4, 0.25, 0))), row, column)) < 240
    disc_row, cross_row = (np.flatnonzero(shape[shape.any(axis=1)][0]) for shape in (disc, cross))  # the uppermost
    assert (np.diff(disc_row) == 1).all()
    assert (np.diff(cross_row) > 1).sum() == 1
    red, green, blue = painter.paint(frame((1.4, 0.25, 0)))[row, column, :3].astype(int)
    assert red > green and red > blue


def test_what_is_off_the_scale_stays_in_sight(painter):
    row, column = place(painter, 4.0, 0.25)
    empty = painter.paint(frame((1, -0.5, 1)))
    inked = {}
    for correct in (0, 1):
        for norm in (4.0, 40.0, 4000.0):
            picture = painter.paint(frame((1, -0.5, 1), (norm, 0.25, correct)))
            inked[norm, correct] = (around(picture, row, column, 8) != around(empty, row, column, 8)).any(axis=-1)
            assert inked[norm, correct].sum() >= 15
            changed = np.argwhere((picture != empty).any(axis=-1))
            changed = changed[changed[:, 0] > painter._box[0].start]  # the numbers are above
            assert (np.abs(changed - [row, column]) <= 8).all()  # there, and nowhere else
        np.testing.assert_array_equal(inked[40.0, correct], inked[4000.0, correct])
        assert inked[40.0, correct].sum() > inked[4.0, correct].sum()  # an arrowhead, larger than a point
    assert (inked[40.0, 0] != inked[40.0, 1]).any()


def test_the_axes_hold_still_and_the_numbers_do_not(painter):
    one = painter.paint(frame((1, 0, 1), iteration=7))
    other = painter.paint(frame((30, 0.5, 0), (2, -0.9, 1), iteration=1234, mean_norm=0.0123))
    assert one.shape == other.shape == (*painter.shape, 4)
    rows, columns = painter._box
    changed = (one != other).any(axis=-1)
    assert changed[:, : columns.start].sum() == changed[rows.stop :].sum() == 0  # tick labels and axis labels
    assert changed[: rows.start].sum() > 50  # iteration, accuracy and norm
    np.testing.assert_array_equal(painter.paint(frame((1, 0, 1), iteration=7)), one)


def test_overlapping_points_darken_and_the_painter_agrees_with_the_figure(painter, rng):
    points = np.stack([3.9 * rng.random(400) ** 2, rng.uniform(-1, 1, 400), rng.random(400) < 0.6], axis=1)
    one = frame(*points, (20, 0.5, 1), (30, -0.5, 0))
    canvas = FigureCanvasAgg(scatter.scatter(VIEW, one))
    canvas.figure.set_dpi(scatter.DPI)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba()).astype(int)
    painted = painter.paint(one).astype(int)
    assert drawn.shape == painted.shape
    rows, columns = painter._box
    difference = np.abs(drawn - painted)[rows, columns]
    assert difference.mean() < 2
    assert np.median(difference[(painted[rows, columns] < 250).any(axis=-1)]) < 12
    row, column = place(painter, 1.4, 0.3)
    shades = [painter.paint(frame(*[(1.4, 0.3, 1)] * n))[row, column, 0] for n in (1, 2, 3)]
    np.testing.assert_allclose(shades, [255 / 2, 255 / 4, 255 / 8], atol=8)  # half opaque: each lets half through


def test_neither_kind_hides_the_other(painter):
    """Where as many correct as wrong examples lie on one another, the picture is of neither colour alone."""
    many = [(2 + 0.3 * np.sin(k), 0.2 * np.cos(1.7 * k), k % 2) for k in range(2000)]
    row, column = place(painter, 2, 0)
    for shift in range(2):  # whoever comes first
        canvas = FigureCanvasAgg(scatter.scatter(VIEW, frame(*many[shift:])))
        canvas.figure.set_dpi(scatter.DPI)
        canvas.draw()
        for picture in (np.asarray(canvas.buffer_rgba()), painter.paint(frame(*many[shift:]))):
            found = around(picture[..., :3], row, column, 12).mean(axis=(0, 1)) / 255
            share = (found[0] - to_rgb(GREEN)[0]) / (to_rgb(ORANGE)[0] - to_rgb(GREEN)[0])  # of orange, by its red
            assert 0.1 < share < 0.9


def test_history_leaves_a_faint_trail():
    painter = scatter.Painter(VIEW, history=2)
    shades = []
    for cosine in (-0.6, 0.1, 0.6, 0.8):
        picture = painter.paint(frame((1.4, cosine, 1)))
        shades.append([255 - int(picture[(*place(painter, 1.4, y), 0)]) for y in (-0.6, 0.3, 0.6)])
    (first, _, _), (second, _, _), (third, _, now), (fourth, _, last) = shades
    assert first > 100 and now > 100
    assert first > second > third > fourth == 0  # fades, and is gone after two frames
    assert now > last > 0
    assert not any(nowhere for _, nowhere, _ in shades)


def test_panels_of_several_layers():
    view = scatter.View(("fc1", "fc2"), np.array([4.0, 0.02]), "about")
    norm, cosine = np.array([[1.0], [0.01]]), np.array([[0.5], [-0.5]])
    one = motion.Frame(3, norm, cosine, np.array([0.1, 0.2]), np.array([True]))
    painter = scatter.Painter(view, width=901)
    picture = painter.paint(one)
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    for k in range(2):
        row, column = place(painter, norm[k, 0], cosine[k, 0], k)
        assert picture[row, column, 0] < 150
    figure = scatter.scatter(view, one, [one])
    assert [axes.get_title("left") for axes in figure.axes] == ["fc1", "fc2"]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    for count, expected in ((1, 2), (3, 6)):
        assert len(scatter.key_frames(view, [one] * count).axes) == expected
    assert len(scatter.key_frames(VIEW, [frame((1, 0, 1))] * 3).axes) == 3


def test_the_figure_says_what_it_shows():
    figure = scatter.scatter(VIEW, frame((1, 0, 1), (9, 0, 0), iteration=1234, mean_norm=0.0625))
    words = {text.get_text() for text in figure.texts} | {text.get_text() for text in figure.axes[0].texts}
    assert {"iteration", "1,234", "accuracy", "50.0 %", "norm of the mean gradient", "0.0625"} <= words
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [mark.label for mark in scatter.MARKS]
    assert len({collection.get_paths()[0].vertices.tobytes() for collection in figure.axes[0].collections}) == 4


@pytest.mark.parametrize("edge", [1e-7, 0.03, 1.0, 9.9, 27.2, 12345.0])
def test_ticks_are_round_and_apart(edge):
    ticks = scatter._ticks(edge)
    assert ticks[0] == 0 and len(ticks) >= 4 and max(ticks) <= edge
    assert (np.diff(np.sqrt(np.array(ticks) / edge)) > 0.09).all()
