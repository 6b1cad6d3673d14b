"""Eq. 3 and Eq. 4 against loops, identities between the methods, and what stays put."""

import copy
import threading
from dataclasses import replace

import oracles_flow as oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from captum_nif import FlowGraph, MixedKSG, NIFAttribution

K = 3
KSG = MixedKSG(k=K)


# --- models whose layers, links and values are known --------------------------------


class Net(nn.Module):
    """A model that knows its links and the modules whose results are its values."""

    links: tuple[tuple[str, str], ...]
    values: dict[str, str]
    end: str

    def modules_of_values(self) -> dict[str, nn.Module]:
        return {name: self.get_submodule(path) for name, path in self.values.items()}


class Chain(Net):
    links = (("input", "fc1"), ("fc1", "fc2"), ("fc2", "fc3"))
    values = {"fc1": "relu", "fc2": "tanh", "fc3": "fc3"}  # noqa: RUF012
    end = "fc3"

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 3)
        self.relu, self.tanh = nn.ReLU(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.tanh(self.fc2(self.relu(self.fc1(x)))))


class Skip(Net):
    """A residual block and a late input: links of three lengths."""

    links = (
        ("input", "fc1"),
        ("fc1", "fc2"),
        ("input", "fc3"),
        ("fc1", "fc3"),
        ("fc2", "fc3"),
    )
    values = {"fc1": "relu1", "fc2": "relu2", "fc3": "fc3"}  # noqa: RUF012
    end = "fc3"

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(7, 3)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu1(self.fc1(x))
        return self.fc3(torch.cat([h + self.relu2(self.fc2(h)), x], dim=1))


class Conv(Net):
    links = (("input", "conv1"), ("conv1", "conv2"), ("conv2", "fc"))
    values = {"conv1": "pool", "conv2": "relu2", "fc": "fc"}  # noqa: RUF012
    end = "fc"

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 2)
        self.relu1, self.relu2, self.pool = nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(self.relu1(self.conv1(x)))
        return self.fc(self.relu2(self.conv2(h)).flatten(1))


