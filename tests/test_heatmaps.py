import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from captum_nif import NIFAttribution
from captum_nif.plotting.heatmaps import plot_attribution_matrix, plot_saliency


@pytest.fixture
def ax():
    return Figure(figsize=(6, 4)).subplots()


@pytest.fixture(autouse=True)
def no_figures_stay():
    yield
    plt.close("all")


def test_positive_pixels_are_blue_negative_ones_red_and_strong_ones_opaque(ax):
    attribution = torch.tensor([[4.0, -2.0], [1.0, 0.0]])
    plot_saliency(attribution, torch.rand(2, 2), ax, clip=1.0)
    _, overlay = ax.images
    red, _, blue, opacity = np.moveaxis(np.asarray(overlay.get_array()), -1, 0)
    assert (blue > red).tolist() == [[True, False], [True, True]]
    assert opacity.tolist() == [[1.0, 0.5], [0.25, 0.0]]


def test_channels_are_summed_and_one_outlier_does_not_pale_the_rest(ax):
    attribution = torch.ones(3, 20, 20)
    attribution[:, 0, 0] = 1e6
    plot_saliency(attribution[None], torch.rand(1, 3, 20, 20), ax)
    opacity = np.asarray(ax.images[1].get_array())[..., 3]
    assert (opacity == 1.0).all()
    bar = ax.figure.axes[1]
    assert bar.get_ylim() == pytest.approx((-3.0, 3.0))


def test_the_image_lies_below_stretched_to_its_own_range(ax):
    image = torch.tensor([[-1.0, 3.0], [1.0, 0.0]])
    plot_saliency(torch.zeros(2, 2), image, ax, cmap="gray_r")
    below = ax.images[0]
    assert np.asarray(below.get_array()).tolist() == [[0.0, 1.0], [0.5, 0.25]]
    assert below.get_cmap().name == "gray_r"
    assert (np.asarray(ax.images[1].get_array())[..., 3] == 0.0).all()


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def as_drawn(ax, cell):
    """The colors in the middle of a cell of the axes, and in its upper left third."""
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    row, column = cell
    found = []
    for shift in (0.0, -1.0 / 3.0):
        x, y = ax.transData.transform((column + shift, row + shift))
        found.append(tuple(pixels[len(pixels) - 1 - int(y), int(x), :3].tolist()))
    return found


def test_pixels_that_may_be_noise_are_drawn_small(ax):
    attribution = torch.tensor([[4.0, -4.0], [4.0, 0.0]])
    error = torch.tensor([[1.9, 2.1], [2.0, 0.0]])
    plot_saliency(attribution, torch.zeros(2, 2), ax, standard_error=error, clip=1.0)
    assert legend_of(ax) == ["within 2 standard errors of 0 (75%)"]
    assert ax.get_xlim() == (-0.5, 1.5)
    assert ax.get_ylim() == (1.5, -0.5)
    clear, middle, rim = (184, 28, 28), (26, 76, 184), (166, 166, 166)
    for cell, expected in {
        (0, 0): [middle, middle],
        (0, 1): [clear, rim],
        (1, 0): [middle, rim],
        (1, 1): [rim, rim],
    }.items():
        for found, color in zip(as_drawn(ax, cell), expected, strict=True):
            assert np.abs(np.subtract(found, color)).max() <= 2, cell


def test_errors_of_channels_bound_the_error_of_their_sum(ax):
    rng = np.random.default_rng(0)
    noise = torch.tensor(rng.normal(size=(500, 3, 6, 6)))
    noise[:, 2] = noise[:, 1]  # together they scatter most, and exactly so
    errors = noise.std(0)
    truth = noise.sum(1).std(0)
    attribution = torch.zeros(3, 6, 6, dtype=torch.float64)
    attribution[0] = 2.0 * truth * torch.tensor(rng.uniform(0.5, 1.5, (6, 6)))
    plot_saliency(attribution, torch.rand(6, 6), ax, standard_error=errors)
    fine = np.asarray(ax.images[1].get_array())[..., 3]
    drawn_whole = fine[::3, ::3] > 0.0
    assert (attribution.sum(0).abs() > 2.0 * truth).numpy()[drawn_whole].all()
    within = (attribution.sum(0).abs() <= 2.0 * errors.sum(0)).numpy()
    assert (drawn_whole == ~within).all()


