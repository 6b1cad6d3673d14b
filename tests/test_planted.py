"""Planted features decide, alone, and networks find them."""

import pytest
import torch

from benchmarks.data.models import accuracy, mlp, train
from benchmarks.data.planted import planted_patch, planted_table


def test_the_table_is_decided_by_three_features_beside_copies_and_noise():
    dataset, relevant = planted_table(seed=3)
    x = torch.cat([dataset.x_train, dataset.x_test])
    y = torch.cat([dataset.y_train, dataset.y_test])
    assert torch.equal(y, x[:, :3].argmax(dim=1))
    assert relevant.shape == dataset.x_test.shape
    assert relevant[:, :3].all()
    assert not relevant[:, 3:].any()
    correlations = torch.corrcoef(x.T)
    expected = torch.eye(12)
    expected[range(3), range(3, 6)] = expected[range(3, 6), range(3)] = 0.8
    # standard deviation of a correlation of 1500 pairs: 0.026
    assert (correlations - expected).abs().max() < 0.13
    assert torch.allclose(x.std(dim=0), torch.ones(12), atol=0.1)


def test_the_patch_is_bright_square_and_in_the_quarter_of_its_class():
    dataset, relevant = planted_patch(seed=3)
    assert relevant.shape == dataset.x_test.shape == (300, 1, 8, 8)
    for image, patch, c in zip(dataset.x_test, relevant, dataset.y_test, strict=True):
        rows, columns = patch[0].nonzero().unbind(dim=1)
        assert len(rows) == 9
        assert rows.max() - rows.min() == columns.max() - columns.min() == 2
        assert set((rows // 4 * 2 + columns // 4).tolist()) == {c.item()}
        assert image[patch].min() >= 0.5 >= image[~patch].max()
    places = {tuple(patch[0].nonzero()[0].tolist()) for patch in relevant}
    assert len(places) == 16


@pytest.mark.parametrize("make", [planted_table, planted_patch])
def test_data_are_drawn_from_their_seed(make, rng_untouched):
    with rng_untouched():
        first, again, other = make(0).dataset, make(0).dataset, make(1).dataset
    assert torch.equal(first.x_train, again.x_train)
    assert not torch.equal(first.x_train, other.x_train)
    assert len(first.feature_names) == first.x_train[0].numel()
    assert len(first.class_names) == len(first.y_train.unique())


@pytest.mark.parametrize("make", [planted_table, planted_patch])
def test_a_network_learns_them(make):
    dataset = make().dataset
    n_features, n_classes = dataset.x_train[0].numel(), len(dataset.class_names)
    model = train(mlp(n_features, n_classes), dataset, epochs=20, learning_rate=0.005)
    assert accuracy(model, dataset.x_test, dataset.y_test) > 0.9
