"""Mask plans as files: packed masks as safetensors, everything else as JSON in the header."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from prunekit.errors import PlanError, StorageError
from prunekit.files import written_atomically
from prunekit.plan.mask_plan import SCHEMA, MaskPlan, PackedMask, packed_size

KEY = "prunekit"
"""The entry of the header that holds the JSON."""

_FIELDS = {"schema", "fingerprint", "pattern", "scope", "criterion", "asked", "masks", "digest"}


def save_mask_plan(plan: MaskPlan, path: Path | str) -> None:
    """Write a plan to one safetensors file, which is there whole or not at all.

    Each mask is a tensor of bytes under its parameter's name: one bit for each weight, and the header.

    Raises:
        StorageError: the disk or the directory refused.
    """
    arrays = {name: np.frombuffer(mask.bits, dtype=np.uint8) for name, mask in plan.masks.items()}
    text = json.dumps({**plan.content(), "digest": plan.digest}, sort_keys=True)
    try:
        with written_atomically(Path(path)) as temporary:
            save_file(arrays, temporary, metadata={KEY: text})
    except (OSError, SafetensorError) as error:
        raise StorageError(f"The mask plan could not be written: {error}", where=str(path)) from error


def load_mask_plan(path: Path | str) -> MaskPlan:
    """Read a plan back and check all of it; sizes before anything is allocated for them.

    Raises:
        PlanError: not such a file, another schema, a missing, unknown or mistyped field, sizes or digests
            that do not fit.
        StorageError: the file is missing or cannot be read.
    """
    try:
        with safe_open(path, framework="np") as file:  # type: ignore[no-untyped-call]
            return _read(file, str(path))
    except SafetensorError as error:
        raise _damaged(f"It is not a safetensors file ({error})", path) from error
    except OSError as error:
        raise StorageError(
            f"The mask plan could not be read: {error}",
            where=str(path),
            remedy="Look whether the file is there",
        ) from error


def _read(file: Any, path: str) -> MaskPlan:
    try:
        content = json.loads((file.metadata() or {}).get(KEY, "null"))
    except (ValueError, RecursionError) as error:
        raise _damaged(f"Its description is not JSON ({error})", path) from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        schema = content.get("schema") if isinstance(content, dict) else None
        raise _damaged(f"Its schema is {schema!r}", path, expected=f"'{SCHEMA}'")
    _check_fields(content, path)
    if set(file.keys()) != set(content["masks"]):
        raise _damaged("Its masks are not those that it describes", path)
    masks: dict[str, PackedMask] = {}
    for name, entry in content["masks"].items():
        found = file.get_slice(name)
        size = packed_size(tuple(entry["shape"]))
        if found.get_dtype() != "U8" or list(found.get_shape()) != [size]:
            given = f"'{name}' is {found.get_dtype()} {list(found.get_shape())}"
            raise _damaged(given, path, expected=f"{size} bytes for the shape {entry['shape']}")
        bits = file.get_tensor(name).tobytes()
        if hashlib.sha256(bits).hexdigest() != entry["digest"]:
            raise _damaged(f"The digest of '{name}' does not fit its mask", path)
        try:
            masks[name] = PackedMask(tuple(entry["shape"]), entry["kept"], bits)
        except PlanError as error:
            raise _damaged(f"'{name}': {error.given}", path, expected=error.expected) from error
    fields = {name: content[name] for name in ("fingerprint", "pattern", "scope", "criterion", "asked")}
    plan = MaskPlan(masks=masks, **fields)
    if plan.digest != content["digest"]:
        raise _damaged(
            f"Its digest is {plan.digest}", path, expected=f"{content['digest']}, as it says itself"
        )
    return plan


def _check_fields(content: dict[str, Any], path: str) -> None:
    if set(content) != _FIELDS:
        missing, unknown = sorted(_FIELDS - set(content)), sorted(set(content) - _FIELDS)
        raise _damaged(f"It lacks the fields {missing} and has the unknown fields {unknown}", path)
    texts = ("fingerprint", "pattern", "scope", "criterion", "digest")
    asked = content["asked"]
    well_typed = (
        all(isinstance(content[name], str) for name in texts)
        and isinstance(asked, int | float)
        and not isinstance(asked, bool)
        and 0 <= asked <= 1
        and isinstance(content["masks"], dict)
        and all(_is_entry(entry) for entry in content["masks"].values())
    )
    if not well_typed:
        raise _damaged("A field has a wrong type or value", path)


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"shape", "kept", "digest"}
        and isinstance(entry["shape"], list)
        and all(type(size) is int and 0 <= size < 2**48 for size in entry["shape"])
        and type(entry["kept"]) is int
        and isinstance(entry["digest"], str)
    )


def _damaged(given: str, path: Path | str, expected: str = "") -> PlanError:
    return PlanError(
        given,
        expected=expected,
        where=f"mask plan {path}",
        remedy="The file is damaged or from another version; select the weights again",
    )
