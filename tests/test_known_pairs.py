import math

import numpy as np
import pytest

from benchmarks.estimators.known_pairs import Task, tasks

TASKS = tasks()
every_task = pytest.mark.parametrize("task", TASKS, ids=[task.name for task in TASKS])


def drawn(task: Task, n: int, seed: int = 0):
    return task.draw(np.random.default_rng(seed), n)


@every_task
def test_information_is_what_samples_hold_on_average(task):
    pair, pmi = drawn(task, 40_000)
    assert pair.shape == (2, 40_000)
    error = pmi.std() / math.sqrt(len(pmi))
    assert abs(pmi.mean() - task.information) <= 4.5 * error + 1e-6


@every_task
def test_pmi_is_the_log_of_a_density_ratio(task):
    # E over independent x and y of the ratio is 1, so E over samples of 1 / ratio is
    # the share of independent pairs that can occur at all
    _, pmi = drawn(task, 40_000, seed=1)
    inverse = np.exp(-pmi)
    possible = {"discrete + uniform": 9 / 25, "half discrete": 0.5}
    expected = possible.get(task.name, 1.0)
    rare = {"Gaussian 0.9", "wave", "half discrete", "ReLU 0.9", "90 % zeros 0.9"}
    error = inverse.std() / math.sqrt(len(pmi))
    if task.name in rare:  # the variance is infinite, and most of the mean unseen
        assert 0.4 * expected < inverse.mean() < 1.5 * expected
    else:
        assert abs(inverse.mean() - expected) <= 5 * error + 1e-6


@pytest.mark.parametrize(
    ("name", "information"),
    [
        ("half discrete", 1.292),
        ("zero-inflated Poisson", 0.2298),
        ("ReLU 0.9", 0.554),
        ("discrete + uniform", math.log(5) - 0.8 * math.log(2)),
        ("constant", 0.0),
        ("ReLU, independent", 0.0),
    ],
)
def test_information_as_published(name, information):
    (task,) = (task for task in TASKS if task.name == name)
    assert task.information == pytest.approx(information, abs=5e-4)


def test_rounding_loses_little_information():
    named = {task.name: task.information for task in TASKS}
    assert 0 < named["Gaussian 0.6"] - named["rounded to 0.1"] < 1e-3
