"""Where the order of a dimension matters: cumulative sums, sorting, differences, Fourier transforms."""

from __future__ import annotations

from prunekit.graph.atoms import SINGLE, Dim, Dims, Fixed
from prunekit.graph.call import Call, Rule
from prunekit.graph.change import Rewriting
from prunekit.graph.nodes import sizes
from prunekit.graph.operator import Operator
from prunekit.types import Granularity


def along(text: str) -> Rule:
    """A rule for operators that mix the indices of the dimension(s) ``dim`` by their order."""

    def rule(call: Call) -> Dims | tuple[Dims, ...]:
        own = call.dims(call.inputs[0])
        given = call.arguments.get("dim")
        axes = (
            set(range(len(own)))
            if given is None
            else {axis % len(own) for axis in (given if isinstance(given, list | tuple) else [given])}
        )
        call.freeze([own[axis] for axis in axes], text)
        value = call.node.meta["val"]
        shapes = [sizes(item) for item in (value if isinstance(value, tuple | list) else [value])]
        outputs = tuple(_follow(call, own, axes, shape, text) for shape in shapes)
        return outputs if isinstance(value, tuple | list) else outputs[0]

    return rule


def _follow(call: Call, own: Dims, axes: set[int], shape: tuple[int, ...], text: str) -> Dims:
    """Output labels: the ordered dimensions keep their places, unless they were dropped."""
    if len(shape) < len(own):
        return tuple(dim for axis, dim in enumerate(own) if axis not in axes)
    out: list[Dim] = []
    for axis, (dim, size) in enumerate(zip(own, shape, strict=True)):
        if axis not in axes:
            out.append(dim)
        else:
            out.append(Fixed(1, SINGLE) if size == 1 else call.fixed(size, text))
    return tuple(out)


def top(call: Call) -> Dims | tuple[Dims, ...]:
    """``topk``, ``sort`` and ``argmax``: values in their order, and which indices they belong to.

    Which values are the largest does not depend on where they stand, so the dimension may lose indices as
    long as enough are left; the positions point into it (see ``Labels.pointers``).
    """
    own = call.dims(call.inputs[0])
    pointed = call.pointed(call.inputs[0])
    given = call.arguments.get("dim")
    value = call.node.meta["val"]
    shapes = [sizes(item) for item in (value if isinstance(value, tuple | list) else [value])]
    chosen = 1 if given is None or len(shapes[0]) < len(own) else shapes[0][given]
    if given is None or _is_whole(own[given], chosen) or pointed is not None:
        outcome = along("it is put in the order of its values")(call)
        if pointed is not None and isinstance(outcome, tuple):
            call.point(pointed, output=0)
        return outcome or ()
    axis = given % len(own)
    dim = own[axis]
    call.reduces(dim, [other for place, other in enumerate(own) if place != axis], "its largest are chosen")
    call.kind(Granularity.EXPERT, [dim])
    call.needs(dim, chosen)
    outputs = tuple(_follow(call, own, {axis}, shape, "it is in the order of values") for shape in shapes)
    if isinstance(value, tuple | list):
        call.point(dim, output=1)
        return outputs
    call.point(dim)
    return outputs[0]


def _is_whole(dim: Dim, chosen: int) -> bool:
    """Nothing is left to choose from, or nothing is labelled."""
    return isinstance(dim, Fixed) or chosen >= len(dim)


def running_total(call: Call) -> Dims | tuple[Dims, ...]:
    """``cumsum`` and its kin; totals of a tally only say where each index's share begins."""
    if call.is_tally("self"):
        call.tally()
        return call.dims("self")
    return along("each index takes in all before it")(call) or ()


