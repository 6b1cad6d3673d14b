import gzip
import hashlib
import os
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from torch import Tensor

from benchmarks.data import datasets as data
from benchmarks.data.datasets import (
    Dataset,
    load_banknote,
    load_dataset,
    load_digits,
    load_iris,
    load_mnist,
)
from benchmarks.data.files import PublishedFile, data_folder, read_published
from benchmarks.data.photographs import PHOTOGRAPHS, load_photograph

# --- published files ---------------------------------------------------------------


class Server:
    """A local web server of the given answers, which remembers what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[str, bytes] = {}
        self.asked: list[str] = []

    def publish(self, path: str, content: bytes) -> PublishedFile:
        """A file at ``/path``, served as it should be."""
        self.answers[f"/{path}"] = http_answer(content)
        return published(path, content, self.url + path)


def published(path: str, content: bytes, *urls: str) -> PublishedFile:
    return PublishedFile(path, hashlib.sha256(content).hexdigest(), urls, credit="")


def http_answer(content: bytes) -> bytes:
    return b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content


@contextmanager
def serving() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(self.path)
            missing = b"HTTP/1.0 404 Not Found\r\n\r\n"
            self.wfile.write(server.answers.get(self.path, missing))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        server = Server(f"http://127.0.0.1:{httpd.server_port}/")
        thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            httpd.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        yield server


def files_in(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_data_folder_is_the_argument_then_the_environment_then_the_cache(monkeypatch):
    monkeypatch.setenv("CAPTUM_NIF_DATA", "environment")
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert data_folder("argument") == Path("argument")
    assert data_folder() == Path("environment")
    monkeypatch.delenv("CAPTUM_NIF_DATA")
    assert data_folder() == Path("cache/captum_nif")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == Path.home() / ".cache" / "captum_nif"


def test_a_file_in_the_folder_is_read_without_asking_anyone(tmp_path, server):
    file = server.publish("a/b.txt", b"content")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.txt").write_bytes(b"content")
    assert read_published(file, tmp_path) == b"content"
    assert server.asked == []


def test_a_missing_file_is_downloaded_once_into_the_folder(tmp_path, server):
    content = os.urandom(200_000)
    file = server.publish("a/b.bin", content)
    assert read_published(file, tmp_path) == content
    assert read_published(file, tmp_path) == content
    assert server.asked == ["/a/b.bin"]
    assert files_in(tmp_path) == ["a/b.bin"]
    assert (tmp_path / "a/b.bin").read_bytes() == content


def test_without_download_a_missing_file_says_what_to_do(tmp_path, server):
    file = server.publish("a.txt", b"content")
    with pytest.raises(FileNotFoundError, match=r"a\.txt does not exist.*--data-dir"):
        read_published(file, tmp_path, download=False)
    assert server.asked == []


@pytest.mark.parametrize("found", [b"", b"conten", b"cOntent", b"content\n"])
def test_a_file_other_than_the_published_one_is_refused_and_kept(
    tmp_path, server, found
):
    file = server.publish("a.txt", b"content")
    (tmp_path / "a.txt").write_bytes(found)
    with pytest.raises(
        ValueError, match=rf"a\.txt is cut, corrupt.* {len(found)} bytes.*Delete it"
    ):
        read_published(file, tmp_path)
    assert (tmp_path / "a.txt").read_bytes() == found
    assert server.asked == []


@pytest.mark.parametrize(
    "bad_answer",
    [
        b"HTTP/1.0 404 Not Found\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nsomething else",
        b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\nconte",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n",
        b"no answer of a web server\r\n",
        b"",
    ],
    ids=["missing", "other content", "cut", "bad chunks", "not http", "silence"],
)
def test_a_bad_mirror_is_passed_over_and_named_if_no_other_helps(
    tmp_path, server, bad_answer
):
    server.answers["/bad/a.txt"] = bad_answer
    bad, good = server.url + "bad/a.txt", server.url + "a.txt"
    file = replace(server.publish("a.txt", b"content"), urls=(bad, good))

    with pytest.raises(FileNotFoundError) as raised:
        read_published(replace(file, urls=(bad, bad)), tmp_path / "failing")
    assert str(raised.value).count(f"{bad}: ") == 2
    assert "CAPTUM_NIF_DATA" in str(raised.value)
    assert files_in(tmp_path) == []

    assert read_published(file, tmp_path) == b"content"
    assert files_in(tmp_path) == ["a.txt"]


def test_no_server_at_all_is_an_error_that_names_the_address(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as gone:
        pass
    file = published("a.txt", b"content", gone.url + "a.txt")
    with pytest.raises(FileNotFoundError, match=gone.url):
        read_published(file, tmp_path)


# --- data sets ---------------------------------------------------------------------


def samples(x: Tensor, y: Tensor) -> Counter[bytes]:
    """Every sample with its class, counted: float32 features, then the class."""
    rows = torch.cat([x.flatten(1), y[:, None].float()], dim=1)
    return Counter(row.tobytes() for row in rows.numpy())


def check_form(dataset: Dataset, shape: tuple[int, ...], n_classes: int) -> None:
    for x, y in (
        (dataset.x_train, dataset.y_train),
        (dataset.x_test, dataset.y_test),
    ):
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert x.shape == (len(y), *shape)
        assert set(y.tolist()) <= set(range(n_classes))
    assert len(dataset.class_names) == n_classes
    assert len(dataset.feature_names) == len(set(dataset.feature_names))
    assert len(dataset.feature_names) == dataset.x_train[0].numel()


def check_split(load, seeds: tuple[int, int], n: int) -> None:
    """A seed draws one split; every split holds every sample once, by class."""
    first, again, other = load(seeds[0]), load(seeds[0]), load(seeds[1])
    for field in ("x_train", "y_train", "x_test", "y_test"):
        assert torch.equal(getattr(first, field), getattr(again, field))
    assert not torch.equal(first.x_test, other.x_test)
    assert len(first.y_train) + len(first.y_test) == n
    for dataset in (first, other):
        train, test = dataset.y_train.bincount(), dataset.y_test.bincount()
        assert ((train + test) / 5 - test).abs().max() < 1


def check_standardized(dataset: Dataset, source: np.ndarray, classes: np.ndarray):
    x = dataset.x_train.double()
    assert x.mean(dim=0).abs().max() < 1e-6
    assert (x.std(dim=0, correction=0) - 1).abs().max() < 1e-6
    found = torch.cat([dataset.x_train, dataset.x_test]) * dataset.scale
    found = torch.column_stack(
        [found + dataset.offset, torch.cat([dataset.y_train, dataset.y_test])]
    ).numpy()
    expected = np.column_stack([source, classes]).astype(np.float32)
    # The split shuffles: bring both into one order, whatever the last digits.
    found, expected = (rows[np.lexsort(rows.round(3).T)] for rows in (found, expected))
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_iris_is_fishers_split_by_class_and_standardized():
    iris = load_iris()
    check_form(iris, (4,), 3)
    check_split(load_iris, (0, 1), 150)
    source = sklearn.datasets.load_iris()
    check_standardized(iris, source.data, source.target)
    assert iris.y_test.bincount().tolist() == [10, 10, 10]
    assert iris.class_names == ("setosa", "versicolor", "virginica")
    assert iris.feature_names[0] == "sepal length"


def test_digits_are_scikit_learns_split_by_class_and_scaled():
    digits = load_digits()
    check_form(digits, (1, 8, 8), 10)
    check_split(load_digits, (0, 1), 1797)
    source = sklearn.datasets.load_digits()
    expected = samples(
        torch.from_numpy(source.data).float(), torch.from_numpy(source.target)
    )
    x = torch.cat([digits.x_train, digits.x_test])
    assert x.min() == 0
    assert x.max() == 1
    y = torch.cat([digits.y_train, digits.y_test])
    assert samples(x * digits.scale + digits.offset, y) == expected
    assert digits.feature_names[8] == "pixel 1,0"
    assert digits.class_names[7] == "7"


def banknote_rows(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, 4)) * [1, 5, 4, 0.1] + [0, 2, 1, -1]
    return features.round(2), np.arange(n) % 2


def banknote_file(features: np.ndarray, classes: np.ndarray) -> bytes:
    """Lines end as in the source: carriage returns, none after the last row."""
    rows = zip(features.tolist(), classes.tolist(), strict=True)
    lines = [",".join(map(str, [*row, label])) for row, label in rows]
    return "\r\n".join(lines).encode()


def test_banknote_is_downloaded_split_and_standardized(tmp_path, server, monkeypatch):
    features, classes = banknote_rows(60)
    file = server.publish("notes.txt", banknote_file(features, classes))
    monkeypatch.setattr(data, "BANKNOTE", file)
    notes = load_banknote(tmp_path)
    check_form(notes, (4,), 2)
    check_split(lambda seed: load_banknote(tmp_path, seed), (0, 1), 60)
    check_standardized(notes, features, classes)
    assert server.asked == ["/notes.txt"]


def test_banknote_of_the_data_folder_is_the_published_one(data_dir):
    notes = load_banknote(data_dir, download=False)
    check_form(notes, (4,), 2)
    check_split(lambda seed: load_banknote(data_dir, seed, False), (0, 1), 1372)
    x = torch.cat([notes.x_train, notes.x_test]) * notes.scale + notes.offset
    y = torch.cat([notes.y_train, notes.y_test])
    assert y.bincount().tolist() == [762, 610]
    first_row = torch.tensor([3.6216, 8.6661, -2.8073, -0.44699])
    [at] = torch.nonzero((x - first_row).abs().amax(dim=1) < 1e-5)
    assert y[at] == 0


def idx_file(values: np.ndarray) -> bytes:
    """MNIST's format, as its page describes it; 8 is the code of unsigned bytes."""
    head = struct.pack(">HBB", 0, 8, values.ndim)
    sizes = struct.pack(f">{values.ndim}i", *values.shape)
    return gzip.compress(head + sizes + values.astype(np.uint8).tobytes())


