"""A grammar of small networks: every program of these steps is a network that runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

SIZE = 4
"""Height and width of every image; nothing in the grammar changes it."""
LENGTH = 5
"""Tokens of every sequence."""


@dataclass(frozen=True)
class Step:
    """One instruction: what to do, with which of the values so far (counted back), and a number."""

    kind: str
    first: int
    second: int
    number: int


class Network(nn.Module):
    """Runs its steps on a growing list of values, all of them ``[batch, channels, ...]`` or ``[..., width]``.

    A step whose condition does not hold for the values it names becomes another one that always can.
    """

    def __init__(
        self, steps: tuple[Step, ...], table: dict[str, Callable], width: int, head: nn.Module
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.head = head
        self.runs: list[tuple[Callable, int, int]] = []
        widths = [width]
        for step in steps:
            first, second = -1 - step.first % len(widths), -1 - step.second % len(widths)
            layer, gives = table[step.kind](widths[first], widths[second], step.number)
            if isinstance(layer, nn.Module):
                self.layers.append(layer)
            self.runs.append((layer, first, second))
            widths += gives
        self.last = widths[-1]

    def forward(self, x):
        values = [x]
        for layer, first, second in self.runs:
            two = not isinstance(layer, nn.Module) or isinstance(layer, nn.Bilinear)
            given = layer(values[first], values[second]) if two else layer(values[first])
            values += given if isinstance(given, list | tuple) else [given]
        return self.head(values[-1])


def _conv(a: int, b: int, n: int):
    width = 2 + n
    return nn.Conv2d(a, width, 1 + 2 * (n % 2), padding=n % 2, bias=n % 3 > 0), [width]


def _depthwise(a: int, b: int, n: int):
    times = 1 + n % 2
    return nn.Conv2d(a, a * times, 3, padding=1, groups=a), [a * times]


def _grouped(a: int, b: int, n: int):
    groups = next(size for size in (3, 2, 1) if a % size == 0)
    width = groups * (1 + n % 4)
    return nn.Conv2d(a, width, 1, groups=groups), [width]


def _group_norm(a: int, b: int, n: int):
    return nn.GroupNorm(next(size for size in (4, 3, 2, 1) if a % size == 0), a), [a]


def _pool(a: int, b: int, n: int):
    return (nn.MaxPool2d(3, 1, 1) if n % 2 else nn.AvgPool2d(3, 1, 1)), [a]


def _activate(a: int, b: int, n: int):
    return (nn.ReLU(), nn.SiLU(), nn.Tanh())[n % 3], [a]


def _add(a: int, b: int, n: int):
    return ((lambda x, y: x + y), [a]) if a == b else ((lambda x, y: x * 0.5), [a])


def _gate(a: int, b: int, n: int):
    return ((lambda x, y: x * torch.sigmoid(y)), [a]) if a == b else ((lambda x, y: -x), [a])


def _cat(axis: int):
    return lambda a, b, n: ((lambda x, y: torch.cat([x, y], axis)), [a + b])


def _chunk(axis: int):
    def step(a: int, b: int, n: int):
        if a % 2 or a < 4:
            return (lambda x, y: x.abs()), [a]
        return (lambda x, y: x.chunk(2, axis)), [a // 2, a // 2]

    return step


def _split(axis: int):
    def step(a: int, b: int, n: int):
        cut = 2 + n % 3
        if a - cut < 2:
            return (lambda x, y: x.abs()), [a]
        return (lambda x, y: x.split([cut, a - cut], axis)), [cut, a - cut]

    return step


def _narrow(a: int, b: int, n: int):
    return ((lambda x, y: x[:, 1 : a - 1]), [a - 2]) if a > 4 else ((lambda x, y: x + 1), [a])


def _shuffle(a: int, b: int, n: int):
    if a % 2 or a < 4:
        return (lambda x, y: x.square()), [a]
    return (lambda x, y: x.unflatten(1, (2, a // 2)).transpose(1, 2).flatten(1, 2)), [a]


def _residual(a: int, b: int, n: int):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Conv2d(a, 2 + n, 1), nn.Conv2d(2 + n, a, 1)
            self.norm = nn.BatchNorm2d(a)

        def forward(self, x):
            return x + self.outer(torch.relu(self.inner(self.norm(x))))

    return Block(), [a]


def _pixels(a: int, b: int, n: int):
    """Channels into space and back by a mean; or space into channels, at one place of four."""
    if a % 4 == 0 and a >= 8:
        return nn.Sequential(nn.PixelShuffle(2), nn.AvgPool2d(2)), [a // 4]
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Upsample(scale_factor=2)), [4 * a]


def _repeat(a: int, b: int, n: int):
    if n % 2:
        return (lambda x, y: x.repeat(1, 2, 1, 1)), [2 * a]
    return (lambda x, y: x.repeat_interleave(2, 1)), [2 * a]


def _roll(a: int, b: int, n: int):
    return (lambda x, y: x.roll((1, n), (2, 3))), [a]


IMAGES: dict[str, Callable] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "grouped": _grouped,
    "transposed": lambda a, b, n: (nn.ConvTranspose2d(a, 2 + n, 3, padding=1), [2 + n]),
    "batch norm": lambda a, b, n: (nn.BatchNorm2d(a), [a]),
    "group norm": _group_norm,
    "pool": _pool,
    "activate": _activate,
    "add": _add,
    "gate": _gate,
    "cat": _cat(1),
    "chunk": _chunk(1),
    "split": _split(1),
    "narrow": _narrow,
    "shuffle": _shuffle,
    "residual": _residual,
    "pixels": _pixels,
    "repeat": _repeat,
    "roll": _roll,
}
"""What a step does to images: ``(width of the first, of the second, number) -> (layer, new widths)``."""


def _attend(a: int, b: int, n: int):
    heads = 1 + n % 3

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(a, heads * 2 * 3), nn.Linear(heads * 2, a)

        def forward(self, x):
            parts = self.qkv(x).view(x.shape[0], LENGTH, 3, heads, 2).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
            return x + self.out(mixed)

    return Attention(), [a]


def _gated(a: int, b: int, n: int):
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(a, 2 * (2 + n)), nn.Linear(2 + n, a)

        def forward(self, x):
            gate, value = self.up(x).chunk(2, -1)
            return x + self.down(F.silu(gate) * value)

    return Gated(), [a]


def _share(a: int, b: int, n: int):
    groups, width = 1 + n % 2, 2 + n % 3

    class Sharing(nn.Module):
        """Two query heads to each key and value head."""

        def __init__(self) -> None:
            super().__init__()
            self.q, self.out = nn.Linear(a, 2 * groups * width), nn.Linear(2 * groups * width, a)
            self.k, self.v = nn.Linear(a, groups * width), nn.Linear(a, groups * width)

        def forward(self, x):
            q, k, v = (
                part(x).unflatten(-1, (-1, width)).transpose(1, 2) for part in (self.q, self.k, self.v)
            )
            mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            return x + self.out(mixed.transpose(1, 2).flatten(2))

    return Sharing(), [a]


def _name(a: int, b: int, n: int):
    class Named(nn.Module):
        """A product over two dimensions of a weight, spelt by names."""

        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = (
                nn.Parameter(torch.randn(a, 2, 2 + n)),
                nn.Parameter(torch.randn(2, 2 + n, a)),
            )

        def forward(self, x):
            inner = torch.tanh(torch.einsum("bld,dhe->blhe", x, self.into))
            return x + torch.einsum("blhe,hed->bld", inner, self.out)

    return Named(), [a]


def _walk(a: int, b: int, n: int):
    class Walk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(a, 2 + n % 3, batch_first=True, bidirectional=n % 2 > 0)

        def forward(self, x):
            return self.lstm(x)[0]

    return Walk(), [(2 + n % 3) * (1 + n % 2)]


def _pick(a: int, b: int, n: int):
    """Steps of the sequence by their places: in a circle, or gathered."""

    def pick(x, y):
        order = (torch.arange(LENGTH) * (1 + n) % LENGTH)[None, :, None]
        return x.gather(1, order.expand(x.shape))

    return ((lambda x, y: x.roll(n, 1)) if n % 2 else pick), [a]


def _glu(a: int, b: int, n: int):
    return ((lambda x, y: F.glu(x, -1)), [a // 2]) if a % 2 == 0 and a >= 4 else ((lambda x, y: -x), [a])


SEQUENCES: dict[str, Callable] = {
    "linear": lambda a, b, n: (nn.Linear(a, 2 + n, bias=n % 2 > 0), [2 + n]),
    "layer norm": lambda a, b, n: (nn.LayerNorm(a) if n % 2 else nn.RMSNorm(a), [a]),
    "attend": _attend,
    "gated": _gated,
    "activate": _activate,
    "softmax": lambda a, b, n: (nn.Softmax(-1), [a]),
    "add": _add,
    "gate": _gate,
    "cat": _cat(-1),
    "chunk": _chunk(-1),
    "split": _split(-1),
    "share": _share,
    "name": _name,
    "walk": _walk,
    "pick": _pick,
    "glu": _glu,
}
"""The same for sequences of vectors."""


def _programs(kinds: list[str]) -> st.SearchStrategy[tuple[Step, ...]]:
    # Layers are named first: a step that shrinks becomes a layer, and a network without one says nothing.
    step = st.builds(Step, st.sampled_from(kinds), st.integers(0, 3), st.integers(0, 3), st.integers(0, 6))
    return st.lists(step, min_size=2, max_size=9).map(tuple)


IMAGE_PROGRAMS = _programs(list(IMAGES))
SEQUENCE_PROGRAMS = _programs(list(SEQUENCES))


def image_network(steps: tuple[Step, ...], *, flatten: bool) -> tuple[nn.Module, Tensor]:
    """A network over ``[2, 3, 4, 4]``, with a stem before the steps and two linear layers after them."""
    torch.manual_seed(0)
    body = Network((Step("conv", 0, 0, 4), *steps), IMAGES, 3, nn.Identity())
    pooled = nn.Flatten() if flatten else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    width = body.last * SIZE * SIZE if flatten else body.last
    head = nn.Sequential(pooled, nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, 3))
    return nn.Sequential(body, head), torch.randn(2, 3, SIZE, SIZE)


def sequence_network(steps: tuple[Step, ...]) -> tuple[nn.Module, Tensor]:
    """A network over ``[2, 5, 4]``, with an embedding before the steps and a linear layer after them."""
    torch.manual_seed(0)
    body = Network((Step("linear", 0, 0, 4), *steps), SEQUENCES, 4, nn.Identity())
    return nn.Sequential(body, nn.Linear(body.last, 3)), torch.randn(2, LENGTH, 4)