class TwoInputs(nn.Module):
    """One input enters late; a scale and an offset are further arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Linear(3, 4), nn.Linear(6, 2)

    def forward(
        self, x: Tensor, z: Tensor, offset: Tensor | None = None, scale: float = 1.0
    ) -> Tensor:
        h = F.relu(self.early(x * scale if offset is None else x * scale + offset))
        return self.late(torch.cat([h, z], dim=1))


SHAPES = {Chain: (4,), Skip: (4,), Conv: (1, 4, 4)}
NETS = list(SHAPES)
MODES = (None, "node", "layer", "auto")


def made(net: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return net().double().eval()


def rounded(x: Tensor) -> Tensor:
    """Multiples of 1/16, whose products add up exactly in double precision."""
    return (x * 16).round() / 16


def made_exact(net: type[nn.Module]) -> nn.Module:
    """A network that gives a sample the same values in a batch of any size.

    Processors add products up in orders that depend on the size of the batch.
    """
    model = made(net)
    for parameter in model.parameters():
        parameter.data = rounded(parameter.data)
    return model


def samples(net: type[nn.Module], n: int) -> Tensor:
    x = torch.randn(n, *SHAPES[net], dtype=torch.float64)
    return x.round(decimals=1) if net is Conv else x  # pixels tie


def oracle_values(net: Net, x: Tensor) -> oracle.Values:
    return oracle.node_values(net, {"input": x}, net.modules_of_values())


def nif_of(net: nn.Module, **options: object) -> NIFAttribution:
    return NIFAttribution(net, **{"estimator": KSG, **options})  # type: ignore[arg-type]


def n_features(x: Tensor) -> int:
    return x[0].numel()


# --- Eq. 3 and Eq. 4 ------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_attribute_is_eq_4_on_the_graph_of_each_sample(net):
    model, x, background = made(net), samples(net, 2), samples(net, 14)
    population, query = oracle_values(model, background), oracle_values(model, x)
    targets = [1, 0]
    fitted = {by: nif_of(model, normalize=by).fit(background) for by in MODES}
    for s, target in enumerate(targets):
        sample = {name: rows[s] for name, rows in query.items()}
        raw = oracle.instance_weights(net.links, population, sample, K)
        for by, nif in fitted.items():
            resolved = {"auto": "node" if net is Skip else None}.get(by, by)
            expected = oracle.attributions(
                oracle.normalized(raw, resolved),
                "input",
                n_features(x),
                net.end,
                target,
            )
            found = nif.attribute(x, target=targets)[s].flatten()
            torch.testing.assert_close(found.tolist(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("joint", [False, True], ids=["pairwise", "joint"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("net", [Chain, Skip])
def test_links_are_eq_3(net, beta, joint):
    model, x, background = made(net), samples(net, 1), samples(net, 12)
    population = oracle_values(model, background)
    sample = {name: rows[0] for name, rows in oracle_values(model, x).items()}
    relevance = "joint" if joint else "pairwise"
    nif = nif_of(model, beta=beta, relevance=relevance).fit(background)
    instance = oracle.instance_weights(net.links, population, sample, K, beta, joint)
    mean = oracle.population_weights(net.links, population, K, beta, joint)
    for graph, expected in ((nif.flow(x)[0], instance), (nif.flow(), mean)):
        assert {link.ends for link in graph.links} == set(net.links)
        for link in graph.links:
            wanted = torch.tensor(expected[link.ends], dtype=torch.float64)
            torch.testing.assert_close(link.weight, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"beta": 0.1}, {"relevance": "joint"}])
@pytest.mark.parametrize("net", NETS)
def test_unfitted_row_is_the_row_against_the_others(net, options):
    model, x = made(net), samples(net, 33)
    nif = nif_of(model, **options)
    together = nif.attribute(x, target=1)
    for i in (0, 7, 32):
        others = torch.cat([x[:i], x[i + 1 :]])
        alone = nif.attribute(x[i : i + 1], target=1, background=others)
        # redundancies are added up in blocks, whose size depends on the batch
        tolerance = 1e-12 if "beta" in options else 0.0
        torch.testing.assert_close(
            together[i : i + 1], alone, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("by", MODES)
@pytest.mark.parametrize("net", NETS)
def test_methods_agree(net, by):
    model, x = made(net), samples(net, 3)
    nif = nif_of(model, normalize=by).fit(samples(net, 40))
    resolved = {"auto": "node" if net is Skip else None}.get(by, by)

    def scaled(graph: FlowGraph) -> FlowGraph:
        return graph if resolved is None else graph.normalized(resolved)

    for s, graph in enumerate(nif.flow(x)):
        sums = scaled(graph).path_sums(target=1)
        found = nif.attribute(x, target=1)[s].flatten()
        torch.testing.assert_close(found, sums, rtol=1e-12, atol=1e-14)
    matrix = scaled(nif.flow()).path_sums()
    torch.testing.assert_close(nif.attribution_matrix(), matrix, rtol=0, atol=0)


@pytest.mark.parametrize("net", NETS)
def test_population_graph_is_the_mean_of_instance_graphs(net):
    x = samples(net, 40)
    nif = nif_of(made(net))
    graphs = nif.flow(x)
    population = nif.fit(x).flow()
    for i, link in enumerate(population.links):
        mean = torch.stack([g.links[i].weight for g in graphs]).mean(0)
        torch.testing.assert_close(link.weight, mean, rtol=1e-9, atol=1e-9)


def test_paper_preset_is_eq_6_with_its_beta_and_no_normalization():
    model, x, background = made(Skip), samples(Skip, 4), samples(Skip, 40)
    preset = NIFAttribution(model, preset="paper").fit(background)
    spelled = NIFAttribution(
        model, estimator=MixedKSG(formula="paper"), beta=5e-4, normalize=None
    ).fit(background)
    assert torch.equal(preset.attribute(x, 0), spelled.attribute(x, 0))
    besides = NIFAttribution(model, preset="paper", normalize="layer", estimator=KSG)
    assert (besides.normalize, besides.beta, besides.estimator) == ("layer", 5e-4, KSG)


# --- targets, hidden layers, groups --------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        2,
        -1,
        (2,),
        torch.tensor(2),
        torch.tensor([2]),
        [2, 2, 2, 2],
        [-1, 2, -1, 2],
        [(2,), (2,), (-1,), (2,)],
        torch.tensor([2, -1, 2, 2]),
    ],
    ids=str,
)
def test_target_forms_agree(target):
    model, x = made(Chain), samples(Chain, 4)
    nif = nif_of(model).fit(samples(Chain, 40))
    assert torch.equal(nif.attribute(x, target=target), nif.attribute(x, target=2))


def test_each_sample_has_its_target():
    nif, x = nif_of(made(Chain)).fit(samples(Chain, 40)), samples(Chain, 3)
    found = nif.attribute(x, target=[2, 0, 1])
    for s, target in enumerate([2, 0, 1]):
        assert torch.equal(found[s], nif.attribute(x, target=target)[s])


def test_one_output_needs_no_target():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)).double().eval()
    flat = nn.Sequential(*net, nn.Flatten(0)).eval()
    x, background = samples(Chain, 3), samples(Chain, 40)
    expected = nif_of(net).fit(background).attribute(x)
    assert torch.equal(expected, nif_of(net).fit(background).attribute(x, target=0))
    assert torch.equal(expected, nif_of(flat).fit(background).attribute(x))


def test_tuple_target_picks_an_element_of_a_map():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU())
    nif = nif_of(net.double().eval()).fit(samples(Conv, 40))
    x = samples(Conv, 2)
    assert nif.flow().layers[-1].shape == (2, 2, 2)
    by_tuple = nif.attribute(x, target=[(1, 0, 1), (-2, 1, -1)])
    first, second = nif.flow(x)
    expected = torch.stack([first.path_sums(5), second.path_sums(3)])
    torch.testing.assert_close(by_tuple.flatten(1), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("net", [Chain, Skip])
def test_hidden_neuron_is_explained_by_the_paths_that_end_there(net):
    model, x, background = made(net), samples(net, 2), samples(net, 14)
    population, query = oracle_values(model, background), oracle_values(model, x)
    nif = nif_of(model, normalize=None).fit(background)
    found = nif.attribute(x, target=[2, 0], layer="fc2")
    for s, node in enumerate([2, 0]):
        sample = {name: rows[s] for name, rows in query.items()}
        weights = oracle.instance_weights(net.links, population, sample, K)
        expected = oracle.attributions(weights, "input", 4, "fc2", node)
        torch.testing.assert_close(found[s].tolist(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("net", NETS)
def test_layer_by_name_and_by_module_agree(net):
    model, x = made(net), samples(net, 3)
    nif = nif_of(model).fit(samples(net, 40))
    name = net.links[1][1]
    module = model.get_submodule(name)
    by_name = nif.attribute(x, target=-1, layer=name)
    assert torch.equal(by_name, nif.attribute(x, target=(-1,), layer=module))
    assert not torch.equal(by_name, nif.attribute(x, target=0, layer=name))
    assert torch.equal(
        nif.attribution_matrix(layer=name), nif.attribution_matrix(layer=module)
    )
    assert torch.equal(
        nif.attribute(x, target=1, layer=net.end), nif.attribute(x, target=1)
    )


def test_a_graph_ends_at_the_layer_and_node_asked_for():
    nif, x = nif_of(made(Skip)).fit(samples(Skip, 40)), samples(Skip, 2)
    full, only = nif.flow(x), nif.flow(x, target=[0, 2], layer="fc2")
    leading = [link for link in Skip.links if link[1] in ("fc1", "fc2")]
    for s, node in enumerate([0, 2]):
        assert [link.ends for link in only[s].links] == leading
        assert only[s].layers[-1] == replace(full[s].layer("fc2"), kind="output")
        weights = {link.ends: link.weight for link in full[s].links}
        for link in only[s].links:
            expected = weights[link.ends].clone()
            if link.target == "fc2":
                expected[:, [j for j in range(3) if j != node]] = 0.0
            assert torch.equal(link.weight, expected)
    assert [link.ends for link in nif.flow(layer="fc2").links] == leading
    population, one = nif.flow(), nif.flow(target=1)
    assert torch.equal(one.path_sums(1), population.path_sums(1))
    assert not one.path_sums(0).any()


def test_groups_are_nodes_whose_value_is_the_mean():
    model, x, background = made(Chain), samples(Chain, 2), samples(Chain, 14)
    mask = torch.tensor([[8, 3, 8, 5]])
    population, query = oracle_values(model, background), oracle_values(model, x)

    def grouped(rows: list[list[float]]) -> list[list[float]]:
        return [[r[1], r[3], (r[0] + r[2]) / 2] for r in rows]  # by number: 3, 5, 8

    population["input"], query["input"] = (
        grouped(population["input"]),
        grouped(query["input"]),
    )
    nif = nif_of(model).fit(background)
    found = nif.attribute(x, target=1, feature_mask=mask)
    for s in range(2):
        sample = {name: rows[s] for name, rows in query.items()}
        weights = oracle.instance_weights(Chain.links, population, sample, K)
        three, five, eight = oracle.attributions(weights, "input", 3, "fc3", 1)
        expected = [eight, three, eight, five]
        torch.testing.assert_close(found[s].tolist(), expected, rtol=1e-9, atol=1e-11)
    assert nif.flow(feature_mask=mask).layers[0].size == 3
    assert nif.attribution_matrix(feature_mask=mask).shape == (3, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("net", NETS)
def test_groups_of_one_are_no_groups(net, dtype):
    model, x = made(net).to(dtype), samples(net, 3).to(dtype)
    nif = nif_of(model).fit(samples(net, 40).to(dtype))
    mask = torch.arange(n_features(x)).view(1, *x.shape[1:])
    found = nif.attribute(x, target=1, feature_mask=mask)
    assert torch.equal(found, nif.attribute(x, target=1))


def test_masks_broadcast_and_number_across_inputs():
    model = made(TwoInputs)
    x, z = torch.randn(40, 3).double(), torch.randn(40, 2).double()
    nif = nif_of(model).fit((x, z))
    mask = (torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[4, -1]]))
    found = nif.attribute((x[:2], z[:2]), target=0, feature_mask=mask)
    assert torch.equal(found[0], found[0][:, :1].expand(-1, 3))
    assert [layer.size for layer in nif.flow(feature_mask=mask).layers[:2]] == [1, 2]


# --- inputs in all forms -------------------------------------------------------------


def test_tuples_come_back_as_tuples():
    nif, x = nif_of(made(Chain)).fit((samples(Chain, 40),)), samples(Chain, 3)
    alone, wrapped = nif.attribute(x, target=0), nif.attribute((x,), target=0)
    assert isinstance(wrapped, tuple)
    assert torch.equal(wrapped[0], alone)


def test_several_inputs_one_entering_late():
    model = made(TwoInputs)
    x, z = torch.randn(40, 3).double(), torch.randn(40, 2).double()
    nif = nif_of(model).fit((x, z))
    found = nif.attribute((x[:3], z[:3]), target=[0, 1, 0])
    sums = torch.stack(
        [
            g.normalized("node").path_sums(t)
            for g, t in zip(nif.flow((x[:3], z[:3])), [0, 1, 0], strict=True)
        ]
    )
    assert [a.shape for a in found] == [(3, 3), (3, 2)]
    torch.testing.assert_close(torch.cat(found, 1), sums, rtol=1e-12, atol=1e-14)
    assert nif.attribution_matrix().shape == (5, 2)


def test_additional_forward_args_follow_the_samples():
    model = made_exact(TwoInputs)
    x, z, offset = (rounded(torch.randn(40, d).double()) for d in (3, 2, 1))
    baked = nif_of(model).fit((x * 2.0 + offset, z))
    passed = nif_of(model).fit((x, z), additional_forward_args=(offset, 2.0))
    rows = slice(5, 9)
    found = passed.attribute(
        (x[rows], z[rows]),
        1,
        additional_forward_args=(offset[rows], 2.0),
        internal_batch_size=2,
    )
    # ranks of x * 2 + offset are not those of x, so only hidden links are comparable
    other = baked.flow((x[rows] * 2.0 + offset[rows], z[rows]))
    same = passed.flow((x[rows], z[rows]), additional_forward_args=(offset[rows], 2.0))
    for a, b in zip(same, other, strict=True):
        assert torch.equal(a.links[-1].weight, b.links[-1].weight)
    sums = torch.stack([g.normalized("node").path_sums(1) for g in same])
    torch.testing.assert_close(torch.cat(found, 1), sums, rtol=1e-12, atol=1e-14)
    shifted = passed.attribute(
        (x[rows], z[rows]), 1, additional_forward_args=(offset[rows] + 1.0, 2.0)
    )
    assert not torch.equal(shifted[0], found[0])


def plain_chain(depth):
    torch.manual_seed(0)
    layers = []
    for _ in range(depth):
        linear = nn.Linear(24, 24)
        nn.init.kaiming_normal_(linear.weight)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(24, 3)).eval()


def test_sums_over_long_chains_say_what_to_do():
    model, x = plain_chain(30), torch.randn(200, 24)
    nif = NIFAttribution(model).fit(x)
    with pytest.warns(UserWarning, match=r'up to 31 links.*normalize="node"'):
        found = nif.attribute(x[:4] + 0.01, target=0)
    assert found.isfinite().all()
    with pytest.warns(UserWarning, match="normalize"):
        nif.attribution_matrix()
    # as advised: no warning
    normalized = NIFAttribution(model, normalize="node").fit(x)
    found = normalized.attribute(x[:4] + 0.01, target=0)
    assert found.isfinite().all()
    assert found.any()
    faithful = NIFAttribution(model, preset="faithful").fit(x)
    assert faithful.attribute(x[:4] + 0.01, target=0).any()


@pytest.mark.parametrize("net", NETS)
def test_internal_batches_do_not_show(net):
    model, x = made_exact(net), rounded(samples(net, 40))
    nif = nif_of(model)
    expected = nif.attribute(x, target=1)
    for size in (1, 7, 40):
        assert torch.equal(
            nif.attribute(x, target=1, internal_batch_size=size), expected
        )
    expected = nif.fit(x).attribute(x[:9], target=1)
    for size in (1, 4):
        nif.fit(x, batch_size=size)
        found = nif.attribute(x[:9], target=1, internal_batch_size=size)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("net", NETS)
def test_permuting_the_batch_permutes_the_result(net):
    model, x = made(net), samples(net, 40)
    order = torch.randperm(40)
    nif = nif_of(model)
    assert torch.equal(nif.attribute(x[order], 1), nif.attribute(x, 1)[order])


def test_a_background_for_one_call_is_what_fit_keeps():
    nif, x, background = nif_of(made(Skip)), samples(Skip, 3), samples(Skip, 40)
    once = nif.attribute(x, target=2, background=background)
    graph = nif.flow(background=background)
    assert not nif.is_fitted
    nif.fit(background)
    assert torch.equal(nif.attribute(x, target=2), once)
    assert nif.flow() == graph
    other = samples(Skip, 40)
    assert not torch.equal(nif.attribute(x, target=2, background=other), once)
    assert torch.equal(nif.attribute(x, target=2), once)


def test_fit_prepares_what_every_call_needs(monkeypatch):
    nif, x = nif_of(made(Skip)).fit(samples(Skip, 40)), samples(Skip, 3)
    expected = nif.attribute(x, 0)

    def prepared_again(*_: object) -> None:
        raise AssertionError("a layer of the background was prepared again")

    monkeypatch.setattr(MixedKSG, "prepare", prepared_again)
    assert torch.equal(nif.attribute(x, 0), expected)
    assert nif.flow().links


def test_loaders_lists_and_generators_are_backgrounds():
    model, x = made(Chain), samples(Chain, 41)
    expected = nif_of(model).fit(x).attribution_matrix()
    labeled = TensorDataset(x, torch.arange(41))
    for background in (
        DataLoader(labeled, batch_size=8),
        DataLoader(TensorDataset(x), batch_size=41),
        list(x.split(10)),
        ([part, "label"] for part in x.split(10)),
    ):
        assert torch.equal(nif_of(model).fit(background).attribution_matrix(), expected)


def test_streamed_tuples_of_two_inputs():
    model = made(TwoInputs)
    x, z, y = torch.randn(40, 3).double(), torch.randn(40, 2).double(), torch.ones(40)
    expected = nif_of(model).fit((x, z)).attribution_matrix()
    loader = DataLoader(TensorDataset(x, z, y), batch_size=16)
    assert torch.equal(nif_of(model).fit(loader).attribution_matrix(), expected)


def test_strides_do_not_matter():
    model, x, background = made(Conv), samples(Conv, 3), samples(Conv, 40)
    nif = nif_of(model).fit(background)
    expected = nif.attribute(x, 0)
    striding = torch.stack([x, x], dim=-1)[..., 0]
    assert not striding.is_contiguous()
    for other in (striding, x.to(memory_format=torch.channels_last)):
        found = nif.attribute(other, 0)
        assert torch.equal(found, expected)
        assert found.is_contiguous()
    flipped = background.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(nif_of(model).fit(flipped).attribute(x, 0), expected)


def test_precision_of_the_input_is_returned():
    double = nif_of(made(Chain)).fit(samples(Chain, 40)).attribute(samples(Chain, 3), 0)
    assert double.dtype == torch.float64
    single = nif_of(made(Chain).float()).fit(samples(Chain, 40).float())
    assert single.attribute(samples(Chain, 3).float(), 0).dtype == torch.float32


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x.float() / 255)).mean((2, 3)))


def test_integer_images():
    model = Pixels().eval()
    pixels = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8)
    found = nif_of(model).fit(pixels).attribute(pixels[:3], target=0)
    assert found.dtype == torch.float32
    expected = nif_of(model).fit(pixels.float()).attribute(pixels[:3].float(), target=0)
    assert torch.equal(found, expected)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor, x: Tensor | None = None) -> Tensor:
        h = self.embedding(ids).mean(1)
        return self.fc(h if x is None else h + x)


def test_token_ids_are_no_nodes():
    model, ids = Tokens().eval(), torch.randint(0, 9, (40, 5))
    nif = nif_of(model).fit(ids)
    with pytest.raises(ValueError, match=r"token ids.*categories"):
        nif.attribute(ids[:2], target=0)
    assert nif.flow().links
    x = torch.randn(40, 4)
    both = nif_of(model).fit((ids, x))
    with pytest.warns(UserWarning, match="token ids") as caught:
        of_ids, of_x = both.attribute((ids[:2], x[:2]), target=0)
    assert caught[0].filename == __file__
    assert not of_ids.any()
    assert of_x.any()


def test_inference_mode():
    model, x, background = made(Skip), samples(Skip, 3), samples(Skip, 40)
    expected = nif_of(model).fit(background).attribute(x, 1)
    with torch.inference_mode():
        inside = nif_of(model).fit(background.clone())
        assert torch.equal(inside.attribute(x.clone(), 1), expected)
    assert torch.equal(inside.attribute(x, 1), expected)
    assert torch.equal(copy.deepcopy(inside).attribute(x, 1), expected)


def test_a_dead_net_gives_zeros():
    model = made(Chain)
    for p in model.parameters():
        p.data.zero_()
    nif = nif_of(model, normalize="node").fit(samples(Chain, 40))
    assert not nif.attribute(samples(Chain, 3), target=0).any()


# --- nothing consumed, nothing left --------------------------------------------------


class Fragile(nn.Module):
    """Fails in the middle of its forward pass when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        self.drop, self.fc2 = nn.Dropout(0.5), nn.Linear(3, 2)
        self.error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.fc1(x.mul_(1.0)))
        if self.error is not None:
            raise self.error
        return self.fc2(self.drop(x))


