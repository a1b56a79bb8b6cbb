"""Where the order of a dimension matters: cumulative sums, sorting, differences, Fourier transforms."""

from __future__ import annotations

from prunekit.graph.atoms import Dim, Fixed
from prunekit.graph.label import SINGLE, Call, Dims, Rule, sizes


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

RULES: dict[str, Rule] = {
    **{
        f"aten.{name}": along("each index takes in all before it")
        for name in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")
    },
    **{
        f"aten.{name}": along("it is put in the order of its values")
        for name in ("sort", "topk", "argsort", "kthvalue", "mode")
    },
    **{f"aten.{name}": along("positions in it are computed") for name in ("argmax", "argmin")},
    **{f"aten.fft_{name}": along("a Fourier transform runs over it") for name in _FOURIER.split()},
    "aten.diff": difference,
    "aten.tril": triangle,
    "aten.triu": triangle,
    "aten.diagonal": diagonal,
    "aten.grid_sampler": grid_sample,
    "aten.grid_sampler_2d": grid_sample,
    "aten.grid_sampler_3d": grid_sample,
    "aten.bucketize": bucketize,
    "wrap_with_autocast": frozen("it runs in a region of lower precision"),
    "aten.meshgrid": frozen("its values are laid out as positions"),
    "aten.as_strided": frozen("it is read by memory offsets"),
    "aten.affine_grid_generator": frozen("its values are geometry"),
    "aten.matrix_exp": frozen("every index of it takes part in every other"),
    "aten.linalg_householder_product": frozen("every index of it takes part in every other"),
}
