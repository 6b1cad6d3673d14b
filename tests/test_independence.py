"""Independent inputs, against calling modules by hand and against index arithmetic."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import N, Net, no_hooks_of_ours

from captum_nif import NIFAttribution
from captum_nif.flow import independent_inputs
from captum_nif.flow.batches import batches_of
from captum_nif.flow.independent_inputs import draw, max_draws
from captum_nif.flow.population import Population, run_population
from captum_nif.flow.receptive_fields import receptive_fields
from captum_nif.graph.elements import Layer
from captum_nif.tracing.dataflow import Structure


def population(model, background, extra=(), layers=None, size=64):
    batches = batches_of(model, background, extra, size)
    return run_population(model, batches, layers, nodes="neuron")


# --- what layers are fed, and what they give ------------------------------------------


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(16, 5),
        nn.LayerNorm(5),
        nn.Tanh(),
        nn.Linear(5, 3),
    ).eval()


def test_each_layer_gives_what_its_modules_make_of_what_it_was_fed():
    model = cnn()
    model[1].running_mean += 0.3
    drawn = draw(model, population(model, torch.randn(20, 2, 8, 8)), 50, 0, {})
    # layer, source, the modules from the layer to its value, shape that it reads
    for name, source, modules, shape in [
        ("0", "input", model[0:4], (2, 8, 8)),
        ("4", "0", model[4:7], (3, 4, 4)),
        ("9", "4", model[9:12], (16,)),
        ("12", "9", model[12:], (5,)),
    ]:
        read = drawn.passed_on[source].view(50, *shape).clone()
        wanted = modules(read).detach().flatten(1)
        torch.testing.assert_close(drawn.computed[name], wanted)
        assert not torch.allclose(drawn.passed_on.get(name, wanted + 1), wanted)
    assert torch.equal(drawn.computed["input"], drawn.passed_on["input"])


def test_in_channels_last_and_in_double_precision():
    model, x = cnn(), torch.randn(20, 2, 8, 8)
    wanted = draw(model, population(model, x), 30, 0, {})
    last = model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    found = draw(last, population(last, x), 30, 0, {})
    double = draw(model.double(), population(model, x.double()), 30, 0, {})
    for name, value in wanted.computed.items():
        torch.testing.assert_close(found.computed[name], value, rtol=1e-4, atol=1e-5)
        assert double.computed[name].dtype == torch.float64
        torch.testing.assert_close(
            double.computed[name].float(), value, rtol=1e-4, atol=1e-5
        )


def test_branches_that_meet_each_read_what_was_fed():
    block = Net(
        lambda m, h, x: m.c(torch.cat([h, m.b(h).sigmoid()], 1)) + x[:, :2],
        b=nn.Linear(4, 4),
        c=nn.Linear(8, 2),
    )
    model = Net(lambda m, x: m.parts(m.a(x).relu(), x), a=nn.Linear(4, 4), parts=block)
    drawn = draw(model, population(model, torch.randn(40, 4)), 64, 0, {})
    x, h = drawn.passed_on["input"], drawn.passed_on["a"]
    b = drawn.passed_on["parts.b"]
    with torch.no_grad():
        torch.testing.assert_close(drawn.computed["a"], model.a(x).relu())
        torch.testing.assert_close(
            drawn.computed["parts.b"], model.parts.b(h).sigmoid()
        )
        c = model.parts.c(torch.cat([h, b], 1))
        torch.testing.assert_close(drawn.computed["parts.c"], c)
        c = drawn.passed_on["parts.c"]
        torch.testing.assert_close(drawn.computed["output"], c + x[:, :2])


def test_each_call_of_a_shared_module_is_fed_on_its_own():
    model = Net(
        lambda m, x: m.b(m.a(m.a(x).relu()).relu()),
        a=nn.Linear(4, 4),
        b=nn.Linear(4, 2),
    )
    drawn = draw(model, population(model, torch.randn(40, 4)), 64, 0, {})
    with torch.no_grad():
        for name, source in (("a", "input"), ("a:1", "a")):
            wanted = model.a(drawn.passed_on[source]).relu()
            torch.testing.assert_close(drawn.computed[name], wanted)


def test_sequences_of_tokens():
    model = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Flatten(), nn.Linear(15, 2)
    )
    drawn = draw(model, population(model, torch.randn(30, 5, 4)), 40, 0, {})
    with torch.no_grad():  # nodes are ordered by channel, then by place
        wanted = model[0](drawn.passed_on["input"].view(40, 5, 4)).relu().mT.flatten(1)
        torch.testing.assert_close(drawn.computed["0"], wanted)
        read = drawn.passed_on["0"].view(40, 6, 5).mT
        torch.testing.assert_close(drawn.computed["2"], model[2](read).mT.flatten(1))


@pytest.mark.parametrize("preset", [None, "gradient_free"])
def test_tokens_do_not_leak_into_each_other(preset):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Flatten(), nn.Linear(15, 2)
    )
    nif = NIFAttribution(model.eval(), preset=preset, nodes="neuron")
    weight = nif.fit(torch.randn(300, 5, 4)).population_graph().links[0].weight
    # [tokens, features] in, [channels, tokens] out
    linked = weight.to_dense().view(5, 4, 6, 5) != 0
    own = torch.eye(5, dtype=torch.bool)[:, None, None, :].expand_as(linked)
    assert not linked[~own].any()
    assert linked[own].float().mean() > 0.9


def test_values_are_drawn_from_the_background_node_by_node():
    x = torch.randn(500, 1).expand(-1, 3).clone()  # the same number thrice
    model = nn.Linear(3, 2)
    fed = draw(model, population(model, x), 4096, 0, {}).passed_on["input"]
    assert torch.isin(fed, x).all()
    r = torch.corrcoef(fed.T)
    # independent draws: the standard error of a correlation of 0 is 1 / 64
    assert (r - torch.eye(3)).abs().max() < 5 / 64
    torch.testing.assert_close(fed.std(0), x.std(0), rtol=0.1, atol=0.0)


def test_members_of_a_group_are_drawn_together():
    x = torch.arange(50.0)[:, None] + torch.tensor([0.0, 1000.0, 2000.0])
    model = nn.Linear(3, 2)
    members = {"input": torch.tensor([0, 1, 0])}
    fed = draw(model, population(model, x), 200, 0, members).passed_on["input"]
    assert (fed[:, 2] - fed[:, 0] == 2000).all()
    assert (fed[:, 1] - fed[:, 0] != 1000).any()


def test_token_ids_come_in_whole_samples_and_embeddings_one_by_one():
    model = Net(
        lambda m, i, x: m.c(torch.cat([m.e(i).flatten(1), x], 1)),
        e=nn.Embedding(9, 3),
        c=nn.Linear(8, 2),
    )
    ids, x = torch.randint(9, (30, 2)), torch.randn(30, 2)
    drawn = draw(model, population(model, (ids, x)), 60, 0, {})
    assert torch.equal(drawn.passed_on["input0"], ids.repeat(2, 1))
    embedded = model.e(ids).detach().mT.flatten(1).repeat(2, 1)
    torch.testing.assert_close(drawn.computed["e"], embedded)
    assert not torch.allclose(drawn.passed_on["e"], embedded)
    read = drawn.passed_on["e"].view(60, 3, 2).mT.flatten(1)
    wanted = model.c(torch.cat([read, drawn.passed_on["input1"]], 1)).detach()
    torch.testing.assert_close(drawn.computed["c"], wanted)


def test_further_arguments_follow_their_samples():
    model = Net(
        lambda m, x, scale, shift: m.a(x) * scale + shift,
        a=nn.Linear(3, 2),
    )
    scale = torch.rand(10, 1)
    people = population(model, torch.randn(10, 3), (scale, 2.5), size=4)
    drawn = draw(model, people, 25, 0, {})
    rows = torch.arange(25) % 10  # batches of 4, 4 and 2, over and over
    wanted = model.a(drawn.passed_on["input"]) * scale[rows] + 2.5
    torch.testing.assert_close(drawn.computed["a"], wanted.detach())


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("draws", [1, 40, 100])
def test_as_many_draws_as_asked_for(size, draws):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    told = []
    people = population(model, torch.randn(40, 3), size=size)
    drawn = draw(model, people, draws, 0, {}, told.append)
    for values in (*drawn.passed_on.values(), *drawn.computed.values()):
        assert len(values) == draws
    assert sum(told) >= draws
    with torch.no_grad():
        wanted = model[:2](drawn.passed_on["input"])
    torch.testing.assert_close(drawn.computed["0"], wanted)


def test_the_seed_decides():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    people = population(model, torch.randn(40, 3))
    first, again, other = (draw(model, people, 50, seed, {}) for seed in (1, 1, 2))
    for name in ("input", "0"):
        assert torch.equal(first.passed_on[name], again.passed_on[name])
        assert not torch.equal(first.passed_on[name], other.passed_on[name])
    for name, value in first.computed.items():
        assert torch.equal(value, again.computed[name])


def by_rank(people, read, draws, seed, members):
    """One layer, node and draw after the other: the sample of a rank by chance."""
    generator, fed = torch.Generator().manual_seed(seed), {}
    for name in read:
        values = people.values[name]
        of = members.get(name, torch.arange(values.shape[1]))
        fed[name] = torch.zeros(draws, values.shape[1])
        for node in range(int(of.max()) + 1):
            group = values[:, of == node]
            ranked = sorted(range(len(values)), key=group.sum(1).__getitem__)
            for row in range(draws):
                share = torch.rand((), generator=generator, dtype=torch.float64)
                fed[name][row, of == node] = group[ranked[int(share * len(values))]]
    return fed


@pytest.mark.parametrize("members", [{}, {"input": torch.tensor([0, 1, 1, 0])}])
def test_a_draw_is_of_the_sample_of_a_rank(members):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    people = population(model, torch.randn(30, 4), size=7)
    for part in (people, people.subset(torch.arange(0, 30, 2))):
        found = draw(model, part, 300, 5, members)
        for name, wanted in by_rank(part, ("input", "0"), 300, 5, members).items():
            assert torch.equal(found.passed_on[name], wanted)


def test_draws_from_populations_that_are_alike_are_alike():
    model = nn.Linear(3, 2)
    x = torch.rand(1000, 3, generator=torch.Generator().manual_seed(1))
    people = population(model, x)
    fed = draw(model, people, 500, 0, {}).passed_on["input"]
    part = people.subset((torch.arange(1000) % 10 != 3).nonzero().flatten())
    again = draw(model, part, 500, 0, {}).passed_on["input"]
    other = draw(model, part, 500, 1, {}).passed_on["input"]
    assert torch.isin(again, part.values["input"]).all()
    assert (fed - again).abs().max() < 0.05  # two quantiles, of 1000 and of 900
    assert (fed - other).abs().mean() > 0.3  # 1/3, if independent


def test_some_of_the_draws_are_as_among_all():
    model, kept = cnn(), torch.tensor([0, 3, 4, 17, 30, 49])
    people = population(model, torch.randn(20, 2, 8, 8))
    every, some = (draw(model, people, 50, 2, {}, kept=x) for x in (None, kept))
    for name, values in every.passed_on.items():
        if name != "12":  # the output, which nothing reads, is not drawn
            assert torch.equal(some.passed_on[name], values[kept])
    for name, values in every.computed.items():
        torch.testing.assert_close(some.computed[name], values[kept])


def test_draws_do_not_depend_on_how_the_background_is_cut():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(40, 3)
    one, other = (draw(model, population(model, x, size=n), 90, 0, {}) for n in (7, 40))
    for name in ("input", "0"):
        torch.testing.assert_close(one.passed_on[name], other.passed_on[name])


# --- how much chance there is in it ---------------------------------------------------


def test_standard_errors_count_the_noise_of_backgrounds_and_of_draws_once():
    mixing = torch.randn(5, 5, generator=torch.Generator().manual_seed(7))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))

    def background(size, seed):
        drawn = torch.randn(size, 5, generator=torch.Generator().manual_seed(seed))
        return drawn @ mixing

    def fitted(seed):  # as many draws as samples: either adds much to the noise
        nif = NIFAttribution(model, preset="gradient_free", draws=400, seed=seed)
        return nif.fit(background(400, seed))

    query = background(8, 999)
    nifs = [fitted(seed) for seed in range(80)]
    found = torch.stack([nif.attribute(query, target=1) for nif in nifs])
    errors = torch.stack([nif.standard_error(query, target=1) for nif in nifs[:12]])
    ratio = (errors.square().mean() / found.var(0).mean()).sqrt()
    assert 0.8 < ratio < 1.5  # 0.7 with neither's noise alone, 2 with draws made anew


def test_a_standard_error_is_that_of_its_seed_and_leaves_nothing(rng_untouched):
    model, x = cnn(), torch.randn(60, 2, 8, 8)
    nif = NIFAttribution(model, preset="gradient_free", draws=200).fit(x)
    with rng_untouched():
        first = nif.standard_error(x[:2], target=0, groups=3)
        nif.standard_error(x[:2], target=0, groups=3, seed=4)
    assert torch.equal(nif.standard_error(x[:2], target=0, groups=3), first)
    assert no_hooks_of_ours(model)


# --- receptive fields -----------------------------------------------------------------


def reads(length, kernel, stride=1, padding=0, dilation=1):
    """Along one axis: for each output place, the input places that it reads."""
    out = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    places = [
        {o * stride - padding + dilation * k for k in range(kernel)} for o in range(out)
    ]
    return [seen & set(range(length)) for seen in places]


def product(rows, columns):
    """Two axes: [places in, places out] for maps of the given lengths."""
    (seen_r, height), (seen_c, width) = rows, columns
    field = torch.zeros(height * width, len(seen_r) * len(seen_c), dtype=torch.bool)
    for (i, r), (j, c) in itertools.product(enumerate(seen_r), enumerate(seen_c)):
        for a, b in itertools.product(r, c):
            field[a * width + b, i * len(seen_c) + j] = True
    return field


def after(first, second):
    """Fields of two windows, one after the other."""
    return (first.double() @ second.double()) > 0


CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "padding": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "stride beyond the kernel": {"kernel_size": 1, "stride": 2},
    "dilation": {"kernel_size": 2, "dilation": 3},
    "all": {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 0), "dilation": 2},
}


def along(options, axis, length):
    pick = {k: v[axis] if isinstance(v, tuple) else v for k, v in options.items()}
    return reads(length, pick.pop("kernel_size"), **pick), length


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_fields_of_a_convolution(name):
    options = CONVOLUTIONS[name]
    model = nn.Sequential(nn.Conv2d(2, 3, **options), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(model(torch.ones(1, 2, 7, 8)).numel(), 2))
    found = receptive_fields(model, population(model, torch.randn(40, 2, 7, 8)), 0)
    wanted = product(along(options, 0, 7), along(options, 1, 8))
    assert torch.equal(found["input", "0"], wanted)
    assert ("0", "3") not in found, "a linear layer sees everything"


def test_fields_of_a_convolution_and_its_pooling():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 2),
    ).eval()
    x = torch.randn(40, 1, 16, 16)
    found = receptive_fields(model, population(model, x), 0)
    conv = product(*[(reads(16, 3, padding=1), 16)] * 2)
    pool = product(*[(reads(16, 2, stride=2), 16)] * 2)
    assert torch.equal(found["input", "0"], after(conv, pool))
    conv = product(*[(reads(8, 3, stride=2, padding=1), 8)] * 2)
    pool = product(*[(reads(4, 2, stride=2), 4)] * 2)
    assert torch.equal(found["0", "4"], after(conv, pool))
    assert ("4", "8") not in found


def test_fields_along_a_sequence():
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Conv1d(3, 1, 2), nn.Flatten()
    )
    found = receptive_fields(model, population(model, torch.randn(40, 2, 9)), 0)
    first, second = reads(9, 3), reads(7, 2)
    for ends, seen, length in (("input", "0"), first, 9), (("0", "2"), second, 7):
        wanted = [[i in places for places in seen] for i in range(length)]
        assert found[ends].tolist() == wanted


def test_features_that_are_seldom_active_keep_their_links():
    # blank in 499 of 500 samples, as pixels at the border of drawings are
    x = torch.zeros(500, 1, 5, 5)
    x.view(500, 25)[torch.arange(24), torch.arange(24)] = 1.0  # the last never varies
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
    found = receptive_fields(model, population(model, x), 0)
    assert found["input", "1"].flatten().tolist() == [True] * 24 + [False]


# --- at the door ----------------------------------------------------------------------


def test_too_many_neurons_for_memory():
    vast = torch.zeros(1, dtype=torch.float64).expand(40, 10**7)  # one number held
    people = Population(
        Structure((Layer("x", 10**7, "input"),), ()), {"x": vast}, (torch.float64,)
    )
    with pytest.raises(ValueError, match=r"all 10,000,000 neurons.*only 13 draws"):
        max_draws(people, 4096)
    assert max_draws(people, 13) == 13
    small = Population(people.structure, {"x": vast[:, :10]}, people.dtypes)
    assert max_draws(small, 4096) == 4096


def test_a_network_too_large_is_refused_before_work_begins(monkeypatch):
    monkeypatch.setattr(independent_inputs, "_BUDGET", 1 << 18)
    model, passes = cnn(), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    nif = NIFAttribution(model, preset="gradient_free")
    with pytest.raises(ValueError, match=r"200 neurons takes.*nodes='channel'"):
        nif.fit(torch.randn(40, 2, 8, 8))
    assert len(passes) < 10, "no receptive fields were looked for"
    assert not nif.is_fitted


class LastState(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.fc(self.lstm(x)[1][0][-1])


@pytest.mark.parametrize("options", [{"sampling": "independent"}, {"nodes": "neuron"}])
def test_states_apart_from_the_sequence_are_refused(options):
    nif = NIFAttribution(LastState(), **options)
    advice = "sampling='observed' and nodes='channel'"
    with pytest.raises(
        NotImplementedError, match=f"'lstm' passes on several.*{advice}"
    ):
        nif.fit(torch.randn(40, 4, 3))
    assert not nif.is_fitted
    NIFAttribution(LastState()).fit(torch.randn(40, 4, 3))  # as advised


def test_expanded_values_are_refused():
    model = Net(
        lambda m, x: m.b(m.a(x).relu()[:, :, None].expand(-1, -1, 4)).flatten(1),
        a=nn.Linear(4, 3),
        b=nn.Conv1d(3, 2, 3),
    )
    with pytest.raises(NotImplementedError, match=r"'a' cannot be exchanged.*observed"):
        NIFAttribution(model, preset="gradient_free").fit(torch.randn(40, 4))
    assert no_hooks_of_ours(model)


@pytest.mark.parametrize(
    "other",
    [
        lambda m, x: m.b(m.a(x).relu()) + x[:, :2],  # other links
        lambda m, x: m.b((m.a(x) * 2).view(-1, 3, 1).flatten(1)),  # other functions
        lambda m, x: m.b(x.sin()[:, [0, 1, 0]]),  # no such layer
    ],
)
def test_another_path_for_independent_inputs_is_refused(other):
    def run(m, x):
        dependent = (x[:, 0] * x[:, 1]).mean() > 0.5
        return m.b(m.a(x).relu()) if dependent else other(m, x)

    model = Net(run, a=nn.Linear(2, 3), b=nn.Linear(3, 2))
    x = torch.randn(200, 1).expand(-1, 2).clone()
    with pytest.raises((ValueError, NotImplementedError)) as caught:
        NIFAttribution(model, sampling="independent").fit(x)
    assert "path" in str(caught.value) or "independent inputs" in str(caught.value)


# --- what the caller keeps ------------------------------------------------------------


def test_nothing_of_the_callers_changes(rng_untouched):
    model = cnn().requires_grad_()
    x = torch.randn(20, 2, 8, 8, requires_grad=True)
    before = x.detach().clone(), {k: v.clone() for k, v in model.state_dict().items()}
    people = population(model, x)
    values = {name: value.clone() for name, value in people.values.items()}
    with rng_untouched():
        draw(model, people, 50, 0, {})
        receptive_fields(model, people, 0)
    assert torch.equal(x, before[0])
    assert x.grad is None
    assert all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, people.values[k]) for k, v in values.items())
    assert no_hooks_of_ours(model)
    assert all(p.grad is None for p in model.parameters())


def test_an_exception_leaves_nothing_behind(rng_untouched):
    def run(m, x):
        m.calls += 1
        if m.calls > 2:
            raise KeyError("own error of the model")
        return m.b(F.relu(m.a(x)))

    model = Net(run, a=nn.Linear(4, 3), b=nn.Linear(3, 2), calls=0)
    people = population(model, torch.randn(N, 4))
    with rng_untouched(), pytest.raises(KeyError, match="own error"):
        draw(model, people, 50, 0, {})
    assert no_hooks_of_ours(model)
