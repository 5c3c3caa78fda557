"""Decomposition and channel pruning in one training, as a scheme."""

import keras

from tfcompress.core.budget import parse_budget
from tfcompress.core.scheme import SearchingScheme
from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.schemes.decomposition.factorize import Factorize
from tfcompress.schemes.decomposition.search import RankSearch
from tfcompress.schemes.decomposition.search_space import (
    RankSpace,
    equal_scores,
    why_kept,
)
from tfcompress.schemes.decomposition.selection import lowest_cost
from tfcompress.schemes.decomposition.width_model import WidthModel

MEASURED = "measured"


@keras.saving.register_keras_serializable(package="tfcompress.schemes")
class Decomposition(SearchingScheme):
    """Low rank and fewer channels in one training (EDP, TNNLS 2021).

    Every convolution and dense kernel becomes a basis times coefficients; a group
    lasso on the rows and columns of the coefficients lowers the rank and takes
    channels, together with what is tied to them through additions. In the first part
    of a `fit` the cost comes down to the budget step by step: the lasso shrinks what
    loses the least energy, measured on training data, for what it saves. Then what goes
    is decided, and the rest of the `fit`, or further ones, fine-tune what stays.
    `tfc.finalize` returns a plain, smaller Keras model: a layer becomes two where that
    is clearly cheaper, and is merged again where it is not.

    Args:
        macs: the budget: a count of multiply-accumulates, or a share of the model's as
            text, such as "1/2" or "0.45". The finished model takes at most that, and at
            least 98 % of it wherever single channels allow that.
        params: a budget of parameters in place of one of MACs.
        penalty: the strength of the group lasso in place of a budget, on the paper's
            sigmoid ramp; at 1 the mean group would be gone at the end of the search if
            nothing held it.
        start: of the factorization: "svd" for trained models, turned to the principal
            axes of the layer's outputs when `fit` begins; or "identity".
        batch_norm: where the batch normalization behind a layer goes: "behind", as it
            is, where its gamma and beta shrink together with the coefficients; or
            "between" basis and coefficients, see `tfcompress.Factorize`.
        margin: two layers replace one only where they cost less than `margin` times as
            much: they take more time than their MACs say. "measured" times both in
            LiteRT, on the machine that trains, and keeps the faster.
        round_to: layers keep a multiple of so many channels.
        search_fraction: share of the first `fit` that shrinks, in (0, 1].
        weight_decay, overrides: see `Scheme`. The decay is on the basis: without it,
            the basis would grow while the coefficients shrink.

    Example:

    >>> student = tfc.compress(model, tfc.Decomposition(macs="1/2"))
    """

    treatment = Factorize

    def __init__(
        self,
        macs=None,
        params=None,
        penalty=None,
        start="svd",
        batch_norm="behind",
        margin=0.7,
        round_to=1,
        search_fraction=0.5,
        weight_decay=1e-4,
        overrides=None,
    ):
        super().__init__(search_fraction, overrides, weight_decay)
        if sum(x is not None for x in (macs, params, penalty)) != 1:
            raise ValueError(
                "One of `macs` and `params`, a budget, and `penalty` is expected. "
                f"Received: macs={macs!r}, params={params!r}, penalty={penalty!r}."
            )
        if penalty is not None and not 0 <= penalty < float("inf"):
            raise ValueError(
                f"`penalty` is a finite number >= 0. Received: penalty={penalty}."
            )
        self.unit = "macs" if params is None else "params"
        self.budget = macs if params is None else params
        if self.budget is not None:
            parse_budget(self.budget, 1.0, self.unit)
        if margin != MEASURED and not 0 < margin <= 1:
            raise ValueError(
                f"`margin` is in (0, 1] or '{MEASURED}'. Received: margin={margin!r}."
            )
        if not isinstance(round_to, int) or round_to < 1:
            raise ValueError(
                f"`round_to` is a positive integer. Received: round_to={round_to!r}."
            )
        self.macs = macs
        self.params = params
        self.penalty = penalty
        self.start = start
        self.batch_norm = batch_norm
        self.margin = margin
        self.round_to = round_to
        self.config = Factorize(start, batch_norm)

    def config_for(self, layer, place):
        return self.config

    def check(self, model, plan):
        if self.budget is None:
            return
        channels = Channels(Graph(model))
        factorized = [row.name for row in plan.treated()]
        width_model = WidthModel(
            model, channels, self.unit, factorized, self._least_saving()
        )
        scores = equal_scores(width_model, channels)
        whole = width_model.whole()
        lowest = lowest_cost(width_model, scores, self.round_to)
        budget = parse_budget(self.budget, whole, self.unit)
        if not lowest <= budget <= whole:
            raise ValueError(
                f"A budget of {self.unit} from {lowest:.4g} to {whole:.4g}, 1/"
                f"{whole / lowest:.1f} to 1/1 of the model's, can be met. Received: "
                f"{self.unit}={self.budget!r}, {budget:.4g}."
            )

    def notes(self, model, plan):
        channels = Channels(Graph(model))
        factorized = {row.name for row in plan.treated()}
        notes = {}
        for group in channels.group_sets:
            why = why_kept(group, factorized)
            for name in factorized.intersection(group.producers):
                tied = [other for other in group.producers if other != name]
                with_others = f" with those of {', '.join(tied)}" if tied else ""
                kept = f"channels stay: {why}"
                notes.setdefault(name, kept if why else f"channels may go{with_others}")
        return notes

    def connect(self, student):
        student.rank_space = RankSpace(student, self.unit, self._least_saving())
        student.rank_space.connect()

    def callbacks(self, student, recalibrate):
        space, budget = student.rank_space, self.budget
        if budget is not None:
            budget = parse_budget(budget, space.width_model.whole(), self.unit)
        return [
            RankSearch(
                space,
                recalibrate,
                self.search_fraction,
                self.round_to,
                measure=self.margin == MEASURED,
                budget=budget,
                penalty=self.penalty,
            )
        ]

    def _least_saving(self):
        return 1.0 if self.margin == MEASURED else self.margin

    def get_config(self):
        return {
            **super().get_config(),
            "macs": self.macs,
            "params": self.params,
            "penalty": self.penalty,
            "start": self.start,
            "batch_norm": self.batch_norm,
            "margin": self.margin,
            "round_to": self.round_to,
        }