def state(model: nn.Module) -> dict[str, object]:
    return {
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ],
        "training": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [
            None if p.grad is None else p.grad.tolist() for p in model.parameters()
        ],
        "tensors": {k: v.tolist() for k, v in model.state_dict().items()},
        "attributes": [sorted(vars(m)) for m in model.modules()],
    }


@pytest.mark.parametrize("error", [None, OSError("stop"), KeyboardInterrupt()])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.filterwarnings("ignore:The model is in training mode")
def test_nothing_is_left(error, training, rng_untouched):
    model = Fragile().train(training)
    model.fc1.weight.requires_grad_(False)
    model.fc2.weight.grad = torch.ones(2, 3)
    model.fc1.register_forward_hook(lambda *_: None)
    x, background = torch.randn(40, 4, requires_grad=True), torch.randn(50, 4)
    kept, before = (x.detach().clone(), background.clone()), state(model)
    model.error = error
    nif = NIFAttribution(model)
    with rng_untouched():
        for call in (
            lambda: nif.attribute(x, target=0),
            lambda: nif.flow(x),
            lambda: nif.attribute(x, target=0, background=background),
            lambda: nif.fit(background).attribute(x, target=0),
        ):
            if error is None:
                call()
            else:
                with pytest.raises(type(error)):
                    call()
    assert state(model) == before
    assert torch.equal(x, kept[0])
    assert torch.equal(background, kept[1])
    assert x.grad is None
    assert nif.is_fitted == (error is None)


