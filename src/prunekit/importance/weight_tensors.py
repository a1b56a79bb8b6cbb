"""The parameters of a model whose single weights can be masked, and how each is read as a matrix."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from prunekit.errors import SelectionError, ShapeError
from prunekit.importance.matrix import Matrix, matrix_in
from prunekit.importance.recomputed import computed_by
from prunekit.types import lies_in

MASKABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes whose values are scored and ranked; float8 has no arithmetic of its own."""


@runtime_checkable
class Masking(Protocol):
    """A parametrization that keeps the shape and sets weights to zero; the tensor stays one to be masked."""

    keep: Tensor
    packed: Tensor


@dataclass(frozen=True)
class WeightTensor:
    """One parameter whose single weights can be masked.

    Attributes:
        name: qualified name; the first of ``places``.
        places: every qualified name the parameter has; several where it is tied.
        shape: of the parameter.
        matrix: how it is read as a matrix; None where nobody has said which of its dimensions are inputs.
    """

    name: str
    places: tuple[str, ...]
    shape: tuple[int, ...]
    matrix: Matrix | None

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def module(self) -> str:
        """The module that holds it; "" for the model itself."""
        return self.name.rpartition(".")[0]

    def laid_out(self) -> Matrix:
        """How it is read as a matrix.

        Raises:
            SelectionError: which dimensions are inputs is not known.
        """
        if self.matrix is None:
            raise SelectionError(
                f"Which dimension of its shape {list(self.shape)} is the input is not known",
                where=f"weight '{self.name}'",
                remedy=f"Say so with find_weights(model, input_dims={{'{self.name}': 1}}), use the pattern "
                "'element', or leave it out with ignore=",
            )
        return self.matrix

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix.

        Raises:
            SelectionError: as in :meth:`laid_out`.
        """
        matrix = self.laid_out()
        rows = math.prod(self.shape[dim] for dim in matrix.rows)
        return rows, math.prod(self.shape[dim] for dim in matrix.columns)

    def to_matrix(self, values: Tensor) -> Tensor:
        """Bring ``values``, in the parameter's shape, into ``[rows, columns]``; a view where possible."""
        matrix = self.laid_out()
        return values.permute(*matrix.rows, *matrix.columns).reshape(self.matrix_shape)

    def from_matrix(self, values: Tensor) -> Tensor:
        """Bring ``[rows, columns]`` back into the parameter's shape."""
        matrix = self.laid_out()
        order = (*matrix.rows, *matrix.columns)
        spread = values.reshape([self.shape[dim] for dim in order])
        return spread.permute([order.index(dim) for dim in range(len(order))])


@dataclass(frozen=True)
class Weights:
    """What of a model is to be masked.

    Attributes:
        tensors: the parameters, in the order in which the model has them.
        fingerprint: of the names, ties and shapes of all parameters of the model; values take no part, and a
            model that is masked already has the fingerprint that it had before.
        left_out: weights that the choice meant and that cannot be masked, by name the reason.
    """

    tensors: tuple[WeightTensor, ...]
    fingerprint: str
    left_out: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __iter__(self) -> Iterator[WeightTensor]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def count(self) -> int:
        """Number of weights in all tensors; a tied one counts once."""
        return sum(weight.count for weight in self.tensors)