def test_grouped_channels_are_judged_by_the_error_of_their_group():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
    rng = torch.Generator().manual_seed(1)
    nif = NIFAttribution(net).fit(torch.randn(200, 3, 2, 2, generator=rng))
    x = torch.randn(1, 3, 2, 2, generator=rng)
    pixels = torch.arange(4).view(1, 2, 2).expand(3, 2, 2)
    attribution = nif.attribute(x, 0, feature_mask=pixels)
    error = nif.standard_error(x, 0, feature_mask=pixels)
    ax = plot_saliency(attribution, x, standard_error=error)
    expected = attribution[0, 0].abs() <= 2.0 * error[0, 0]
    rim = np.asarray(ax.images[1].get_array())[::3, ::3, 3]
    assert (rim == 0.0).tolist() == expected.tolist()
    assert legend_of(ax) == [
        f"within 2 standard errors of 0 ({expected.float().mean():.0%})"
    ]


@pytest.mark.parametrize(
    ("error", "arguments", "words"),
    [
        (TypeError, {"attribution": [[1.0]]}, "got list"),
        (ValueError, {"attribution": torch.zeros(2, 3, 4, 4)}, "one image"),
        (ValueError, {"image": torch.zeros(5, 4)}, "5 x 4"),
        (ValueError, {"image": torch.full((4, 4), torch.nan)}, "NaN"),
        (ValueError, {"clip": 0.0}, "clip"),
        (TypeError, {"standard_error": 0.1}, "standard_error must be a Tensor"),
        (
            ValueError,
            {"standard_error": torch.zeros(4, 5)},
            r"\[1, 4, 5\].*\[1, 4, 4\]",
        ),
        (ValueError, {"standard_error": torch.full((4, 4), -0.5)}, "such as -0.5"),
        (ValueError, {"standard_error": torch.full((4, 4), torch.nan)}, "NaN"),
    ],
)
def test_bad_maps_are_refused_before_a_figure_is_made(error, arguments, words):
    good = {"attribution": torch.zeros(4, 4), "image": torch.zeros(4, 4)}
    with pytest.raises(error, match=words):
        plot_saliency(**{**good, **arguments})
    assert plt.get_fignums() == []


def test_a_matrix_shows_its_numbers_and_names(ax):
    matrix = torch.tensor([[0.5, -0.25], [0.125, 1.0], [0.0, 0.75]])
    plot_attribution_matrix(matrix, ["a", "b", "c"], ["no", "yes"], ax)
    assert np.asarray(ax.images[0].get_array()).tolist() == matrix.tolist()
    assert ax.images[0].get_clim() == (-1.0, 1.0)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["no", "yes"]
    written = [float(text.get_text()) for text in ax.texts]
    assert written == pytest.approx(matrix.flatten().tolist(), abs=0.006)


def test_without_negative_values_the_scale_begins_at_nothing(ax):
    plot_attribution_matrix(torch.rand(60, 10), ax=ax)
    low, high = ax.images[0].get_clim()
    assert low == 0.0 < high
    assert ax.texts == [] or len(ax.texts) == 0
    assert len(ax.get_yticks()) <= 40


def test_image_shaped_features_give_an_image_for_each_class(ax):
    matrix = torch.rand(2 * 3 * 4, 5)
    plot_attribution_matrix(
        matrix, class_names=list("abcde"), ax=ax, image_shape=(2, 3, 4)
    )
    assert len(ax.images) == 5
    for n, image in enumerate(ax.images):
        expected = matrix[:, n].double().view(2, 3, 4).sum(0)
        assert np.asarray(image.get_array()) == pytest.approx(expected.numpy())
    assert [text.get_text() for text in ax.texts] == list("abcde")
    extents = [image.get_extent() for image in ax.images]
    for n, (left, right, bottom, top) in enumerate(extents):
        assert right - left == pytest.approx(4)
        assert top - bottom == pytest.approx(3)
        for other in extents[:n]:
            apart = left >= other[1] or top <= other[2] or right <= other[0]
            assert apart


