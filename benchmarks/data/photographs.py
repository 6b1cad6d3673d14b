"""Ten free photographs as tensors; :mod:`benchmarks.data.files` finds them."""

from __future__ import annotations

import io
import os

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from benchmarks.data.files import PublishedFile, read_published

_RAW = "https://raw.githubusercontent.com"
# Commits, not branches: what these addresses give can not change.
_SCIKIT_IMAGE = (
    f"{_RAW}/scikit-image/scikit-image/cd0a3d22b9f359f05618d75d5c7a29b91b4951ca"
    "/src/_skimage2/data"
)
_SCIKIT_LEARN = (
    f"{_RAW}/Mattlk13/scikit-learn/eb540f35f8e5d010f641a4ebda186040b0cf179c"
    "/sklearn/datasets/images"
)
_FSFE = f"{_RAW}/fsfe/reuse-example/7dea87e9a1f8d1fa6581f73cef50d8496d90fdd1/img"
_TF_LITE = (
    f"{_RAW}/IvanSafonov/qt-tf-lite-example/fe25e1188ab97a4fd0efa51af9aad499506f2f02"
)


def _photograph(folder: str, name: str, sha256: str, credit: str) -> PublishedFile:
    return PublishedFile(f"images/{name}", sha256, (f"{folder}/{name}",), credit)


PHOTOGRAPHS = {
    "astronaut": _photograph(
        _SCIKIT_IMAGE,
        "astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "Eileen Collins; NASA; public domain",
    ),
    "camera": _photograph(
        _SCIKIT_IMAGE,
        "camera.png",
        "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        "Cameraman; Lav Varshney; CC0",
    ),
    "cat": _photograph(
        _FSFE,
        "cat.jpg",
        "a1b7fbcf2fd14e7728f886c0381cbee15eee4e96b131bebfc2a0a50a12285fbc",
        "Sitting cat; Peter Janzen; CC BY 4.0",
    ),
    "chelsea": _photograph(
        _SCIKIT_IMAGE,
        "chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "Chelsea the cat; Stefan van der Walt; CC0",
    ),
    "china": _photograph(
        _SCIKIT_LEARN,
        "china.jpg",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        "Chinese pavilion; danielbuechele; CC BY 2.0",
    ),
    "coffee": _photograph(
        _SCIKIT_IMAGE,
        "coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "Cup of espresso; Rachel Michetti; CC0",
    ),
    "coins": _photograph(
        _SCIKIT_IMAGE,
        "coins.png",
        "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
        "Greek coins; Brooklyn Museum; no known copyright restrictions",
    ),
    "flower": _photograph(
        _SCIKIT_LEARN,
        "flower.jpg",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        "Dahlia; vultilion; CC BY 2.0",
    ),
    "grace_hopper": _photograph(
        _TF_LITE,
        "grace_hopper.jpg",
        "e25eff3a01f40278ab93e74207892707fa5be871a2b16f23ba5e42a9738804f2",
        "Grace Hopper; US Navy; public domain",
    ),
    "rocket": _photograph(
        _SCIKIT_IMAGE,
        "rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        "Falcon 9 with DSCOVR; SpaceX; public domain",
    ),
}


def load_photograph(
    name: str,
    size: int = 224,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> Tensor:
    r"""
    A photograph, shrunk to fill a square whose overhang is cut off evenly.

    Args:

        name (str): One of :data:`PHOTOGRAPHS`; gray ones get three equal channels.
        size (int, optional): Rows and columns of the result. Default: 224
        data_dir (str or os.PathLike, optional): Folder of data files; see
            :func:`benchmarks.data.files.data_folder`.
        download (bool, optional): Whether a missing file is downloaded.
            Default: ``True``

    Returns:

        Tensor: float32 ``[3, size, size]`` in [0, 1].

    Raises:

        ValueError: There is no photograph of that name.
    """
    if name not in PHOTOGRAPHS:
        raise ValueError(
            f"no photograph {name!r}; expected one of {', '.join(PHOTOGRAPHS)}"
        )
    content = read_published(PHOTOGRAPHS[name], data_dir, download)
    with Image.open(io.BytesIO(content)) as image:
        square = ImageOps.fit(image.convert("RGB"), (size, size))
    pixels = torch.from_numpy(np.array(square, dtype=np.float32))
    return pixels.permute(2, 0, 1).contiguous() / 255
