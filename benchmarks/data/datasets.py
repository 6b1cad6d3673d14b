"""Small public data sets as tensors: Iris, digits, Banknote and MNIST.

Iris and digits come with scikit-learn; the others are :mod:`benchmarks.data.files`.
"""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import sklearn.datasets
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from benchmarks.data.files import PublishedFile, read_published

NAMES = ("iris", "digits", "banknote", "mnist")

# Both are copies of the files that the authors no longer serve reliably.
_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


def _mnist(name: str, sha256: str) -> PublishedFile:
    return PublishedFile(
        path=f"mnist/{name}",
        sha256=sha256,
        urls=tuple(mirror + name for mirror in _MNIST_MIRRORS),
        credit="Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0",
    )


MNIST_TRAIN_IMAGES = _mnist(
    "train-images-idx3-ubyte.gz",
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
)
MNIST_TRAIN_LABELS = _mnist(
    "train-labels-idx1-ubyte.gz",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
)
MNIST_TEST_IMAGES = _mnist(
    "t10k-images-idx3-ubyte.gz",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
)
MNIST_TEST_LABELS = _mnist(
    "t10k-labels-idx1-ubyte.gz",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)
BANKNOTE = PublishedFile(
    path="banknote/data_banknote_authentication.txt",
    sha256="d0539aaed2139ba7a587b3e34fb345ce503ff7d5d33dbf9912d8e195ce425cb9",
    urls=(
        "https://archive.ics.uci.edu/ml/machine-learning-databases/00267/"
        "data_banknote_authentication.txt",
    ),
    credit="V. Lohweg, UCI Machine Learning Repository, doi 10.24432/C55P57; CC BY 4.0",
)


