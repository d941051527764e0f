"""Numbers of a search that all methods share: configurations, budget and choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxcnn import search
from jaxcnn.search import Bracket, Evaluation, Rung

TITLES = {
    "random": "random search",
    "random-2x": "random search, twice the budget",
    "halving": "successive halving",
    "hyperband": "Hyperband",
}
"""Method -> its name in figures."""


class Plan(NamedTuple):
    """Numbers of a search that all methods share."""

    max_steps: int
    min_steps: int
    eta: int

    @property
    def kwargs(self) -> dict[str, int]:
        """Return the arguments of the functions of `jaxcnn.search`."""
        return {"max_steps": self.max_steps, "eta": self.eta, "min_steps": self.min_steps}

    @property
    def brackets(self) -> tuple[Bracket, ...]:
        """Return the brackets of Hyperband."""
        return search.hyperband_brackets(**self.kwargs)

    @property
    def budget(self) -> int:
        """Return the training steps of all brackets, the budget of every method."""
        return sum(map(search.total_steps, self.brackets))

    def method_brackets(self, method: str) -> tuple[Bracket, ...]:
        """Return the brackets of a method; random search has one of a single rung."""
        if method == "hyperband":
            return self.brackets
        if method == "halving":
            n = search.num_halving_configs(self.budget, **self.kwargs)
            return (search.halving_rungs(n, **self.kwargs),)
        n = (1 + (method == "random-2x")) * self.budget // self.max_steps
        return ((Rung(n, self.max_steps),),)

    def num_configs(self, method: str) -> int:
        """Return the number of configurations of a method."""
        return sum(rungs[0].num_configs for rungs in self.method_brackets(method))

    def cost(self, method: str) -> int:
        """Return the training steps of a method, within its budget."""
        return sum(map(search.total_steps, self.method_brackets(method)))

    def search(
        self, method: str, configs: Sequence[Any], evaluate: Callable[[Any, int], float]
    ) -> list[Evaluation]:
        """Run a method on the first configurations of a sequence."""
        configs = configs[: self.num_configs(method)]
        if method in ("random", "random-2x"):
            return search.random_search(configs, evaluate, self.max_steps)
        halve = {"halving": search.successive_halving, "hyperband": search.hyperband}
        return halve[method](configs, evaluate, **self.kwargs)


def choice(evaluations: Sequence[Evaluation], max_steps: int) -> Evaluation:
    """Return the evaluation of the configuration that a method chooses.

    It has the lowest validation error of those that were trained to the end of their schedule.
    """
    return search.best([each for each in evaluations if each.num_steps == max_steps])
