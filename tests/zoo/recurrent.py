"""Nets that walk along a sequence: recurrent layers, a state-space block, sums and transforms over time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.zoo.case import Case, Place, at, group, into, out, rows
from torch import nn


def layer(name: str, suffix: str = "l0") -> set[Place]:
    """The units of one direction of one recurrent layer: rows of all its tensors, columns of the state's."""
    tensors = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return {(f"{name}.{tensor}_{suffix}", 0) for tensor in tensors} | at(f"{name}.weight_hh_{suffix}", 1)


class BothWays(nn.Module):
    """Two layers in both directions; both states start from one tensor, so all layers have the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 7, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(14, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Handed(nn.Module):
    """The last state of one GRU, narrowed, is the first of another."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(6, 8, batch_first=True)
        self.bridge = nn.Linear(8, 5)
        self.decoder = nn.GRU(6, 5, batch_first=True)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        _, state = self.encoder(x)
        return self.head(self.decoder(x, torch.sigmoid(self.bridge(state)))[0])


class LastState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(6, 7, num_layers=2, batch_first=True)
        self.head = nn.Linear(7, 4)

    def forward(self, x):
        return self.head(self.rnn(x)[1][-1])


class StateSpace(nn.Module):
    """A selective state-space block (Gu and Dao, 2023) with its scan as a loop over time.

    10 inner channels with 4 states each; step sizes of rank 3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.widen = nn.Linear(8, 20)
        self.conv = nn.Conv1d(10, 10, 3, groups=10, padding=2)
        self.parts = [3, 4, 4]
        self.select = nn.Linear(10, 11)
        self.step = nn.Linear(3, 10)
        self.decay = nn.Parameter(torch.rand(10, 4))
        self.skip = nn.Parameter(torch.rand(10))
        self.narrow = nn.Linear(10, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x)
        inner, gate = self.widen(x).chunk(2, -1)
        inner = F.silu(self.conv(inner.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        step, write, read = self.select(inner).split(self.parts, -1)
        step = F.softplus(self.step(step))[..., None]
        kept, added = torch.exp(-step * self.decay), step * write[:, :, None] * inner[..., None]
        state, given = torch.zeros_like(added[:, 0]), []
        for time in range(x.shape[1]):
            state = kept[:, time] * state + added[:, time]
            given.append((state * read[:, time, None]).sum(-1))
        y = torch.stack(given, 1) + inner * self.skip
        return self.head(x + self.narrow(y * F.silu(gate)))


class OverTime(nn.Module):
    """Something between two layers that mixes the steps of a sequence, and no neurons."""

    def __init__(self, mix) -> None:
        super().__init__()
        self.mix = mix
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.mix(torch.relu(self.first(x))))


def over_time(name: str, mix, granularity: str = "neuron") -> Case:
    neurons = group(granularity, 8, out("first"), into("last"))
    return Case(name, lambda: OverTime(mix), rows(5, 6), (neurons,), ENDS)


ENDS = {"input": into("first"), "output": out("last")}
LSTM = [f"l{depth}{way}" for depth in range(2) for way in ("", "_reverse")]

CASES = (
    Case(
        "lstm",
        BothWays,
        rows(5, 6),
        (
            group(
                "neuron",
                7,
                *(layer("lstm", suffix) for suffix in LSTM),
                at("lstm.weight_ih_l1", 1),
                at("lstm.weight_ih_l1_reverse", 1),
                into("head"),
            ),
        ),
        {
            "input": at("lstm.weight_ih_l0", 1) | at("lstm.weight_ih_l0_reverse", 1),
            "output": out("head"),
        },
    ),
    Case(
        "gru with a state handed over",
        Handed,
        rows(5, 6),
        (
            group("neuron", 8, layer("encoder"), into("bridge")),
            group("neuron", 5, out("bridge"), layer("decoder"), into("head")),
        ),
        {
            "input": at("encoder.weight_ih_l0", 1) | at("decoder.weight_ih_l0", 1),
            "output": out("head"),
        },
    ),
    Case(
        "rnn, last state",
        LastState,
        rows(5, 6),
        (group("neuron", 7, layer("rnn"), layer("rnn", "l1"), at("rnn.weight_ih_l1", 1), into("head")),),
        {"input": at("rnn.weight_ih_l0", 1), "output": out("head")},
    ),
    Case(
        "state space",
        StateSpace,
        rows(5, 6),
        (
            group("hidden", 8, out("embed", "narrow"), into("widen", "head")),
            group(  # Its skip adds what different layers gave, so it is a stream, if a short one.
                "hidden",
                10,
                out("widen", "conv", "step"),
                at("decay"),
                at("skip"),
                into("select", "narrow"),
            ),
            group("neuron", 4, out("select"), at("decay", 1), mask_equivalent=False),
            group("neuron", 3, out("select"), into("step")),
        ),
        {
            "input": into("embed"),
            "output": out("head"),
        },
    ),
    over_time("cumulative sum over time", lambda x: x.cumsum(1)),
    over_time("differences over time", lambda x: x.diff(dim=1)),
    over_time("Fourier transform over time", lambda x: torch.fft.fft(x, dim=1).real),
    over_time("sorted over time", lambda x: x.sort(1).values),
    over_time("flipped over time", lambda x: x.flip(1)),
    over_time("sums of the past", lambda x: x.new_ones(5, 5).tril() @ x, "head_dim"),
)