def find_weights(
    model: nn.Module,
    *,
    only: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    input_dims: Mapping[str, int] | None = None,
) -> Weights:
    """List the parameters whose single weights are to be masked.

    Rule 1: these are the float parameters with at least two dimensions longer than 1, but for embeddings (a
    looked-up row is no sum of products; an output layer tied to one is left alone with it).
    Rule 2: ``only`` narrows them to those that one of its patterns matches.
    Rule 3: an item of ``only`` that is the full name of a parameter takes that one, whatever it is.
    Rule 4: what a module computes from other parameters before each call (weight norm, spectral norm, other
    parametrizations, ``torch.nn.utils.prune``) is left out, and :attr:`Weights.left_out` says so.

    Args:
        model: any module; it is only read.
        only: one shell-style pattern or several of parameters or of modules around them.
        ignore: patterns of what to leave alone.
        input_dims: by pattern, the dimension of a parameter that is its input; known without it for linear,
            convolution, embedding, recurrent, bilinear and attention modules of torch and for transformers'
            ``Conv1D``, not for parameters in modules of one's own.

    Raises:
        SelectionError: a pattern that matches nothing, or of ``only`` nothing that can be masked; a dimension
            that a parameter does not have; a weight of a dtype that cannot be ranked.
    """
    found = list(_parameters(model))
    computed = _computed(model)
    every = [places for places, _, _ in found] + [(name,) for name in computed]
    chosen_by, left_out, dims = _patterns(only), _patterns(ignore), dict(input_dims or {})
    for pattern in (*chosen_by, *left_out, *dims):
        if not any(_matches(places, pattern) for places in every):
            raise SelectionError(
                f"The pattern '{pattern}' matches no parameter",
                expected=f"the name of a parameter or a module around one, such as '{_example(found)}'",
                where="only, ignore or input_dims",
            )
    meant = [entry for entry in found if _is_meant(entry, chosen_by)]
    known = {place for places, _, _ in found for place in places}
    names = [name for name in computed if name not in known and _is_named((name,), chosen_by)]
    reasons = {
        places[0]: f"{computed[place]} computes the module's weight from it before each call"
        for places, _, _ in meant
        for place in places
        if place in computed
    } | {name: f"{computed[name]} computes it before each call" for name in names}
    reasons = {n: reason for n, reason in reasons.items() if not any(_matches((n,), p) for p in left_out)}
    _check_only(chosen_by, meant, reasons)
    tensors = tuple(
        WeightTensor(places[0], places, _shape(places, parameter), _matrix(places, parameter, owners, dims))
        for places, parameter, owners in meant
        if not any(_matches(places, pattern) for pattern in left_out) and places[0] not in reasons
    )
    return Weights(tensors, _fingerprint(found), reasons)


def every_parameter(model: nn.Module) -> Weights:
    """Every parameter with float weights, whether it is one that :func:`find_weights` would choose or not.

    Raises:
        SelectionError: a parameter that has no shape yet.
    """
    found = list(_parameters(model))
    tensors = tuple(
        WeightTensor(places[0], places, tuple(parameter.shape), _matrix(places, parameter, owners, {}))
        for places, parameter, owners in found
        if parameter.is_floating_point() and parameter.numel()
    )
    return Weights(tensors, _fingerprint(found))


def read_weight(model: nn.Module, weight: WeightTensor) -> Tensor:
    """The parameter's values as the model uses them, without gradient history.

    Raises:
        ShapeError: the model has no such parameter, or it has another shape.
    """
    value: Any = model
    for part in weight.name.split("."):
        value = getattr(value, part, None)
    if not isinstance(value, Tensor) or tuple(value.shape) != weight.shape:
        given = f"the shape {list(value.shape)}" if isinstance(value, Tensor) else "no such parameter"
        raise ShapeError(
            f"The model has {given}",
            expected=f"a parameter of the shape {list(weight.shape)}",
            where=f"weight '{weight.name}'",
            remedy="These weights were found on another model; call find_weights() on this one",
        )
    return value.detach()


def stored_parameter(model: nn.Module, weight: WeightTensor) -> nn.Parameter:
    """The parameter itself; where it is masked, the one under the mask.

    Raises:
        AttributeError: the model has no such parameter.
    """
    holder, leaf = model.get_submodule(weight.module), weight.name.rpartition(".")[2]
    if is_parametrized(holder, leaf):
        return holder.get_parameter(f"parametrizations.{leaf}.original")
    return holder.get_parameter(leaf)


def owners_of(model: nn.Module, weight: WeightTensor) -> tuple[nn.Module, ...]:
    """The modules that hold the parameter, one for each of its places."""
    return tuple(model.get_submodule(place.rpartition(".")[0]) for place in weight.places)


Found = tuple[tuple[str, ...], Tensor, tuple[nn.Module, ...]]
"""All names of a parameter, the parameter, and the module that holds it under each name."""


def _parameters(model: nn.Module) -> Iterator[Found]:
    """Every parameter once; one under a parametrization that is not a mask is none."""
    places: dict[int, list[tuple[str, nn.Module]]] = {}
    parameters: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        if "parametrizations" in path.split("."):
            continue
        for leaf, parameter in sorted(_own_parameters(module).items()):
            parameters[id(parameter)] = parameter
            places.setdefault(id(parameter), []).append((f"{path}.{leaf}" if path else leaf, module))
    for key, parameter in parameters.items():
        if nn.parameter.is_lazy(parameter):
            raise SelectionError(
                "The parameter has no shape yet",
                where=f"weight '{places[key][0][0]}'",
                remedy="Run the model once on example inputs",
            )
        yield tuple(name for name, _ in places[key]), parameter, tuple(owner for _, owner in places[key])


