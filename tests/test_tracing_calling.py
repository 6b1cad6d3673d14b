"""What models take besides their inputs, and what they return."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from toy_models import N, Net, arrows

from captum_nif import Constant, NIFAttribution
from captum_nif.flow.batches import batches_of, rows_of
from captum_nif.flow.population import run_population
from captum_nif.tracing.calling import explained_tensor
from captum_nif.tracing.tracer import trace


@dataclass
class ClassifierOutput:
    """As Hugging Face's models return it."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...] = ()
    attentions: Tensor | None = None


Named = namedtuple("Named", ["logits", "aux_logits"])


class ModelOutput(OrderedDict):
    """A dict whose entries are attributes, too."""

    def __getattr__(self, name):
        return self[name]


RETURNED = {
    "dict": lambda y, h: {"logits": y, "features": h},
    "dict of one": lambda y, h: {"out": y},
    "ordered dict": lambda y, h: OrderedDict(out=y),
    "dataclass": lambda y, h: ClassifierOutput(y, (h,)),
    "dataclass with more": lambda y, h: ClassifierOutput(y, (h,), h),
    "named tuple": Named,
    "model output": lambda y, h: ModelOutput(loss=None, logits=y, hidden=h),
    "tuple of one": lambda y, h: (y,),
    "tuple with none": lambda y, h: (y, None),
    "list of one": lambda y, h: [y],
    "tuple with further ones": lambda y, h: (y, (h, h)),
}


@pytest.mark.parametrize("case", RETURNED, ids=lambda case: case.replace(" ", "-"))
def test_the_logits_of_what_a_model_returns_are_explained(case):
    plain = Net(lambda m, x: m.b(m.a(x)), a=nn.Linear(4, 3), b=nn.Linear(3, 2))
    model = Net(
        lambda m, x: (lambda h: RETURNED[case](m.b(h), h))(m.a(x)), a=plain.a, b=plain.b
    )
    x = torch.randn(40, 4)
    found = trace(model, (x,))
    assert set(found.structure.links) == arrows("input > a > b")
    assert torch.equal(found.values["b"], plain(x).detach())
    expected = NIFAttribution(plain.eval()).fit(x).attribute(x[:3], target=1)
    nif = NIFAttribution(model.eval()).fit(x)
    assert torch.equal(nif.attribute(x[:3], target=1), expected)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ((torch.zeros(2), torch.ones(2)), "got tuple with the tensors 0, 1: wrap it"),
        ({"a": torch.zeros(2), "b": torch.ones(2)}, "got dict with the tensors a, b:"),
        (ClassifierOutput(None, (), None), "got ClassifierOutput: wrap"),
        ({}, "got dict: wrap"),
        (None, "got NoneType: wrap"),
        (1.0, "got float: wrap"),
        (SimpleNamespace(logits=torch.zeros(2)), "got SimpleNamespace: wrap"),
    ],
)
def test_several_tensors_without_names_are_refused(output, message):
    with pytest.raises(TypeError, match=f"one of several `logits`; {message}"):
        explained_tensor(output)


# --- constant arguments ---------------------------------------------------------------


class GraphNet(nn.Module):
    """Messages along the edges of one graph, on which all samples are signals."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x, edges, weight=None):
        for layer in (self.a, self.b):
            h = layer(x).relu()
            message = h[:, edges[0]] if weight is None else h[:, edges[0]] * weight
            x = h + torch.zeros_like(h).index_add(1, edges[1], message)
        return self.head(x.mean(1))


EDGES = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 4, 4]])


def test_a_graph_that_all_samples_share():
    torch.manual_seed(0)
    model, x = GraphNet().eval(), torch.randn(70, 5, 2)
    links = arrows("input > a > b > head")
    assert set(trace(model, (x,), (Constant(EDGES),)).structure.links) == links
    baked = Net(lambda m, x: m.net(x, EDGES), net=model)
    expected = NIFAttribution(baked.eval()).fit(x).attribute(x[:3], target=1)
    further = {"additional_forward_args": (Constant(EDGES),)}
    nif = NIFAttribution(model).fit(x, **further)
    found = nif.attribute(x[:3], target=1, internal_batch_size=2, **further)
    assert torch.equal(found, expected)


def test_constants_beside_what_follows_the_samples():
    model, x = GraphNet().eval(), torch.randn(6, 5, 2)
    weight = torch.rand(6, 5, 1)
    extra = (Constant(EDGES), weight)
    cuts = list(batches_of(model, x, extra, batch_size=4))
    assert [len(further[1]) for _, further in cuts] == [4, 2]
    assert all(further[0] is extra[0] for _, further in cuts)
    assert rows_of(extra, slice(1, 3), 6)[1].shape == (2, 5, 1)
    people = run_population(model, cuts)
    whole = trace(model, (x,), extra).values
    assert torch.allclose(people.values["head"], whole["head"])
    some = people.subset(torch.tensor([0, 5]))
    assert [len(further[1]) for _, further in some.batches] == [1, 1]
    assert some.batches[0][1][0] is extra[0]


def test_a_stream_takes_constants():
    model, x = GraphNet().eval(), torch.randn(40, 5, 2)
    stream = [x[:20], x[20:]]
    nif = NIFAttribution(model).fit(stream, additional_forward_args=Constant(EDGES))
    assert nif.is_fitted


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_follow_the_samples_is_to_be_wrapped(stream):
    model, x = GraphNet().eval(), torch.randn(N, 5, 2)
    background = [x] if stream else x
    with pytest.raises(ValueError, match=r"same for all samples: `Constant\(tensor\)`"):
        NIFAttribution(model).fit(background, additional_forward_args=EDGES)