def test_results_carry_no_gradient_history():
    x = samples(Chain, 3).requires_grad_()
    nif = nif_of(made(Chain)).fit(samples(Chain, 40))
    assert not nif.attribute(x, 0).requires_grad
    assert not nif.attribution_matrix().requires_grad


def test_a_failed_fit_leaves_the_earlier_one():
    nif, x = nif_of(made(Chain)).fit(samples(Chain, 40)), samples(Chain, 3)
    expected = nif.attribute(x, 0)
    for bad in (samples(Chain, 2), torch.full((40, 4), float("nan")).double(), []):
        with pytest.raises(ValueError):  # noqa: PT011  (the messages: test_checks.py)
            nif.fit(bad)
        assert torch.equal(nif.attribute(x, 0), expected)


def test_repetition_is_bitwise(rng_untouched):
    model, x, background = made(Conv), samples(Conv, 3), samples(Conv, 40)
    with rng_untouched():
        first = nif_of(model).fit(background).attribute(x, 0)
        assert torch.equal(nif_of(model).fit(background).attribute(x, 0), first)


def test_threads_share_a_model():
    model, x, background = made(Skip), samples(Skip, 40), samples(Skip, 50)
    fitted, unfitted = nif_of(model).fit(background), nif_of(model)
    with torch.no_grad():
        expected = fitted.attribute(x, 1), unfitted.attribute(x, 1), model(x)
    results: dict[int, list[bool]] = {i: [] for i in range(4)}

    def work(i: int) -> None:
        for _ in range(4):
            with torch.no_grad():
                found = (
                    (fitted.attribute, unfitted.attribute, lambda y, _: model(y))[i % 3]
                )(x, 1)
            results[i].append(torch.equal(found, expected[i % 3]))

    threads = [threading.Thread(target=work, args=(i,)) for i in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [True] * 4 for i in range(4)}
    assert state(model)["hooks"] == [(0, 0, 0)] * len(list(model.modules()))