def test_standard_errors_stand_below_the_numbers(ax):
    matrix = torch.tensor([[0.5, -0.25], [0.125, 1.0]])
    errors = torch.tensor([[0.1, 0.2], [0.3, 0.04]])
    plot_attribution_matrix(matrix, ax=ax, standard_error=errors)
    written = [text.get_text().split("\n\N{PLUS-MINUS SIGN} ") for text in ax.texts]
    found = torch.tensor([[float(each) for each in pair] for pair in written])
    assert torch.allclose(found[:, 0], matrix.flatten(), atol=0.0051)
    assert torch.equal(found[:, 1], errors.flatten())
    assert np.asarray(ax.images[0].get_array()).tolist() == matrix.tolist()
    assert ax.get_legend() is None


def test_cells_without_numbers_are_small_where_they_may_be_noise(ax):
    matrix = torch.rand(30, 10).double() + 0.01
    errors = matrix * torch.linspace(0.0, 1.0, 300).view(30, 10)
    plot_attribution_matrix(matrix, ax=ax, standard_error=errors)
    cells = np.asarray(ax.images[0].get_array()).reshape(30, 3, 10, 3)
    assert (cells[:, 1, :, 1] == matrix.numpy()).all()
    clear = (matrix > 2.0 * errors).numpy()
    assert 0.4 < clear.mean() < 0.6
    for row in range(3):
        for column in range(3):
            if (row, column) != (1, 1):
                assert (cells[:, row, :, column] == matrix.numpy() * clear).all()
    assert legend_of(ax) == [f"within 2 standard errors of 0 ({1 - clear.mean():.0%})"]


def test_images_of_classes_are_small_where_they_may_be_noise(ax):
    matrix = torch.rand(2 * 3 * 4, 5).double()
    errors = torch.rand(2 * 3 * 4, 5).double() / 2
    plot_attribution_matrix(matrix, ax=ax, image_shape=(2, 3, 4), standard_error=errors)
    value, error = (x.view(2, 3, 4, 5).sum(0).numpy() for x in (matrix, errors))
    for n, image in enumerate(ax.images):
        cells = np.asarray(image.get_array())
        clear = value[..., n] > 2.0 * error[..., n]
        assert cells[1::3, 1::3] == pytest.approx(value[..., n])
        assert cells[::3, 2::3] == pytest.approx(value[..., n] * clear)
        left, right, bottom, top = image.get_extent()
        assert right - left == pytest.approx(4)
        assert top - bottom == pytest.approx(3)
    assert len(legend_of(ax)) == 1


@pytest.mark.parametrize(
    ("error", "arguments", "words"),
    [
        (TypeError, {"matrix": [[1.0]]}, "got list"),
        (ValueError, {"matrix": torch.zeros(4)}, "n_features"),
        (ValueError, {"matrix": torch.full((2, 2), torch.inf)}, "infinity"),
        (ValueError, {"feature_names": ["a"]}, "feature_names"),
        (ValueError, {"class_names": ["a"]}, "class_names"),
        (ValueError, {"image_shape": (3, 3)}, "image_shape"),
        (ValueError, {"image_shape": (4,)}, "image_shape"),
        (TypeError, {"standard_error": [[0.1]]}, "standard_error must be a Tensor"),
        (ValueError, {"standard_error": torch.zeros(2, 4)}, r"\[2, 4\].*\[4, 2\]"),
        (ValueError, {"standard_error": torch.full((4, 2), -1.0)}, "negative"),
    ],
)
def test_bad_matrices_are_refused_before_a_figure_is_made(error, arguments, words):
    with pytest.raises(error, match=words):
        plot_attribution_matrix(**{"matrix": torch.zeros(4, 2), **arguments})
    assert plt.get_fignums() == []


def test_given_axes_are_used_and_pyplot_is_left_alone(ax):
    assert plot_attribution_matrix(torch.rand(3, 2), ax=ax) is ax
    assert plt.get_fignums() == []
    assert plot_saliency(torch.rand(3, 2), torch.rand(3, 2), ax) is ax
    assert plt.get_fignums() == []
    new = plot_saliency(torch.rand(3, 2), torch.rand(3, 2))
    assert plt.get_fignums() == [new.figure.number]
