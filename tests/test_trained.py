"""What benchmarks train: which networks on which data, and what methods get."""

import pytest
import torch

from benchmarks.data.datasets import load_iris
from benchmarks.data.models import accuracy, train
from benchmarks.data.trained import (
    DATASETS,
    IMAGES,
    NETWORKS,
    make_task,
    pairs,
    trained,
)


@pytest.fixture(scope="module")
def table_task():
    return make_task("table", "MLP", 0, None, samples=6, background=60)


def test_a_task_explains_what_the_network_predicts(table_task):
    assert table_task.inputs.shape == (6, 12)
    assert table_task.background.shape == (60, 12)
    assert table_task.relevant.shape == (6, 12)
    assert torch.equal(
        table_task.targets, table_task.model(table_task.inputs).argmax(dim=1)
    )
    assert table_task.test_accuracy > 0.9
    other = make_task("table", "MLP", 1, None, samples=6, background=60)
    assert not torch.equal(other.inputs, table_task.inputs)


def test_convolutions_are_trained_on_images_alone():
    found = pairs(DATASETS)
    assert len(set(found)) == len(found)
    for name in DATASETS:
        networks = [network for dataset, network in found if dataset == name]
        assert networks == (list(NETWORKS) if name in IMAGES else ["MLP"])
    assert pairs(["digits"], iter(["CNN"])) == [("digits", "CNN")]


def test_a_training_takes_about_2000_steps_from_one_seed():
    iris = load_iris(seed=3)
    found = trained(iris, "MLP", 3)
    slow = NETWORKS["MLP"]((4,), 3, 3)
    train(slow, iris, 3, epochs=-(-2000 * 32 // len(iris.x_train)), learning_rate=2e-3)
    for a, b in zip(found.parameters(), slow.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not found.training
    assert accuracy(found, iris.x_test, iris.y_test) > 0.85
