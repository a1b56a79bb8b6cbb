"""Small nets whose weights are swept, and how their batches and masks are read."""

import torch
import torch.nn.functional as F
from torch import nn

from prunekit.graph import trace
from prunekit.workload import Batch


class Block(nn.Module):
    """Attention and two linear layers, pre-normed."""

    def __init__(self, width=8):
        super().__init__()
        self.norm, self.other = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        h = self.norm(x)
        query, key, value = (
            layer(h).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        x = x + self.output(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.other(x))))


def decoder():
    return nn.Sequential(Block(), Block(), nn.Linear(8, 3))


def images():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, (1, 3), padding="same", dilation=2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


NETS = {"decoder": (decoder, (12, 5, 8)), "images": (images, (12, 4, 8, 8))}


def net(name):
    build, shape = NETS[name]
    torch.manual_seed(0)
    model = build().double().eval()
    x = torch.randn(shape).double()
    return model, trace(model, (x[:2],)), x


def cut(x, size):
    return [Batch(args=(part,)) for part in x.split(size)]


def kept(found, name):
    return torch.from_numpy(found.plan.masks[name].keep())
