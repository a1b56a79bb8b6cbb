"""A planner as JSON: all that was measured, so that it can be asked again without measuring anything."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from torch import nn

from prunekit.errors import MeasurementError
from prunekit.graph import Groups
from prunekit.measure.operation import frame_of
from prunekit.plan.levers import Lever, Levers
from prunekit.plan.losses import LossCurve
from prunekit.targeting.costs import Computation, costs_of
from prunekit.targeting.identity import model_digest
from prunekit.targeting.latency_model import LatencyModel, WholeModel, fit_latency_model
from prunekit.targeting.operator_times import OperatorTimes, operation_from, plain_operation
from prunekit.targeting.planner import Planner
from prunekit.targeting.rig import Rig
from prunekit.types import Scores

SCHEMA = "prunekit.target/4"


def stored_planner(planner: Planner) -> dict[str, Any]:
    """What a planner knows beside its model and the times of operations, as plain JSON types."""
    costs, latency = planner.costs, planner.costs.latency
    computed = dict.fromkeys(operation for model in latency.models for operation in model.operations)
    every = dict.fromkeys((*computed, *map(frame_of, computed)))
    known = {operation: place for place, operation in enumerate(every)}
    return {
        "schema": SCHEMA,
        "target": asdict(planner.rig.target),
        "times": latency.times.target,
        "fingerprint": planner.groups.fingerprint,
        "model": model_digest(planner.model, planner.groups),
        "criterion": planner.criterion,
        "scores": None
        if planner.scores is None
        else {name: values.tolist() for name, values in planner.scores.items()},
        "levers": [_stored_lever(lever) for lever in costs.levers],
        "curves": [
            {
                "lever": curve.lever,
                "losses": curve.losses.tolist(),
                "amounts": curve.amounts.tolist(),
                "source": curve.source,
                "power": curve.power,
            }
            for curve in planner.curves
        ],
        "latency": {
            "models": [
                {
                    "name": model.name,
                    "ms": model.ms,
                    "operations": [known[each] for each in model.operations],
                    "parts": [[known[each], *part] for each, part in model.parts.items()],
                }
                for model in latency.models
            ],
            "operations": [
                [plain_operation(operation), latency.times.ms.get(operation)] for operation in known
            ],
        },
        "dense_ms": costs.dense_ms,
        "seconds": dict(costs.seconds),
    }


def restore_planner(
    content: dict[str, Any], model: nn.Module, groups: Groups, rig: Rig, times: OperatorTimes
) -> Planner:
    """The planner that :func:`stored_planner` wrote down; nothing is timed.

    Law: it predicts for every plan what the stored one predicts, to the bit where NumPy and SciPy are the
    same, and every allocation chooses by the same scores.

    Args:
        content: of :func:`stored_planner`.
        model: the model that it was measured on, with the weights that it had then.
        groups: of the model; those of the levers are prunable.
        rig: of the same target.
        times: of operations, those that were measured then among them.

    Raises:
        MeasurementError: it is of another schema, model, state of the model, target or machine.
    """
    made_for = {
        "schema": (content.get("schema"), SCHEMA),
        "model": (content.get("fingerprint"), groups.fingerprint),
        "state of the model": (content.get("model"), model_digest(model, groups)),
        "target": (content.get("target"), asdict(rig.target)),
        "target with its machine": (content.get("times"), times.target),
    }
    for what, (given, wanted) in made_for.items():
        if given != wanted:
            raise MeasurementError(
                f"What was measured belongs to another {what} ({given})",
                expected=f"{wanted}",
                where=str(rig.target),
                remedy="Measure again: remove what was stored",
            )
    by_name = {group.name: group for group in groups}
    named = {item["group"] for item in content["levers"]}
    levers = Levers(
        [group for group in groups if group.name in named],
        [
            Lever(
                item["name"],
                by_name[item["group"]],
                np.array(item["kept"], dtype=np.int64),
                np.array(item["order"], dtype=np.int64),
                item["unit"],
            )
            for item in content["levers"]
        ],
    )
    latency = _latency(content["latency"], times)
    costs = costs_of(
        Computation.of(levers, groups, rig.batch),
        latency,
        dense_ms=content["dense_ms"],
        seconds=content["seconds"],
    )
    curves = tuple(
        LossCurve(
            item["lever"],
            np.array(item["losses"], dtype=np.float64),
            np.array(item["amounts"], dtype=np.float64),
            item["source"],
            item["power"],
        )
        for item in content["curves"]
    )
    return Planner(model, groups, costs, curves, rig, content["criterion"], _scores(content["scores"]))


def _scores(content: dict[str, list[float]] | None) -> Scores | None:
    """By group name ``[units]``; None where there were none."""
    if content is None:
        return None
    return {name: np.array(values, dtype=np.float32) for name, values in content.items()}


def _stored_lever(lever: Lever) -> dict[str, Any]:
    return {
        "name": lever.name,
        "group": lever.group.name,
        "kept": lever.kept.tolist(),
        "order": lever.order.tolist(),
        "unit": lever.unit,
    }


def _latency(content: dict[str, Any], times: OperatorTimes) -> LatencyModel:
    """Fitted again, to the same models."""
    operations = [operation_from(plain) for plain, _ in content["operations"]]
    alone = zip(operations, (ms for _, ms in content["operations"]), strict=True)
    known = replace(times, path=None, ms=times.ms | {each: ms for each, ms in alone if ms is not None})
    models = [
        WholeModel(
            tuple(operations[place] for place in item["operations"]),
            item["ms"],
            item["name"],
            {operations[place]: (count, ms) for place, count, ms in item["parts"]},
        )
        for item in content["models"]
    ]
    return fit_latency_model(known, models)
