"""Finished results are kept, one by one, and only for their own key."""

import json
import math

import pytest

from benchmarks.resume import Finished


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