@dataclass(frozen=True, eq=False)
class Dataset:
    r"""
    A classification task, split once into a training and a test part.

    Args:

        name (str): One of :data:`NAMES`.
        x_train (Tensor): Training inputs, float32, ``[N, features]`` for tables and
            ``[N, 1, rows, columns]`` for images.
        y_train (Tensor): Training classes, int64, ``[N]``.
        x_test (Tensor): Test inputs, as ``x_train``.
        y_test (Tensor): Test classes, as ``y_train``.
        feature_names (tuple[str, ...]): One name for each input feature, row-major.
        class_names (tuple[str, ...]): One name for each class.
        offset (Tensor): With ``scale``, leads back to the units of the source:
            ``raw = x * scale + offset``. Broadcasts against one sample.
        scale (Tensor): See ``offset``.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    offset: Tensor
    scale: Tensor

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name}: {len(self.x_train)} + {len(self.x_test)} samples of "
            f"shape {tuple(self.x_train.shape[1:])}, {len(self.class_names)} classes)"
        )


def load_dataset(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    download: bool = True,
) -> Dataset:
    r"""
    A data set by name, for command lines.

    Args:

        name (str): One of :data:`NAMES`.
        data_dir (str or os.PathLike, optional): Folder of data files; see
            :func:`benchmarks.data.files.data_folder`.
        seed (int, optional): Draws the split of all but MNIST, whose split is fixed.
            Default: 0
        download (bool, optional): Whether missing files are downloaded.
            Default: ``True``

    Returns:

        Dataset: The data set.

    Raises:

        ValueError: There is no data set of that name.

    Examples::

        >>> load_dataset("digits")
        Dataset(digits: 1437 + 360 samples of shape (1, 8, 8), 10 classes)
    """
    if name == "iris":
        return load_iris(seed)
    if name == "digits":
        return load_digits(seed)
    if name == "banknote":
        return load_banknote(data_dir, seed, download)
    if name == "mnist":
        return load_mnist(data_dir, download=download)
    raise ValueError(f"no data set {name!r}; expected one of {', '.join(NAMES)}")


def load_iris(seed: int = 0) -> Dataset:
    r"""
    Fisher's Iris: 150 flowers, 4 lengths and widths in cm, 3 species.

    Standardized to mean 0 and standard deviation 1 over the training part. It comes
    with scikit-learn; one flower occurs twice.

    Args:

        seed (int, optional): Draws the test part, a fifth of each class. Default: 0

    Returns:

        Dataset: 120 training and 30 test samples of shape ``[4]``.

    Examples::

        >>> load_iris().feature_names
        ('sepal length', 'sepal width', 'petal length', 'petal width')
    """
    source = sklearn.datasets.load_iris()
    return _table(
        "iris",
        source.data,
        source.target,
        feature_names=[name.removesuffix(" (cm)") for name in source.feature_names],
        class_names=[str(name) for name in source.target_names],
        seed=seed,
    )


def load_banknote(
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    download: bool = True,
) -> Dataset:
    r"""
    Banknote authentication: 1372 notes, 4 statistics of a wavelet transform, 2 classes.

    Standardized to mean 0 and standard deviation 1 over the training part. 24 notes
    repeat earlier ones and are kept, so a few test samples may have been trained on.
    The source does not say which class is the genuine one.

    Args:

        data_dir (str or os.PathLike, optional): Folder of data files; see
            :func:`benchmarks.data.files.data_folder`.
        seed (int, optional): Draws the test part, a fifth of each class. Default: 0
        download (bool, optional): Whether a missing file is downloaded.
            Default: ``True``

    Returns:

        Dataset: 1097 training and 275 test samples of shape ``[4]``.
    """
    content = read_published(BANKNOTE, data_dir, download)
    rows = np.loadtxt(io.BytesIO(content), delimiter=",")
    return _table(
        "banknote",
        rows[:, :4],
        rows[:, 4].astype(np.int64),
        feature_names=["variance", "skewness", "curtosis", "entropy"],
        class_names=["class 0", "class 1"],
        seed=seed,
    )


def load_digits(seed: int = 0) -> Dataset:
    r"""
    Handwritten digits: 1797 images of 8 x 8 pixels, 10 classes, gray levels in [0, 1].

    The source counts 0 to 16. It comes with scikit-learn.

    Args:

        seed (int, optional): Draws the test part, a fifth of each class. Default: 0

    Returns:

        Dataset: 1437 training and 360 test samples of shape ``[1, 8, 8]``.
    """
    source = sklearn.datasets.load_digits()
    train, test = _split(source.target, seed)
    images = torch.from_numpy(source.images).float()[:, None] / 16
    classes = torch.from_numpy(source.target).long()
    return _images(
        "digits",
        (images[train], classes[train], images[test], classes[test]),
        white=16.0,
    )


def load_mnist(
    data_dir: str | os.PathLike[str] | None = None,
    n_train: int = 60_000,
    n_test: int = 10_000,
    download: bool = True,
) -> Dataset:
    r"""
    MNIST: 70,000 handwritten digits of 28 x 28 pixels, 10 classes, in [0, 1].

    The source counts 0 to 255; its own split into training and test part is kept.

    Args:

        data_dir (str or os.PathLike, optional): Folder of data files; see
            :func:`benchmarks.data.files.data_folder`.
        n_train (int, optional): Only the first of the training samples.
            Default: all 60,000
        n_test (int, optional): Only the first of the test samples. Default: all 10,000
        download (bool, optional): Whether missing files are downloaded.
            Default: ``True``

    Returns:

        Dataset: Samples of shape ``[1, 28, 28]``.
    """

    def images(file: PublishedFile, n: int) -> Tensor:
        pixels = _read_idx(read_published(file, data_dir, download))[:n]
        return torch.from_numpy(pixels.astype(np.float32))[:, None] / 255

    def classes(file: PublishedFile, n: int) -> Tensor:
        labels = _read_idx(read_published(file, data_dir, download))[:n]
        return torch.from_numpy(labels.astype(np.int64))

    return _images(
        "mnist",
        (
            images(MNIST_TRAIN_IMAGES, n_train),
            classes(MNIST_TRAIN_LABELS, n_train),
            images(MNIST_TEST_IMAGES, n_test),
            classes(MNIST_TEST_LABELS, n_test),
        ),
        white=255.0,
    )


def _table(
    name: str,
    features: npt.NDArray[np.float64],
    classes: npt.NDArray[np.int64],
    feature_names: Sequence[str],
    class_names: Sequence[str],
    seed: int,
) -> Dataset:
    """A table split, then standardized by the training part, in double precision."""
    train, test = _split(classes, seed)
    offset, scale = features[train].mean(axis=0), features[train].std(axis=0)
    x = torch.from_numpy((features - offset) / scale).float()
    y = torch.from_numpy(classes).long()
    return Dataset(
        name,
        x[train],
        y[train],
        x[test],
        y[test],
        tuple(feature_names),
        tuple(class_names),
        torch.from_numpy(offset).float(),
        torch.from_numpy(scale).float(),
    )


def _images(
    name: str, parts: tuple[Tensor, Tensor, Tensor, Tensor], white: float
) -> Dataset:
    """Images of the ten digits whose source counts from 0 to ``white``."""
    n_rows, n_columns = parts[0].shape[-2:]
    return Dataset(
        name,
        *parts,
        tuple(f"pixel {i},{j}" for i in range(n_rows) for j in range(n_columns)),
        tuple("0123456789"),
        offset=torch.tensor(0.0),
        scale=torch.tensor(white),
    )


def _split(
    classes: npt.NDArray[np.int64], seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions of the training and the test part, a fifth of each class."""
    train, test = train_test_split(
        np.arange(len(classes)), test_size=0.2, stratify=classes, random_state=seed
    )
    return train, test


def _read_idx(content: bytes) -> npt.NDArray[np.uint8]:
    """A gzipped array of bytes in MNIST's own format.

    Two zeros, the type, the number of dimensions, each of them as a big-endian int32,
    then the values, row-major.
    """
    raw = gzip.decompress(content)
    n_dims = raw[3]
    shape = np.frombuffer(raw, ">i4", count=n_dims, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * n_dims).reshape(shape)