def test_progress_is_drawn_when_asked_for(capsys):
    nif, x = nif_of(made(Chain)), samples(Chain, 40)
    nif.fit(x).attribute(x[:2], 0)
    assert capsys.readouterr().err == ""
    nif.fit(x, show_progress=True).attribute(x[:2], 0, show_progress=True)
    nif.flow(show_progress=True)
    nif.flow(x[:2], show_progress=True)
    drawn = capsys.readouterr().err
    for bar in ("background", "attribution", "population graph", "NIF graphs"):
        assert bar in drawn


def test_the_sign_does_not_tell_one_class_from_another():
    """Logits x and -x share all their information, whichever is higher."""
    model = nn.Linear(1, 2, bias=False).eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    x = torch.linspace(-2, 2, 101).unsqueeze(1)
    nif = NIFAttribution(model).fit(x)
    assert (nif.attribute(x, target=0) > 0).all()
    assert torch.equal(nif.attribute(x, target=0), nif.attribute(x, target=1))


def test_a_fit_in_training_mode_does_not_serve_evaluation():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    with pytest.warns(UserWarning, match="training mode"):
        nif = NIFAttribution(model).fit(torch.randn(40, 4))
    model.eval()
    with pytest.raises(RuntimeError, match="training mode changed"):
        nif.attribute(torch.randn(2, 4), target=0)


def test_a_mode_without_effect_may_change():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    nif = NIFAttribution(model).fit(torch.randn(40, 4))
    nif.attribute(torch.randn(2, 4), target=0)
    model.eval()
    nif.attribute(torch.randn(2, 4), target=0)


def test_repr_tells_what_was_fitted():
    nif = NIFAttribution(nn.Linear(4, 2).eval(), estimator=MixedKSG(k=3))
    assert repr(nif).startswith("NIFAttribution(Linear, MixedKSG(k=3")
    assert repr(nif).endswith("not fitted)")
    assert repr(nif.fit(torch.randn(40, 4))).endswith("40 samples fitted)")
    faithful = NIFAttribution(nn.Linear(4, 2).eval(), preset="faithful")
    assert repr(faithful) == "NIFAttribution(Linear, 16 hybrids, not fitted)"
    assert faithful.multiplies_by_inputs
    assert not nif.multiplies_by_inputs
