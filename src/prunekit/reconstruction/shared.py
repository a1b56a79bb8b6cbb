"""The second moments and factors that layers which read the same share."""

from __future__ import annotations

from torch import Tensor

from prunekit.reconstruction.moments import Gram, centred
from prunekit.reconstruction.sparsegpt import Choice, Prepared, Sweep, prepare


class Shared:
    """The second moments of what some layers read, and their factors, made when they are asked for.

    Args:
        gram: of all batches.
        choice: what goes, or None where masks are given.
        sweep: how it goes.
        centring: the inputs of some layers will be centred.

    Attributes:
        means: of the inputs, ``[groups, in]``.
    """

    def __init__(self, gram: Gram, choice: Choice | None, sweep: Sweep, centring: bool) -> None:
        self.gram, self.sweep, self._choice = gram, sweep, choice
        self._moments, self.means = gram.finish()
        if not centring:
            self._moments = gram.release().to(gram.products)
        self._ready: dict[tuple[int, bool], Prepared] = {}

    def plain(self, group: int) -> Tensor:
        """``[in, in]``, in the dtype of the products."""
        ready = self._ready.get((group, False))
        return self._moments[group].to(self.gram.products) if ready is None else ready.moment

    def prepared(self, group: int, centre: bool) -> Prepared:
        """For the sweep; of inputs less their means where they are to be centred."""
        if (group, centre) not in self._ready:
            moment = self._moments[group]
            if centre:
                moment = centred(moment, self.means[group], self.gram.count)
            ready = prepare(moment.to(self.gram.products), self._choice, self.sweep)
            self._ready[group, centre] = ready
        return self._ready[group, centre]