def tally(call: Call) -> Dims:
    """``histc``: how often each value occurs, where the values point into a dimension as long."""
    pointed = call.pointed("self")
    size = call.shape[0]
    if pointed is None or isinstance(pointed, Fixed) or len(pointed) != size or call["max"] != size - 1:
        if pointed is not None:
            call.freeze([pointed], "its positions are counted")
        call.freeze(call.dims("self"), "its values are counted")
        return (call.fixed(size, "its positions are values"),)
    call.tally()
    return (pointed,)


def new_bins(change: Rewriting) -> None:
    """``histc``: one bin per index that is left."""
    dim = change.out()[0]
    if not isinstance(dim, Fixed):
        change.set("bins", change.count(dim))
        change.set("max", change.count(dim) - 1)


def difference(call: Call) -> Dims | tuple[Dims, ...]:
    """``diff`` along one dimension, with what is put before and behind it."""
    for name in ("prepend", "append"):
        call.freeze(call.dims(name), "neighbours along a dimension are subtracted")
    return along("neighbours along it are subtracted")(call) or ()


def triangle(call: Call) -> Dims:
    """``tril`` and ``triu``: what stays depends on the positions in the last two dimensions."""
    own = call.dims("self")
    call.freeze(own[-2:], "a triangle of its positions is kept")
    return own


def diagonal(call: Call) -> Dims:
    """Two dimensions are read where their positions are equal."""
    own = call.dims("self")
    axes = {call[name] % len(own) for name in ("dim1", "dim2")}
    call.freeze([own[axis] for axis in axes], "its diagonal is taken")
    rest = tuple(dim for axis, dim in enumerate(own) if axis not in axes)
    return (*rest, call.fixed(call.shape[-1], "a diagonal"))


def grid_sample(call: Call) -> Dims:
    """``x[b, c, *space]`` read at the places that ``grid[b, *places, 2]`` says."""
    batch, channels, *space = call.dims("input")
    call.freeze((*space, *call.dims("grid")[1:]), "it is sampled at positions")
    return (batch, channels, *(call.fixed(size, "sampled at positions") for size in call.shape[2:]))


def bucketize(call: Call) -> Dims:
    """The place of every value among sorted boundaries."""
    call.freeze(call.dims("boundaries"), "values are looked up in it")
    return call.dims("self")


def frozen(text: str) -> Rule:
    """A rule for operators whose every dimension has to stay, for a reason that is known."""

    def rule(call: Call) -> None:
        call.refusal = text

    return rule


_FOURIER = "fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn fftshift ifftshift"

OPERATORS: dict[str, Operator] = {
    **{
        f"aten.{name}": Operator(along("each index takes in all before it"))
        for name in ("cumprod", "cummax", "cummin", "logcumsumexp")
    },
    **{
        f"aten.{name}": Operator(along("it is put in the order of its values"))
        for name in ("argsort", "kthvalue", "mode")
    },
    **{f"aten.{name}": Operator(top) for name in ("topk", "sort", "argmax", "argmin")},
    "aten.cumsum": Operator(running_total),
    "aten.histc": Operator(tally, new_bins),
    **{f"aten.fft_{name}": Operator(along("a Fourier transform runs over it")) for name in _FOURIER.split()},
    "aten.diff": Operator(difference),
    "aten.tril": Operator(triangle),
    "aten.triu": Operator(triangle),
    "aten.diagonal": Operator(diagonal),
    "aten.grid_sampler": Operator(grid_sample),
    "aten.grid_sampler_2d": Operator(grid_sample),
    "aten.grid_sampler_3d": Operator(grid_sample),
    "aten.bucketize": Operator(bucketize),
    "wrap_with_autocast": Operator(frozen("it runs in a region of lower precision")),
    "aten.meshgrid": Operator(frozen("its values are laid out as positions")),
    "aten.as_strided": Operator(frozen("it is read by memory offsets")),
    "aten.affine_grid_generator": Operator(frozen("its values are geometry")),
    "aten.matrix_exp": Operator(frozen("every index of it takes part in every other")),
    "aten.linalg_householder_product": Operator(frozen("every index of it takes part in every other")),
}
