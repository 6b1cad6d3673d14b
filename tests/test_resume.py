"""Finished results are kept, one by one, and only for their own key and sources."""

import json
import math
import shutil
from pathlib import Path

import pytest

import benchmarks
import captum_nif
from benchmarks.resume import Finished, digest_of_sources


def refuse():
    raise AssertionError("measured again")


def test_a_result_is_measured_once_for_each_key(tmp_path):
    path = tmp_path / "new" / "folder" / "kept.json"
    first = Finished(path)
    assert first.result({"a": 1, "b": "x"}, lambda: [1.5, "p"]) == [1.5, "p"]
    assert first.result({"a": 1, "b": "x"}, refuse) == [1.5, "p"]
    again = Finished(path)
    assert again.result({"b": "x", "a": 1}, refuse) == [1.5, "p"]
    assert again.result({"a": 2, "b": "x"}, lambda: {"n": 2}) == {"n": 2}
    assert Finished(path).result({"a": 1, "b": "x"}, refuse) == [1.5, "p"]


def test_what_was_finished_survives_an_interruption(tmp_path):
    path = tmp_path / "kept.json"
    finished = Finished(path)
    finished.result({"n": 1}, lambda: 1)

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finished.result({"n": 2}, interrupted)
    assert list(json.loads(path.read_text()).values()) == [1]
    assert Finished(path).result({"n": 2}, lambda: 2) == 2


def test_digits_and_missing_values_come_back_as_they_were(tmp_path):
    path = tmp_path / "kept.json"
    Finished(path).result({}, lambda: {"third": 1 / 3, "none": math.nan})
    kept = Finished(path).result({}, refuse)
    assert kept["third"] == 1 / 3
    assert math.isnan(kept["none"])


@pytest.mark.parametrize("content", [b"", b"{", b"3", b"\xff\xfe", b'["ab", "c"]'])
def test_another_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "kept.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="holds no finished results: remove it"):
        Finished(path)
    assert path.read_bytes() == content


def sources(folder, **files):
    """A folder with those Python files; two underscores are a level."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_other_sources_have_another_digest(tmp_path):
    texts = {"a": "x = 1\n", "b": "y = 2\n", "inner__c": ""}
    one = digest_of_sources(sources(tmp_path / "one", **texts))
    assert digest_of_sources(sources(tmp_path / "elsewhere", **texts)) == one
    changes = {
        "edited": texts | {"a": "x = 2\n"},
        "added": texts | {"d": ""},
        "renamed": {"a": "x = 1\n", "z": "y = 2\n", "inner__c": ""},
        "deeper": {"a": "x = 1\n", "inner__b": "y = 2\n", "inner__c": ""},
        "moved": texts | {"a": "x = 1\ny", "b": " = 2\n"},
        "edited deep": texts | {"inner__c": "\n"},
    }
    found = {digest_of_sources(sources(tmp_path / n, **t)) for n, t in changes.items()}
    assert len(found | {one}) == len(changes) + 1
    removed = sources(tmp_path / "removed", a="x = 1\n", b="y = 2\n")
    assert digest_of_sources(removed) not in found | {one}


def test_what_is_no_source_does_not_matter(tmp_path):
    folder = sources(tmp_path, a="x = 1\n")
    before = digest_of_sources(folder)
    (folder / "results.json").write_text("{}")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"\0")
    assert digest_of_sources(folder) == before
    assert digest_of_sources(folder, folder) != before


def test_the_digest_is_that_of_the_package_and_its_benchmarks(tmp_path):
    copies = []
    for module in (captum_nif, benchmarks):
        copy = tmp_path / module.__name__
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(module.__file__).parent, copy, ignore=ignored)
        copies.append(copy)
    assert digest_of_sources(*copies) == digest_of_sources()
    for changed in ("captum_nif/estimators/cells.py", "benchmarks/data/models.py"):
        before = digest_of_sources(*copies)
        with (tmp_path / changed).open("a") as file:
            file.write("# changed\n")
        assert digest_of_sources(*copies) != before
