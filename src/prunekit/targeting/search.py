"""Refining a plan by trials: other plans of the same predicted cost, judged by the user's own loss."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from prunekit.errors import GoalError, UsageError
from prunekit.plan import PruningPlan
from prunekit.plan.figures import Figure, Limit
from prunekit.plan.moves import moved_back, moved_on
from prunekit.surgery import reduced_graph
from prunekit.surgery.sensitivity import loss_of
from prunekit.targeting.attempts import Reached
from prunekit.targeting.costs import Costs
from prunekit.targeting.planner import Planner
from prunekit.targeting.reach import plan_at
from prunekit.types import IntArray

TRIALS = 60
POPULATION = 16
"""Plans of a generation, at most; fewer where there are few trials."""

LEVERS_MOVED = 3
"""Levers that a plan of the first generation has moved, at most."""


@dataclass(frozen=True)
class Trial:
    """One plan that was judged.

    Attributes:
        levels: of the levers, as they were judged.
        loss: of the pruned graph.
    """

    levels: tuple[int, ...]
    loss: float


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        best: of the least loss; the first of equal ones.
        trials: all different plans that were judged, in order; the first is where the search began.
        asked: plans that were proposed, those included that came up before or could not be repaired.
    """

    best: Trial
    trials: tuple[Trial, ...]
    asked: int


@dataclass(frozen=True, eq=False)
class Refined:
    """A plan that was refined.

    Attributes:
        plan: the best one.
        searched: how it was found.
    """

    plan: PruningPlan
    searched: Searched


def refine(
    planner: Planner,
    reached: Reached,
    loss: Callable[[nn.Module], float],
    *,
    trials: int = TRIALS,
    seconds: float | None = None,
    seed: int = 0,
) -> Refined:
    """Look for a plan of less loss that is predicted to be no slower and to meet every goal that was reached.

    Every plan stays within the limits that the reached one was chosen within, as the attempts corrected them,
    or, where it is beyond one, as near as it; and takes no more milliseconds. All that is predicted by the
    costs as they are known after the attempts, not measured: where they are right the new plan meets what the
    plan it began with meets.

    Args:
        planner: that reached it.
        reached: where to begin.
        loss: of a model on calibration data, the same every time; never on test data. It is given pruned
            graphs, which take the inputs that the model was traced with.
        trials: plans to propose, at least 1; the first is the plan that was reached.
        seconds: after which no further plan is proposed; with it the result depends on the machine.
        seed: of what is proposed.

    Raises:
        UsageError: optuna is not installed.
        GoalError: no trials.
        CalibrationError: a loss that raises, or that is not one finite number; it names the plan's levels.
    """
    start = reached.attempts[-1].levels
    costs = reached.costs or planner.costs

    def judged(levels: IntArray) -> float:
        keep = costs.levers.masks(levels)
        where = f"the plan at the levels {levels.tolist()}"
        return loss_of(loss, reduced_graph(planner.model, keep, planner.groups), where)

    searched = search(
        start,
        judged,
        planner.losses,
        _limits(reached, costs, start),
        costs.sizes,
        trials=trials,
        seconds=seconds,
        seed=seed,
    )
    plan = plan_at(
        np.array(searched.best.levels, dtype=np.int64),
        costs,
        planner.groups,
        reached.goals[0],
        criterion=planner.criterion,
    )
    return Refined(plan, searched)


def _limits(reached: Reached, costs: Costs, start: IntArray) -> list[Limit]:
    """The milliseconds of the start, and every limit of the goals, as wide as the start needs it."""
    goals = [Limit(limit.figure, max(limit.most, limit.figure.at(start))) for limit in reached.limits]
    return [Limit(costs.ms, costs.ms.at(start)), *goals]


