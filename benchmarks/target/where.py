"""What is said on a page about where its figures were measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def where(environments: Sequence[dict[str, Any]]) -> list[str]:
    """The machines and packages, each with the days on which it was measured there."""
    days: dict[str, set[str]] = {}
    for each in environments:
        cpu = each["cpu"]
        versions = ", ".join(f"{name} {version}" for name, version in each["packages"].items() if version)
        said = f"{cpu['model']} ({', '.join(cpu['isa'])}), {cpu['available_cores']} shared cores; {versions}"
        days.setdefault(said, set()).add(each["date"][:10])
    return [
        f"Measured on {', '.join(sorted(when))}: {said}. 2 threads, real-time scheduling."
        for said, when in days.items()
    ]
