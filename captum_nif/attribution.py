r"""Neural Information Flow as a Captum attribution method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn, cast, overload

import torch
from captum.attr import Attribution
from torch import Tensor, nn

from captum_nif._captum import (
    TargetType,
    TensorOrTupleOfTensorsGeneric,
    format_additional_forward_args,
    format_output,
    is_tuple,
    log_usage,
    progress,
)
from captum_nif._messages import check_positive
from captum_nif.estimators import PMIEstimator
from captum_nif.flow.basis import AnyBasis, AnyFlow, FeatureMask, Method, Question
from captum_nif.flow.batches import BATCH_SIZE, Background
from captum_nif.flow.checks import (
    check_reached,
    check_sizes,
    warn_if_training,
)
from captum_nif.flow.fingerprint import Fingerprint, fingerprint
from captum_nif.flow.fitting import Setup
from captum_nif.flow.hybrid_fitting import HybridSetup
from captum_nif.flow.hybrid_flow import HybridFlow
from captum_nif.flow.jackknife import GROUPS
from captum_nif.flow.link_weights import Relevance
from captum_nif.flow.options import (
    NOT_GIVEN,
    Normalize,
    NotGiven,
    Option,
    Options,
    Sampling,
    Scale,
    chosen,
)
from captum_nif.flow.population import Modules, check_samples
from captum_nif.flow.targets import check_each_occurs, target_nodes
from captum_nif.graph.elements import Layer
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.graph.path_sums import Normalization
from captum_nif.tracing.record import Nodes
from captum_nif.tracing.tracer import find_layers

_NOTHING_FITTED = "There is no population yet: call `fit(background)` first."


class NIFAttribution(Attribution):
    r"""
    Attributions by Neural Information Flow (Davis et al., ICASSP 2020).

    The network becomes a graph: its nodes are the elements of the inputs, the neurons
    or channels of each layer, and the classes; a link between nodes of consecutive
    layers carries their mutual information (MI) over a population of samples, or, to
    explain one sample, its *pointwise* mutual information (PMI), in nats. The
    attribution of input element :math:`x_i` to class :math:`y_j` is

    .. math::
        A_{ij} = \sum_{\text{paths } x_i \to y_j} \; \prod_{\text{links } l} w_l

    (Eq. 4), a chain of matrix products, computed backwards from the target. A link's
    weight is its relevance less its redundancy (Eq. 3); see ``relevance`` and ``beta``.

    Probabilities are estimated from a background: call :meth:`fit` once with some
    hundred to some thousand samples of the data that the model sees. Without it, each
    sample of a batch of at least 32 is explained against the rest of the batch.

    PMI is positive where two values occur together more often than chance and negative
    where they do so less often, whether the values are high or low. So by default the
    sign of an attribution does not say "for" or "against" a class, nor "raises" or
    "lowers the logit": maps of one sample for different classes are much alike, and two
    negative links make a positive path. ``preset="faithful"`` gives maps whose signs do
    say so. PMI of a single sample is noisy; see :meth:`standard_error`. Where all
    attributions are 0, no information was found: dead units, or constant inputs.
    NoiseTunnel and ``sensitivity_max`` pass many near-copies of a sample in one batch:
    fit a background first, or neighbors will be copies.

    Args:

        forward_func (torch.nn.Module): The trained network, in eval mode. Its layers
            are found by running it; see :mod:`captum_nif.tracing`. TransformerEncoder
            layers leave their fast path, as under any hook.
        layers (list or dict or str, optional): Modules to take as layers, by their
            names (as in ``model.named_modules()``) or as objects; as a dict, with the
            axis along which the channels lie in what each returns, or None where that
            is told by what runs inside. Names after a plus sign, as ``"+encoder"``, are
            taken besides the default. Default: all linear, convolutional, embedding,
            recurrent and attention modules that are called, and functions that are
            called with a parameter, such as ``F.linear``; see
            :mod:`captum_nif.tracing`.
        estimator (PMIEstimator, optional): Estimator of PMI.
            Default: :class:`~captum_nif.MixedKSG` with its defaults
        relevance (str, optional): ``"pairwise"``, the information between the two nodes
            of a link, or ``"joint"``, that between the whole source layer and the
            target node (Eq. 3 as printed).
            Default: ``"pairwise"``
        beta (float, optional): Weight of the redundancy of a source node with the
            earlier nodes of its layer (Eq. 3).
            Default: 0.0
        normalize (str, optional): Scale of the links when paths are summed. None: as
            printed in Eq. 4. ``"node"``: the absolute weights into each node sum to 1,
            so that routes of different lengths compare. ``"layer"``: those into each
            layer do. ``"auto"``: None if every layer feeds just the next one, and on
            the scale of correlation, else ``"node"``.
            Default: ``"auto"``
        preset (str, optional): A named choice of options. ``"faithful"`` for
            ``sampling="hybrid"``: what the model does with a sample, by slopes averaged
            over its own population; signed, in units of the target, exact in linear
            networks, for models of any size. ``"gradient_free"`` for its counterpart
            where there are no gradients: ``GaussianCopula(marginals="standard")``,
            ``scale="correlation"``, ``nodes="neuron"``, ``sampling="independent"``.
            ``"paper"`` for ``estimator=MixedKSG(formula="paper")``, ``beta=5e-4`` and
            ``normalize=None``, the paper's settings. Options given besides take
            precedence.
            Default: None
        scale (str, optional): Of the links. ``"nats"``: (pointwise) mutual information.
            ``"correlation"``: mutual information as Linfoot's correlation, with a sign;
            a sample enters by how far its values deviate from the population's, in
            standard deviations. Then an attribution does say for or against; see
            :mod:`captum_nif.flow.path_analysis` for its equation.
            Default: ``"nats"``, or what the preset says
        nodes (str, optional): Of hidden layers. ``"channel"``: channels, averaged over
            places. ``"neuron"``: every element of a feature map, linked to what lies
            in its receptive field.
            Default: ``"channel"``, or what the preset says
        sampling (str, optional): What links are estimated from. ``"observed"``: the
            values of the background. ``"independent"``: every layer gets values that
            are drawn from the background independently for each node, so that a link
            measures what a layer does rather than how its inputs depend on each other
            (Eq. 3's redundancy is then 0 by construction). ``"hybrid"``: the slopes of
            the model over hybrids of each sample and the background; the options that
            are about information (``estimator``, ``relevance``, ``beta``,
            ``normalize``, ``scale``, ``nodes``) do not apply.
            Default: ``"observed"``, or what the preset says
        draws (int, optional): Independent inputs that are drawn, at most: fewer where
            they would take more than 2 GiB. More take longer and make less noise.
            Default: 4096
        hybrids (int, optional): Hybrids of each sample. More take longer and make less
            noise.
            Default: 16
        seed (int, optional): Of the draws. No global random state is used.
            Default: 0

    Options are fixed once the object is made, and are read as attributes
    (``nif.beta``); :meth:`with_options` makes another object with others.

    Raises:

        TypeError: If ``forward_func`` is no Module, or an option is of the wrong type.
        ValueError: If an option or a layer's name is unknown.
        NotImplementedError: If the model cannot be hooked (scripted, compiled).

    Examples::

        >>> import torch
        >>> from captum_nif import NIFAttribution
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        ... ).eval()
        >>> background = torch.randn(200, 4)
        >>> nif = NIFAttribution(net).fit(background)
        >>> nif.attribute(torch.randn(5, 4), target=1).shape
        torch.Size([5, 4])
        >>> nif.attribution_matrix().shape
        torch.Size([4, 3])
        >>> nif.flow()
        FlowGraph(3 layers, 15 nodes, 2 links)
          input  input   4 nodes
          0      hidden  8 nodes  from input
          2      output  3 nodes  from 0
    """

    layers = Option[Modules]()
    estimator = Option[PMIEstimator]()
    relevance = Option[Relevance]()
    beta = Option[float]()
    normalize = Option[Normalize]()
    scale = Option[Scale]()
    nodes = Option[Nodes]()
    sampling = Option[Sampling]()
    draws = Option[int]()
    hybrids = Option[int]()
    seed = Option[int]()

    def __init__(
        self,
        forward_func: nn.Module,
        layers: Modules = None,
        estimator: PMIEstimator | None = None,
        *,
        preset: str | None = None,
        relevance: Relevance | NotGiven = NOT_GIVEN,
        beta: float | NotGiven = NOT_GIVEN,
        normalize: Normalize | NotGiven = NOT_GIVEN,
        scale: Scale | NotGiven = NOT_GIVEN,
        nodes: Nodes | NotGiven = NOT_GIVEN,
        sampling: Sampling | NotGiven = NOT_GIVEN,
        draws: int | NotGiven = NOT_GIVEN,
        hybrids: int | NotGiven = NOT_GIVEN,
        seed: int | NotGiven = NOT_GIVEN,
    ) -> None:
        find_layers(forward_func, layers)  # refuses what cannot be followed
        self._given = {
            "layers": layers,
            "estimator": estimator,
            "relevance": relevance,
            "beta": beta,
            "normalize": normalize,
            "scale": scale,
            "nodes": nodes,
            "sampling": sampling,
            "draws": draws,
            "hybrids": hybrids,
            "seed": seed,
        }
        self._preset = preset
        self._options = chosen(preset, self._given)
        super().__init__(forward_func)
        self._fitted: tuple[AnyBasis, Fingerprint] | None = None

    def with_options(self, **changes: object) -> NIFAttribution:
        r"""
        The same method with some options changed: a new object, not fitted.

        Args:

            **changes (any): Options by name, as the constructor takes them, ``layers``
                and ``preset`` included. All others stay as they were given.

        Returns:

            **NIFAttribution**: another object, for the same model.

        Raises:

            TypeError: If an option is unknown or of the wrong type.
            ValueError: If its value is unknown or out of range.

        Examples::

            >>> import torch
            >>> from captum_nif import NIFAttribution
            >>> nif = NIFAttribution(torch.nn.Linear(2, 3).eval(), preset="paper")
            >>> nif.beta, nif.with_options(beta=0.0).beta
            (0.0005, 0.0)
        """
        given = {"preset": self._preset, **self._given, **changes}
        return NIFAttribution(self._model, **given)  # type: ignore[arg-type]

    @property
    def options(self) -> Options:
        """All choices of the method, as the preset and the caller made them."""
        return self._options

    def __repr__(self) -> str:
        basis = None if self._fitted is None else self._fitted[0]
        state = f"{basis.population.size} samples fitted" if basis else "not fitted"
        model = type(self.forward_func).__name__
        how = repr(self.estimator)
        if self.sampling == "hybrid":
            how = f"{self.hybrids} hybrids"
        return f"NIFAttribution({model}, {how}, {state})"

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether attributions are slopes times deviations: with hybrids they are."""
        return self.sampling == "hybrid"

    def has_convergence_delta(self) -> bool:
        """False: attributions do not add up to a difference of outputs."""
        return False

    @classmethod
    def get_name(cls) -> str:
        """The method's name, as figures print it."""
        return "Neural Information Flow"

    @property
    def is_fitted(self) -> bool:
        """Whether a background has been fitted."""
        return self._fitted is not None

    def fit(
        self,
        background: Background,
        *labels: object,
        additional_forward_args: object = None,
        batch_size: int = BATCH_SIZE,
        show_progress: bool = False,
    ) -> NIFAttribution:
        r"""
        Run the background through the model and keep the values of all nodes.

        The inputs and the values of nodes are kept, on the model's device: channel
        averages, or where neurons are nodes or inputs are independent, whole feature
        maps. Nothing changes if an exception is raised.

        Args:

            background (Tensor, tuple of Tensor, or iterable): Samples of the model's
                input: a tensor with samples along axis 0; a tuple of them for a model
                with several inputs; or an iterable of batches such as a DataLoader, of
                whose batches the first tensors are the model's inputs and the rest,
                labels for instance, is left aside. Batches are streamed, and moved to
                the model's device.
            *labels (any): Refused: the model's own outputs are used.
            additional_forward_args (any, optional): Further arguments of ``forward``, a
                tuple if several. Tensors follow the samples along axis 0, unless they
                are wrapped in a :class:`~captum_nif.Constant`. They are no nodes.
                Default: None
            batch_size (int, optional): Samples in a forward pass, where ``background``
                is not cut into batches already.
                Default: 64
            show_progress (bool, optional): Draw a progress bar.
                Default: False

        Returns:

            **NIFAttribution**: this object.

        Raises:

            TypeError: If the background or a batch is of another type, or if labels
                are given besides.
            ValueError: If there are fewer samples than the estimator needs; if values
                are not finite (the message names the layer), shapes or dtypes differ,
                or the background is empty.
            NotImplementedError: If the model computes what cannot be followed; the
                message names the layer and the cause.
            Exception: What the model itself raises, as torch does for inputs of another
                shape than it takes; from Python 3.11 on with a note on what was run.

        Warns:

            UserWarning: If values depend on chance or on the other samples of a batch.

        Examples::

            >>> import torch
            >>> from torch.utils.data import DataLoader, TensorDataset
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
            >>> data = TensorDataset(torch.randn(100, 2), torch.zeros(100))
            >>> nif = NIFAttribution(net.eval()).fit(DataLoader(data, batch_size=50))
            >>> nif.is_fitted
            True
        """
        if labels:
            raise TypeError(
                "`fit` takes the background alone, and no labels: the model's own "
                "outputs are used. Pass further arguments of the model's `forward` as "
                "`additional_forward_args=...`."
            )
        extra = format_additional_forward_args(additional_forward_args) or ()
        check_positive("batch_size", batch_size)
        method = self._method
        basis = method.of_background(background, extra, None, batch_size, show_progress)
        with progress(
            desc="NIF links", total=len(basis.flow.links), disable=not show_progress
        ) as bar:
            basis.flow.prepare(bar.update)
        self._fitted = basis, fingerprint(method.model)
        return self

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]  # as in Captum
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        *,
        additional_forward_args: object = None,
        background: Background | None = None,
        feature_mask: FeatureMask | None = None,
        layer: str | nn.Module | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> TensorOrTupleOfTensorsGeneric:
        r"""
        Explain samples: Eq. 4 on the instance graph of each.

        Args:

            inputs (Tensor or tuple of Tensor): The samples, along axis 0; a tuple for a
                model with several inputs.
            target (int, tuple, Tensor or list, optional): The class that each sample
                explains, in any form that Captum takes: one int or tuple of ints for
                all, or a list or 1-d tensor with one entry per sample. With ``layer``,
                the node of that layer. May be None if there is only one.
                Default: None
            additional_forward_args (any, optional): See :meth:`fit`.
                Default: None
            background (Tensor, tuple of Tensor, or iterable, optional): A background
                for this call alone; see :meth:`fit`, which is faster where more than
                one call follows.
                Default: None
            feature_mask (Tensor or tuple of Tensor, optional): Integer tensors that
                broadcast to the inputs: elements with the same number form a feature,
                whose value is the mean of its elements and whose attribution each of
                them gets.
                Default: None
            layer (str or Module, optional): Explain node ``target`` of this layer (a
                neuron, or the average of a channel) instead of a class.
                Default: None (the output)
            internal_batch_size (int, optional): Samples in a forward pass. Models may
                round a sample's activations differently in batches of other sizes; a
                sample of the background then just misses its own values instead of
                tying with them, which changes its attributions somewhat.
                Default: 64
            show_progress (bool, optional): Draw a progress bar.
                Default: False

        Returns:

            **Tensor** or **tuple of Tensor**: attributions of the shape, dtype and
            device of ``inputs`` (of integer inputs: in the default dtype). Their unit
            is nats to the power of the number of links on a path, or none where links
            are normalized. They equal ``nif.flow(inputs)[i].path_sums(target)``, after
            ``.normalized("node")`` where ``normalize`` says so, as ``"auto"`` does on
            networks with skips.

        Raises:

            RuntimeError: If the model's weights, device or dtype changed since
                :meth:`fit`.
            TypeError, ValueError, IndexError: If inputs, target or mask are of the
                wrong type, shape or range; if inputs or activations are not finite; if
                nothing is fitted and the batch has fewer than 32 samples.

        Examples::

            >>> import torch
            >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
            >>> x = torch.randn(40, 3)
            >>> NIFAttribution(net.eval()).attribute(x, target=[0, 1, 2, 3] * 10).shape
            torch.Size([40, 3])
        """
        samples = _format_inputs(inputs)
        extra = format_additional_forward_args(additional_forward_args) or ()
        size = _batch_size(internal_batch_size)
        basis = self._basis(
            samples, extra, background, feature_mask, size, show_progress
        )
        question = self._question(basis, samples, extra, target, layer, size)
        steps = basis.flow.steps(question.query)
        with progress(
            desc="NIF attribution", total=steps, disable=not show_progress
        ) as bar:
            sums = question.answer(basis.flow, bar.update)
        return format_output(is_tuple(inputs), _like(samples, sums))

    def attribute_future(self, *args: object, **kwargs: object) -> NoReturn:
        """Not offered: there is nothing to wait for in a local model."""
        raise NotImplementedError(
            "NIFAttribution has no `attribute_future`: call `attribute`."
        )

    def population_graph(
        self,
        target: TargetType = None,
        *,
        additional_forward_args: object = None,
        background: Background | None = None,
        feature_mask: FeatureMask | None = None,
        layer: str | nn.Module | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
        significance: bool | int = False,
    ) -> FlowGraph:
        r"""
        The flow graph of the population, whose links carry mutual information.

        Args:

            target (int, tuple or Tensor, optional): Keep only what flows into this node
                of the output (or of ``layer``).
                Default: None (all nodes)
            additional_forward_args (any, optional): See :meth:`fit`.
                Default: None
            background (Tensor, tuple of Tensor, or iterable, optional): A background
                for this call alone; see :meth:`attribute`.
                Default: None
            feature_mask (Tensor or tuple of Tensor, optional): See :meth:`attribute`;
                the nodes of an input are then its groups, by ascending number.
                Default: None
            layer (str or Module, optional): End the graph at this layer, which takes
                the place of the output: what does not lead to it is left out.
                Default: None (the output)
            internal_batch_size (int, optional): Samples in a forward pass.
                Default: 64
            show_progress (bool, optional): Draw a progress bar.
                Default: False
            significance (bool or int, optional): Give the links p-values against
                independence of their nodes, which takes seconds; see
                :func:`~captum_nif.link_pvalues`, whose number of permutations an int
                stands for, and :meth:`FlowGraph.significant` for what to do with them.
                The background must hold independent samples.
                Default: False

        Returns:

            **FlowGraph**: links in nats (in signed correlations where ``scale`` says
            so), float64. Weights are not normalized: ``graph.normalized(...)`` does
            that.

        Raises:

            RuntimeError: If nothing is fitted, or the model changed since :meth:`fit`.
            TypeError, ValueError, IndexError: See :meth:`attribute`.

        Examples::

            >>> import torch
            >>> from captum_nif import NIFAttribution
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3)).eval()
            >>> nif = NIFAttribution(net).fit(torch.randn(100, 2))
            >>> nif.population_graph().links[0].weight.shape
            torch.Size([2, 3])
        """
        extra = format_additional_forward_args(additional_forward_args) or ()
        size = _batch_size(internal_batch_size)
        basis = self._background(background, extra, feature_mask, size, show_progress)
        end = self._method.end(basis, layer)
        node = None if target is None else int(target_nodes(target, end, 1)[0])
        graph = _population_graph(basis.flow, end, node, show_progress)
        if significance is False:
            return graph
        draws = None if significance is True else significance
        return _tested(basis.flow, graph, draws, show_progress)

    def sample_graphs(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        *,
        additional_forward_args: object = None,
        background: Background | None = None,
        feature_mask: FeatureMask | None = None,
        layer: str | nn.Module | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> list[FlowGraph]:
        r"""
        The flow graph of each sample, whose links carry pointwise mutual information.

        Args:

            inputs (Tensor or tuple of Tensor): The samples, along axis 0.
            target (int, tuple, Tensor or list, optional): Keep only what flows into
                this node of the output (or of ``layer``); forms as in
                :meth:`attribute`.
                Default: None (all nodes)
            additional_forward_args (any, optional): See :meth:`fit`.
                Default: None
            background (Tensor, tuple of Tensor, or iterable, optional): See
                :meth:`attribute`.
                Default: None
            feature_mask (Tensor or tuple of Tensor, optional): See
                :meth:`population_graph`.
                Default: None
            layer (str or Module, optional): See :meth:`population_graph`.
                Default: None (the output)
            internal_batch_size (int, optional): Samples in a forward pass.
                Default: 64
            show_progress (bool, optional): Draw a progress bar.
                Default: False

        Returns:

            **list of FlowGraph**, one per sample, in the units of
            :meth:`population_graph`.

        Raises:

            RuntimeError: If the model changed since :meth:`fit`.
            TypeError, ValueError, IndexError: See :meth:`attribute`.

        Examples::

            >>> import torch
            >>> from captum_nif import NIFAttribution
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3)).eval()
            >>> nif = NIFAttribution(net).fit(torch.randn(100, 2))
            >>> graph = nif.sample_graphs(torch.randn(4, 2))[0]
            >>> graph.links[0].weight.shape
            torch.Size([2, 3])
        """
        samples = _format_inputs(inputs)
        extra = format_additional_forward_args(additional_forward_args) or ()
        size = _batch_size(internal_batch_size)
        basis = self._basis(
            samples, extra, background, feature_mask, size, show_progress
        )
        end = self._method.end(basis, layer)
        nodes = None if target is None else target_nodes(target, end, len(samples[0]))
        query = self._method.query(basis, samples, extra, size)
        flow = basis.flow
        with progress(
            desc="NIF graphs", total=flow.steps(query), disable=not show_progress
        ) as bar:
            graphs: list[FlowGraph] = flow.instance_graphs(
                query, end.name, nodes, bar.update
            )
            return graphs

    @overload
    def flow(
        self,
        inputs: None = None,
        target: TargetType = None,
        *,
        significance: bool | int = False,
        **options: Any,
    ) -> FlowGraph: ...

    @overload
    def flow(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        *,
        significance: bool | int = False,
        **options: Any,
    ) -> list[FlowGraph]: ...

    def flow(
        self,
        inputs: Tensor | tuple[Tensor, ...] | None = None,
        target: TargetType = None,
        *,
        significance: bool | int = False,
        **options: Any,
    ) -> FlowGraph | list[FlowGraph]:
        r"""
        Short for :meth:`population_graph`, or with ``inputs`` :meth:`sample_graphs`.

        Args:

            inputs (Tensor or tuple of Tensor, optional): Samples to give graphs of.
                Default: None (the population)
            target (int, tuple, Tensor or list, optional): See there.
                Default: None (all nodes)
            significance (bool or int, optional): See :meth:`population_graph`.
                Default: False
            **options (any): See there.

        Returns:

            **FlowGraph** or **list of FlowGraph**.

        Raises:

            RuntimeError, TypeError, ValueError, IndexError: See there.

        Examples::

            >>> import torch
            >>> from captum_nif import NIFAttribution
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3)).eval()
            >>> nif = NIFAttribution(net).fit(torch.randn(100, 2))
            >>> nif.flow() == nif.population_graph(), len(nif.flow(torch.randn(4, 2)))
            (True, 4)
        """
        if inputs is None:
            return self.population_graph(target, significance=significance, **options)
        if significance is not False:
            raise ValueError(
                "`significance` is of the population's links, not of single samples: "
                "call `population_graph(significance=True)`."
            )
        return self.sample_graphs(inputs, target, **options)

    def attribution_matrix(
        self,
        *,
        classes: TargetType = None,
        feature_mask: FeatureMask | None = None,
        layer: str | nn.Module | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        r"""
        The attribution matrix A of the population: Eq. 4 on the population graph.

        Args:

            classes (Tensor or list of int, optional): The class, or node of ``layer``,
                that each sample of the background belongs to, [N]. Column c is then
                Eq. 4 over links that are averaged over the graphs of the samples of
                class c.
                Default: None (over links of the whole population)
            feature_mask (Tensor or tuple of Tensor, optional): See :meth:`attribute`;
                rows are then groups.
                Default: None
            layer (str or Module, optional): The layer whose nodes are explained.
                Default: None (the output)
            show_progress (bool, optional): Draw a progress bar.
                Default: False

        Returns:

            **Tensor** of shape [n_features, C], float64; several inputs follow each
            other, each in row-major order.

        Raises:

            RuntimeError: If nothing is fitted, or the model changed since.
            TypeError, ValueError, IndexError: If ``classes`` does not give every sample
                a class and every class a sample.

        Examples::

            >>> import torch
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3)).eval()
            >>> NIFAttribution(net).fit(torch.randn(100, 2)).attribution_matrix().shape
            torch.Size([2, 3])
        """
        basis = self._background(None, (), feature_mask, BATCH_SIZE, show_progress)
        end = self._method.end(basis, layer)
        by = self._normalization(basis.flow)
        if classes is not None:
            nodes = target_nodes(classes, end, basis.population.size)
            check_each_occurs(nodes, end)
            query = self._method.own_query(basis)
            with progress(
                desc="NIF class averages",
                total=len(basis.flow.links),
                disable=not show_progress,
            ) as bar:
                sums = basis.flow.class_attributions(
                    query, nodes, end.name, by, bar.update
                )
            return torch.cat(list(sums.values()), dim=1).mT
        with progress(
            desc="NIF attribution matrix",
            total=len(basis.flow.links),
            disable=not show_progress,
        ) as bar:
            matrix: Tensor = basis.flow.attribution_matrix(end.name, by, bar.update)
            return matrix

    def standard_error(
        self,
        inputs: TensorOrTupleOfTensorsGeneric | None = None,
        target: TargetType = None,
        *,
        additional_forward_args: object = None,
        background: Background | None = None,
        feature_mask: FeatureMask | None = None,
        layer: str | nn.Module | None = None,
        internal_batch_size: int | None = None,
        groups: int = GROUPS,
        seed: int = 0,
        show_progress: bool = False,
    ) -> TensorOrTupleOfTensorsGeneric:
        r"""
        How much attributions would scatter with other backgrounds of the same size.

        The standard error of each attribution, by a jackknife that leaves out each of
        some groups of the background in turn and explains the samples again. It tells
        of noise alone, not of a background that is not the data the model sees. With
        nearest neighbors and 10 groups it comes out 10 to 25 % too large on average,
        and a single one is off by a quarter to two fifths of itself
        (``python -m benchmarks.uncertainty``). ``plot_saliency`` and
        ``plot_attribution_matrix`` draw it.

        With ``sampling="independent"`` the noise of the draws counts as well: with each
        group of samples one of draws is left out, and the others change as little as
        they can. With ``preset="faithful"`` it comes out about right. There the draws
        may make up most of the noise, and ``draws`` lessens it. With nearest neighbors
        on independent inputs it comes out far too large.

        Args:

            inputs (Tensor or tuple of Tensor): The samples explained. Without them this
                is :meth:`matrix_standard_error`.
            target (int, tuple, Tensor or list, optional): See :meth:`attribute`.
                Default: None
            additional_forward_args (any, optional): See :meth:`fit`.
                Default: None
            background (Tensor, tuple of Tensor, or iterable, optional): See
                :meth:`attribute`.
                Default: None
            feature_mask (Tensor or tuple of Tensor, optional): See :meth:`attribute`.
                Default: None
            layer (str or Module, optional): See :meth:`attribute`.
                Default: None (the output)
            internal_batch_size (int, optional): See :meth:`attribute`.
                Default: 64
            groups (int, optional): Into how many groups the background is split; the
                attribution is computed as many times.
                Default: 10
            seed (int, optional): Of the split. No global random state is used.
                Default: 0
            show_progress (bool, optional): Draw a progress bar.
                Default: False

        Returns:

            **Tensor** or **tuple of Tensor**: standard errors, as :meth:`attribute`
            gives attributions, in the same units.

        Raises:

            RuntimeError: If there is no background, or the model changed since.
            TypeError, ValueError, IndexError: See :meth:`attribute`; if there are fewer
                samples than groups, or too few without one of them.

        Examples::

            >>> import torch
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3)).eval()
            >>> nif = NIFAttribution(net).fit(torch.randn(100, 2))
            >>> nif.standard_error(torch.randn(4, 2), target=1).shape
            torch.Size([4, 2])
        """
        if inputs is None:
            if target is not None:
                raise ValueError(
                    "`target` needs `inputs`; without them all nodes are explained."
                )
            return self.matrix_standard_error(  # type: ignore[return-value]  # no inputs
                additional_forward_args=additional_forward_args,
                background=background,
                feature_mask=feature_mask,
                layer=layer,
                groups=groups,
                seed=seed,
                show_progress=show_progress,
            )
        extra = format_additional_forward_args(additional_forward_args) or ()
        size = _batch_size(internal_batch_size)
        samples = _format_inputs(inputs)
        if background is None and not self.is_fitted:
            raise RuntimeError(_NOTHING_FITTED)
        basis = self._basis(samples, extra, background, feature_mask, size, False)
        question = self._question(basis, samples, extra, target, layer, size)
        with progress(
            desc="NIF standard errors", total=groups, disable=not show_progress
        ) as bar:
            errors = self._method.standard_errors(
                basis, question, groups, seed, bar.update
            )
        return format_output(is_tuple(inputs), _like(samples, errors))

    def matrix_standard_error(
        self,
        *,
        additional_forward_args: object = None,
        background: Background | None = None,
        feature_mask: FeatureMask | None = None,
        layer: str | nn.Module | None = None,
        groups: int = GROUPS,
        seed: int = 0,
        show_progress: bool = False,
    ) -> Tensor:
        r"""
        Standard errors of :meth:`attribution_matrix`; see :meth:`standard_error`.

        Args:

            additional_forward_args (any, optional): See :meth:`fit`.
                Default: None
            background (Tensor, tuple of Tensor, or iterable, optional): See
                :meth:`attribute`.
                Default: None
            feature_mask (Tensor or tuple of Tensor, optional): See :meth:`attribute`.
                Default: None
            layer (str or Module, optional): See :meth:`attribution_matrix`.
                Default: None (the output)
            groups (int, optional): See :meth:`standard_error`.
                Default: 10
            seed (int, optional): See :meth:`standard_error`.
                Default: 0
            show_progress (bool, optional): Draw a progress bar.
                Default: False

        Returns:

            **Tensor** of shape [n_features, C], float64.

        Raises:

            RuntimeError: If there is no background, or the model changed since.
            ValueError: If there are fewer samples than groups, or too few without one
                of them.

        Examples::

            >>> import torch
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3)).eval()
            >>> nif = NIFAttribution(net).fit(torch.randn(100, 2))
            >>> nif.matrix_standard_error().shape
            torch.Size([2, 3])
        """
        extra = format_additional_forward_args(additional_forward_args) or ()
        basis = self._background(background, extra, feature_mask, BATCH_SIZE, False)
        end = self._method.end(basis, layer)
        by = self._normalization(basis.flow)
        with progress(
            desc="NIF standard errors", total=groups, disable=not show_progress
        ) as bar:
            return self._method.matrix_standard_error(
                basis, end.name, by, groups, seed, bar.update
            )

    def unit_flow(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        *,
        additional_forward_args: object = None,
        background: Background | None = None,
        layer: str | nn.Module | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> dict[str, Tensor]:
        r"""
        How much flows to the target through each unit of every layer.

        .. math:: \phi_u = \sum_{\text{places } p} (v_{up} - \bar v_{up}) \, w_{up}

        with v the value of unit u, its mean over the background, and w the slope of the
        target averaged over the sample's hybrids: what the target would lose, to first
        order, if the unit had its mean value. With ``preset="faithful"``.

        Args:

            inputs (Tensor or tuple of Tensor): The samples, along axis 0.
            target (int, tuple, Tensor or list, optional): See :meth:`attribute`.
                Default: None
            additional_forward_args (any, optional): See :meth:`fit`.
                Default: None
            background (Tensor, tuple of Tensor, or iterable, optional): See
                :meth:`attribute`.
                Default: None
            layer (str or Module, optional): See :meth:`attribute`.
                Default: None (the output)
            internal_batch_size (int, optional): See :meth:`attribute`.
                Default: 64
            show_progress (bool, optional): Draw a progress bar.
                Default: False

        Returns:

            **dict of str to Tensor**: by the name of each hidden layer the flow through
            its units (neurons or channels), float64, [S, units], in the units of the
            target.

        Raises:

            ValueError: If the method has another ``sampling`` than ``"hybrid"``.
            RuntimeError, TypeError, IndexError: See :meth:`attribute`.

        Examples::

            >>> import torch
            >>> from captum_nif import NIFAttribution
            >>> net = torch.nn.Sequential(
            ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
            ... ).eval()
            >>> nif = NIFAttribution(net, preset="faithful").fit(torch.randn(200, 4))
            >>> nif.unit_flow(torch.randn(5, 4), target=1)["0"].shape
            torch.Size([5, 8])
        """
        samples = _format_inputs(inputs)
        extra = format_additional_forward_args(additional_forward_args) or ()
        size = _batch_size(internal_batch_size)
        basis = self._basis(samples, extra, background, None, size, show_progress)
        flow = _hybrid(basis, "unit_flow")
        end = self._method.end(basis, layer)
        nodes = target_nodes(target, end, len(samples[0]))
        query = self._method.query(basis, samples, extra, size)
        with progress(
            desc="NIF unit flow", total=flow.steps(query), disable=not show_progress
        ) as bar:
            return flow.unit_flow(query, end.name, nodes, bar.update)

    def unit_importance(
        self,
        inputs: Tensor | tuple[Tensor, ...] | None = None,
        *,
        additional_forward_args: object = None,
        background: Background | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> dict[str, Tensor]:
        r"""
        How much the prediction changes if a unit is taken out, in nats.

        .. math:: \frac1S \sum_s \mathrm{KL}\bigl(\operatorname{softmax} o_s \,\|\,
            \operatorname{softmax}(o_s - d_{su})\bigr)

        with :math:`d_{su}` the flow through unit u to the outputs :math:`o_s` (logits)
        of sample s; see :meth:`unit_flow`. Of many classes the ten likeliest of each
        sample count; a single output is the logit of two classes. An average over
        samples needs fewer hybrids: a quarter of ``hybrids``, four at least. With
        ``preset="faithful"``.

        Args:

            inputs (Tensor or tuple of Tensor, optional): The samples.
                Default: None (those kept of the background, at most 1024)
            additional_forward_args (any, optional): See :meth:`fit`.
                Default: None
            background (Tensor, tuple of Tensor, or iterable, optional): See
                :meth:`attribute`.
                Default: None
            internal_batch_size (int, optional): See :meth:`attribute`.
                Default: 64
            show_progress (bool, optional): Draw a progress bar.
                Default: False

        Returns:

            **dict of str to Tensor**: by the name of each hidden layer the importance
            of its units (neurons or channels), float64, [units], in nats.

        Raises:

            ValueError: If the method has another ``sampling`` than ``"hybrid"``.
            RuntimeError, TypeError: See :meth:`attribute`.

        Examples::

            >>> import torch
            >>> from captum_nif import NIFAttribution
            >>> net = torch.nn.Sequential(
            ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
            ... ).eval()
            >>> nif = NIFAttribution(net, preset="faithful").fit(torch.randn(200, 4))
            >>> nif.unit_importance()["0"].shape
            torch.Size([8])
        """
        extra = format_additional_forward_args(additional_forward_args) or ()
        size = _batch_size(internal_batch_size)
        if inputs is None:
            basis = self._background(background, extra, None, size, show_progress)
            flow = _hybrid(basis, "unit_importance")
            query = flow.own_query
        else:
            samples = _format_inputs(inputs)
            basis = self._basis(samples, extra, background, None, size, show_progress)
            flow = _hybrid(basis, "unit_importance")
            query = self._method.query(basis, samples, extra, size)
        with progress(
            desc="NIF unit importance",
            total=flow.steps(query),
            disable=not show_progress,
        ) as bar:
            return flow.unit_importance(query, bar.update)

    # --- what a call stands on -----------------------------------------------------

    @property
    def _model(self) -> nn.Module:
        return cast(nn.Module, self.forward_func)

    @property
    def _method(self) -> Method:
        kind = HybridSetup if self.sampling == "hybrid" else Setup
        return kind(self._model, self._options)

    def _basis(
        self,
        samples: tuple[Tensor, ...],
        extra: tuple[Any, ...],
        background: Background | None,
        feature_mask: FeatureMask | None,
        size: int,
        bar: bool,
    ) -> AnyBasis:
        """What samples are compared with: a background, or else each other."""
        if background is None and self._fitted is None:
            return self._method.of_batch(samples, extra, feature_mask, size)
        if background is None:
            warn_if_training(self._method.model)
        elif any(isinstance(arg, Tensor) and arg.dim() for arg in extra):
            raise ValueError(
                "`additional_forward_args` holds a tensor, which follows the samples "
                "that are explained and not those of `background`: call "
                "`fit(background, additional_forward_args)` first."
            )
        basis = self._background(background, extra, feature_mask, size, bar)
        check_samples(samples, basis.population)
        return basis

    def _background(
        self,
        background: Background | None,
        extra: tuple[Any, ...],
        feature_mask: FeatureMask | None,
        size: int,
        bar: bool,
    ) -> AnyBasis:
        """The background given for a call, or else the one fitted."""
        method = self._method
        if background is not None:
            return method.of_background(background, extra, feature_mask, size, bar)
        if self._fitted is None:
            raise RuntimeError(_NOTHING_FITTED)
        basis, model = self._fitted
        if fingerprint(method.model) != model:
            raise RuntimeError(
                "The model's weights, buffers, modules (with their options and hooks), "
                "device, dtype or training mode changed since `fit`: call "
                "`fit(background)` again."
            )
        if feature_mask is None:
            return basis
        return method.regrouped(basis, feature_mask)

    def _question(
        self,
        basis: AnyBasis,
        samples: tuple[Tensor, ...],
        extra: tuple[Any, ...],
        target: TargetType,
        layer: str | nn.Module | None,
        size: int,
    ) -> Question:
        """What a call asks of a flow, if samples and target allow it."""
        end = self._method.end(basis, layer)
        nodes = target_nodes(target, end, len(samples[0]))
        check_reached(basis.population.structure, samples)
        query = self._method.query(basis, samples, extra, size)
        return Question(query, end.name, nodes, self._normalization(basis.flow))

    def _normalization(self, flow: AnyFlow) -> Normalization | None:
        if self.normalize == "auto":
            return None if flow.is_chain else "node"
        return self.normalize


def _hybrid(basis: AnyBasis, method: str) -> HybridFlow:
    """The flow of a basis, where it is one over hybrids."""
    if not isinstance(basis.flow, HybridFlow):
        raise ValueError(
            f"`{method}` needs the slopes of a sample's own population: make the "
            "attribution with preset='faithful' (or sampling='hybrid')."
        )
    return basis.flow


def _format_inputs(inputs: object) -> tuple[Tensor, ...]:
    samples = inputs if isinstance(inputs, tuple) else (inputs,)
    if not all(isinstance(x, Tensor) for x in samples):
        raise TypeError(
            "`inputs` must be a tensor, or for several inputs a tuple of tensors; got "
            f"{', '.join(type(x).__name__ for x in samples)}."
        )
    check_sizes(samples, "the samples")
    return tuple(x.detach() for x in samples)


def _batch_size(internal_batch_size: int | None) -> int:
    if internal_batch_size is None:
        return BATCH_SIZE
    check_positive("internal_batch_size", internal_batch_size)
    return internal_batch_size


def _dtype_for(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


def _like(samples: tuple[Tensor, ...], found: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Results in the shapes and dtypes of the samples."""
    return tuple(
        values.reshape(x.shape).to(_dtype_for(x)).contiguous()
        for values, x in zip(found, samples, strict=True)
    )


def _tested(flow: AnyFlow, graph: FlowGraph, draws: int | None, bar: bool) -> FlowGraph:
    with progress(
        desc="NIF p-values", total=len(graph.links), disable=not bar
    ) as drawn:
        return flow.with_pvalues(graph, draws, drawn.update)


def _population_graph(
    flow: AnyFlow, end: Layer, node: int | None, bar: bool
) -> FlowGraph:
    with progress(
        desc="NIF population graph", total=len(flow.links), disable=not bar
    ) as drawn:
        return flow.population_graph(end.name, node, drawn.update)