def search(
    start: IntArray,
    judged: Callable[[IntArray], float],
    losses: Figure,
    limits: Sequence[Limit],
    sizes: Sequence[int],
    *,
    trials: int = TRIALS,
    seconds: float | None = None,
    seed: int = 0,
) -> Searched:
    """An evolutionary search over levels, from ``start`` and its neighbours.

    The first generation is the start and plans with a few of its levers one level off. What a generation
    proposes is repaired before it is judged: levers move on until the limits are met, and back as far as they
    allow, by the predicted losses; levers that were proposed to differ from the start stay where they were
    put, where that is possible. No plan is judged twice.

    Args:
        start: ``[levers]``, within the limits.
        judged: the loss at some levels; the same every time.
        losses: the predicted loss, for repairs.
        limits: that every plan is kept within.
        sizes: how many levels each lever has.
        trials: plans to propose, at least 1.
        seconds: after which no further plan is proposed.
        seed: of what is proposed.

    Raises:
        UsageError: optuna is not installed.
        GoalError: no trials, or a start outside the limits.

    Source: the algorithm is NSGA-II with one objective, as optuna has it: Deb et al., 2002, A Fast and
    Elitist Multiobjective Genetic Algorithm, https://doi.org/10.1109/4235.996017. Deviation: a repaired plan
    stands for the proposed one, whose own levels are inherited.
    """
    optuna = _optuna()
    if trials < 1:
        raise GoalError(f"{trials} trials were asked for", expected="at least 1", where="trials")
    if not all(limit.is_met(start) for limit in limits):
        raise GoalError("The plan to begin with breaks a limit", expected="a plan within it", where="search")
    begin = time.monotonic()
    names = [str(place) for place in range(len(sizes))]
    ranges = {
        name: optuna.distributions.IntDistribution(0, size - 1)
        for name, size in zip(names, sizes, strict=True)
    }
    population = max(2, min(POPULATION, trials // 3))
    known: dict[tuple[int, ...], float] = {}
    with _silenced(optuna):
        sampler = optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
        study = optuna.create_study(direction="minimize", sampler=sampler)
        for levels in _first_generation(start, sizes, population, seed):
            study.enqueue_trial(dict(zip(names, levels.tolist(), strict=True)))
        asked = 0
        while asked < trials and (not asked or seconds is None or time.monotonic() - begin < seconds):
            trial = study.ask(ranges)
            asked += 1
            proposed = np.array([trial.params[name] for name in names], dtype=np.int64)
            levels = _repaired(proposed, start, losses, limits, sizes)
            if levels is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            key = tuple(levels.tolist())
            if key not in known:
                known[key] = judged(levels)
            study.tell(trial, known[key])
    found = tuple(Trial(levels, loss) for levels, loss in known.items())
    return Searched(min(found, key=lambda trial: trial.loss), found, asked)


def _first_generation(start: IntArray, sizes: Sequence[int], count: int, seed: int) -> list[IntArray]:
    """The start, and plans with one to three of its levers one level off."""
    rng = np.random.default_rng(seed)
    found = [start]
    for _ in range(count - 1):
        levels = start.copy()
        moved = rng.permutation(len(sizes))[: int(rng.integers(1, LEVERS_MOVED + 1))]
        for place in moved.tolist():
            levels[place] = np.clip(levels[place] + rng.choice([-1, 1]), 0, sizes[place] - 1)
        found.append(levels)
    return found


def _repaired(
    proposed: IntArray,
    start: IntArray,
    losses: Figure,
    limits: Sequence[Limit],
    sizes: Sequence[int],
) -> IntArray | None:
    """The plan near the proposed one that is within the limits and uses them; None where there is none."""
    if (proposed == start).all():
        return start
    held = frozenset(np.flatnonzero(proposed != start).tolist())
    levels = moved_on(losses, limits, sizes, proposed, held)
    if levels is None:
        levels = moved_on(losses, limits, sizes, proposed)
    return None if levels is None else moved_back(losses, limits, sizes, levels, held)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            "optuna is not installed", expected="optuna", remedy="pip install 'prunekit[search]'"
        ) from error
    return optuna


@contextmanager
def _silenced(optuna: Any) -> Iterator[None]:
    """Without the lines that optuna logs for every study, and as it was afterwards."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