def test_mnist_is_downloaded_and_keeps_its_split(tmp_path, server, monkeypatch):
    rng = np.random.default_rng(0)
    parts = {}
    for part, n in (("TRAIN", 7), ("TEST", 5)):
        images = rng.integers(0, 256, size=(n, 28, 28), dtype=np.uint8)
        classes = rng.integers(0, 10, size=n, dtype=np.uint8)
        for kind, values in (("IMAGES", images), ("LABELS", classes)):
            parts[f"{part}_{kind}"] = values
            file = server.publish(f"{part}_{kind}.gz", idx_file(values))
            monkeypatch.setattr(data, f"MNIST_{part}_{kind}", file)
    mnist = load_mnist(tmp_path)
    check_form(mnist, (1, 28, 28), 10)
    for part, x, y in (
        ("TRAIN", mnist.x_train, mnist.y_train),
        ("TEST", mnist.x_test, mnist.y_test),
    ):
        images = (x * mnist.scale + mnist.offset).round().squeeze(1).numpy()
        np.testing.assert_array_equal(images, parts[f"{part}_IMAGES"])
        np.testing.assert_array_equal(y.numpy(), parts[f"{part}_LABELS"])
    assert len(server.asked) == 4
    few = load_mnist(tmp_path, n_train=3, n_test=2)
    assert torch.equal(few.x_train, mnist.x_train[:3])
    assert torch.equal(few.y_test, mnist.y_test[:2])


