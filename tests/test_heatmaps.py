import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from captum_nif.heatmaps import plot_attribution_matrix, plot_saliency


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


@pytest.mark.parametrize(
    ("error", "arguments", "words"),
    [
        (TypeError, {"attribution": [[1.0]]}, "got list"),
        (ValueError, {"attribution": torch.zeros(2, 3, 4, 4)}, "one image"),
        (ValueError, {"image": torch.zeros(5, 4)}, "5 x 4"),
        (ValueError, {"image": torch.full((4, 4), torch.nan)}, "NaN"),
        (ValueError, {"clip": 0.0}, "clip"),
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