def _own_parameters(module: nn.Module) -> dict[str, Tensor]:
    own: dict[str, Tensor] = {name: value for name, value in module._parameters.items() if value is not None}
    if is_parametrized(module):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        for name, chain in module.parametrizations.items():
            assert isinstance(chain, ParametrizationList)
            if len(chain) == 1 and isinstance(chain[0], Masking) and isinstance(chain.original, Tensor):
                own[name] = chain.original
    return own


def _computed(model: nn.Module) -> dict[str, str]:
    """By qualified name, what computes tensors of the model before each call."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if "parametrizations" not in path.split("."):
            prefix = f"{path}." if path else ""
            found |= {f"{prefix}{leaf}": what for leaf, what in computed_by(module, Masking).items()}
    return found


def _is_meant(entry: Found, chosen_by: Sequence[str]) -> bool:
    """Rules 1 to 3 of :func:`find_weights`."""
    places, parameter, owners = entry
    if any(pattern in places for pattern in chosen_by):
        return True
    return _is_weight(parameter, owners) and _is_named(places, chosen_by)


def _is_named(places: Sequence[str], chosen_by: Sequence[str]) -> bool:
    return not chosen_by or any(_matches(places, pattern) for pattern in chosen_by)


def _check_only(chosen_by: Sequence[str], meant: Sequence[Found], reasons: Mapping[str, str]) -> None:
    """Refuse a pattern of ``only`` that leaves nothing to mask."""
    usable = [places for places, _, _ in meant if places[0] not in reasons]
    for pattern in chosen_by:
        if not any(_matches(places, pattern) for places in usable):
            because = [f": {name}, {why}" for name, why in reasons.items() if _matches((name,), pattern)]
            what = because[0] if because else ", but biases, scales or embeddings"
            raise SelectionError(
                f"The pattern '{pattern}' matches no parameter that can be masked{what}",
                expected="a float parameter with at least two dimensions, or the full name of another",
                where="only",
                remedy="Take off what computes it (remove_parametrizations, remove_weight_norm)"
                if because
                else "",
            )


def _shape(places: Sequence[str], parameter: Tensor) -> tuple[int, ...]:
    """The shape of a parameter that is to be masked.

    Raises:
        SelectionError: it has no weights, or of a dtype that cannot be ranked.
    """
    if parameter.dtype not in MASKABLE or not parameter.numel():
        raise SelectionError(
            f"It has {parameter.numel()} weights of {parameter.dtype}",
            expected="a parameter with float weights of 16 bits or more",
            where=f"weight '{places[0]}'",
            remedy="Leave it out with ignore=, or mask the model before its weights are quantized",
        )
    return tuple(parameter.shape)


def _fingerprint(found: Sequence[Found]) -> str:
    content = json.dumps(sorted([sorted(places), list(parameter.shape)] for places, parameter, _ in found))
    return hashlib.sha256(content.encode()).hexdigest()


def _is_weight(parameter: Tensor, owners: Sequence[nn.Module]) -> bool:
    return (
        parameter.is_floating_point()
        and parameter.numel() > 0
        and sum(size > 1 for size in parameter.shape) >= 2
        and not any(isinstance(owner, nn.Embedding | nn.EmbeddingBag) for owner in owners)
    )


def _matrix(
    places: Sequence[str], parameter: Tensor, owners: Sequence[nn.Module], dims: Mapping[str, int]
) -> Matrix | None:
    told = {dim for pattern, dim in dims.items() if _matches(places, pattern)}
    others = tuple(range(parameter.ndim))
    if told:
        dim = min(told)
        if len(told) > 1 or not 0 <= dim < parameter.ndim:
            raise SelectionError(
                f"Its input dimension is said to be {sorted(told)}",
                expected=f"one number from 0 to {parameter.ndim - 1}",
                where=f"weight '{places[0]}'",
            )
        return Matrix(tuple(other for other in others if other != dim), (dim,))
    known = {matrix_in(owner, parameter.ndim) for owner in owners}
    return known.pop() if len(known) == 1 else None


def _matches(places: Sequence[str], pattern: str) -> bool:
    return any(lies_in(place, pattern) for place in places)


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    several = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(pattern, str) for pattern in several):
        raise SelectionError(f"The patterns are {several!r}", expected="strings", where="only or ignore")
    return several


def _example(found: Sequence[Found]) -> str:
    return found[0][0][0] if found else "weight"
