"""That the figures are those of the model that a user gets: remove, verify and judge once per contest."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.criteria.study import Study

import prunekit as pk

BY = "l1"
"""What chooses the units; no seed changes it on a checkpoint."""


def prove(study: Study, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per contest: the laws of the removal, its form, and its figures beside those in ``rows``.

    At the largest sparsity, for seed 0, with the groups that ``study.prove_with`` gives.
    """
    subject = study.prepare(0)
    found = []
    for contest in study.contests:
        everything = subject.groups if study.prove_with is None else study.prove_with()
        groups = everything.select(granularity=contest.granularity)
        sparsity = max(study.sparsities)
        plan = pk.allocate(
            groups, pk.score(subject.model, groups, BY), pk.Goal(kind="sparsity", remove=sparsity)
        )
        removal = pk.remove(subject.model, plan, groups)
        proof = pk.verify(subject.model, removal.model, plan, groups)
        before = next(
            row
            for row in rows
            if (row["contest"], row["criterion"], row["sparsity"]) == (contest.title, BY, sparsity)
        )
        figures = subject.judge(removal.model)
        found.append(
            {
                "contest": contest.title,
                "sparsity": sparsity,
                "passed": proof.passed,
                "form": removal.form,
                "form_error": removal.form_error,
                "figures": figures,
                "apart": {name: abs(figures[name] / before[name] - 1) for name in study.figures},
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found
