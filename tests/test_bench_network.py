import csv

import torch

from benchmarks import bench_network


def test_numbers_agree_with_the_peers_on_a_small_graph(tmp_path, capsys):
    threads = torch.get_num_threads()
    arguments = ["--dataset", "skip", "--largest", "0.125", "--out", str(tmp_path)]
    bench_network.main(arguments)
    torch.set_num_threads(threads)
    with (tmp_path / "bench_network.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["library"] for row in rows} >= {"captum_nif", "networkx"}
    assert {row["paths"] for row in rows} == {"directed", "undirected"}
    assert all(float(row["largest difference"]) < 1e-9 for row in rows)
    assert all(int(row["links"]) > 98 * 64 for row in rows)
    written = {path.name for path in tmp_path.iterdir()}
    assert {"bench_network.md", "bench_network.png"} <= written
    assert str(tmp_path / "bench_network.md") in capsys.readouterr().out