def test_mnist_of_the_data_folder_is_the_published_one(data_dir):
    mnist = load_mnist(data_dir, download=False)
    check_form(mnist, (1, 28, 28), 10)
    assert repr(mnist) == (
        "Dataset(mnist: 60000 + 10000 samples of shape (1, 28, 28), 10 classes)"
    )
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.y_train.bincount().tolist() == counts
    assert mnist.y_test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert mnist.x_train.min() == 0
    assert mnist.x_train.max() == 1
    # The mean and deviation that everyone normalizes MNIST by.
    assert mnist.x_train.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert mnist.x_train.std().item() == pytest.approx(0.3081, abs=1e-4)


def test_a_cut_file_of_the_data_folder_is_refused(tmp_path, data_dir):
    name = "mnist/t10k-labels-idx1-ubyte.gz"
    (tmp_path / "mnist").mkdir()
    whole = (data_dir / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="4541 bytes"):
        read_published(data.MNIST_TEST_LABELS, tmp_path)


def test_load_dataset_finds_each_by_name(data_dir, rng_untouched):
    for name in data.NAMES:
        with rng_untouched():
            assert load_dataset(name, data_dir, download=False).name == name
    iris = load_dataset("iris", seed=3)
    assert torch.equal(iris.x_test, load_iris(seed=3).x_test)
    with pytest.raises(ValueError, match=r"'cifar'.*iris, digits, banknote, mnist"):
        load_dataset("cifar")


# --- photographs -------------------------------------------------------------------


def test_photographs_fill_a_square(data_dir):
    for name in PHOTOGRAPHS:
        image = load_photograph(name, 64, data_dir, download=False)
        assert image.shape == (3, 64, 64)
        assert image.dtype == torch.float32
        assert 0 <= image.min() < image.max() <= 1
        assert image.is_contiguous()
    assert load_photograph("rocket", data_dir=data_dir).shape == (3, 224, 224)
    gray = load_photograph("coins", 64, data_dir)
    assert torch.equal(gray[0], gray[1])
    assert torch.equal(gray[0], gray[2])


def test_a_square_photograph_at_its_own_size_is_its_pixels(data_dir):
    with Image.open(data_dir / "images/astronaut.png") as image:
        pixels = np.array(image)
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    assert torch.equal(load_photograph("astronaut", 512, data_dir), expected)


def test_an_unknown_photograph_is_refused():
    with pytest.raises(ValueError, match=r"'lena'.*astronaut"):
        load_photograph("lena")
