"""Graphs made by hand, each with something in it that a cut can get wrong.

A factory is ``tests.support.model_graphs:CLASS``.
"""

import os
import time
import warnings
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

WIDTH = 64


def dense(count: int, width: int = WIDTH) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width, width) for _ in range(count))


class TiedWeights(nn.Module):
    """One matrix first and last."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.middle = dense(2)
        self.decode.weight = self.encode.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.encode(x))
        for layer in self.middle:
            x = torch.tanh(layer(x))
        return self.decode(x)


class OneMatrix(nn.Module):
    """One parameter that two layers are given."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.middle, self.decode = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.encode.weight = self.decode.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(torch.tanh(self.middle(torch.tanh(self.encode(x)))))


class RandomFeatures(nn.Module):
    """A buffer in no file, of random numbers that are drawn after those of weights."""

    projection: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = dense(3)
        self.register_buffer("projection", torch.randn(WIDTH, WIDTH), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cos(self.layers[0](x) @ self.projection)
        return self.layers[2](torch.tanh(self.layers[1](x)))


class LongSkips(nn.Module):
    """Down and up again; every width is needed twice."""

    def __init__(self) -> None:
        super().__init__()
        widths = (WIDTH, 32, 16, 8)
        self.down = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.Linear(2 * b, a) for a, b in pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = []
        for layer in self.down:
            x = torch.tanh(layer(x))
            seen.append(x)
        for layer, skip in zip(reversed(self.up), reversed(seen), strict=True):
            x = torch.relu(layer(torch.cat((x, skip), dim=1)))
        return x


class TwoInputs(nn.Module):
    """The second input is needed late only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.late = dense(3), nn.Linear(8, WIDTH)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:2]:
            x = torch.tanh(layer(x))
        return self.layers[2](x * torch.sigmoid(self.late(condition)))


class TwoOutputs(nn.Module):
    """The first output is ready early."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.early = dense(3), nn.Linear(WIDTH, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.tanh(self.layers[0](x))
        early = self.early(x)
        for layer in self.layers[1:]:
            x = torch.tanh(layer(x))
        return {"early": early, "late": x.sum(1)}


class Buffers(nn.Module):
    """One buffer lies in the file, one is made by the constructor, one is read by two layers."""

    order: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.norm = dense(3), nn.BatchNorm1d(WIDTH)
        self.register_buffer(
            "order", torch.randperm(WIDTH, generator=torch.Generator().manual_seed(3)), persistent=False
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = self.norm(torch.tanh(layer(x[:, self.order])))
        return x


class Integers(nn.Module):
    """A choice is made early as integers and booleans; the activations between are wider than these."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.table, self.layers = nn.Linear(WIDTH, 16), nn.Embedding(16, 8), dense(2, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        score = self.score(x)
        best, keep = score.topk(3, dim=1).indices, score.mean(1) > 0
        hidden = self.table(best)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return torch.where(keep[:, None, None], hidden, -hidden), best, keep


class Conditional(nn.Module):
    """``torch.cond``: a branch that the data chooses, exported as two subgraphs that read weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = dense(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.layers[0](x))
        (x,) = torch.cond(
            x.sum() > 0,
            lambda x: (torch.relu(self.layers[1](x)),),
            lambda x: (torch.sin(self.layers[2](x)),),
            (x,),
        )
        return self.layers[3](x)


class TimeFirst(nn.Module):
    """Between its layers the batch is dimension 1."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.ModuleList(nn.MultiheadAttention(32, 2) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(0, 1)
        for layer in self.mix:
            x = torch.tanh(layer(x, x, x, need_weights=False)[0])
        return x.transpose(0, 1)


class Windows(nn.Module):
    """Between its layers the batch is multiplied by the number of windows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = dense(3, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = x.reshape(-1, 16)
        for layer in self.layers:
            windows = torch.tanh(layer(windows))
        return windows.reshape(x.shape[0], -1)


class Lengths(nn.Module):
    """The number of tokens is needed after no tensor shows it any more."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layers = nn.Embedding(100, 32), dense(3, 32)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.layers[0](self.table(ids))).sum(1)
        for layer in self.layers[1:]:
            hidden = torch.tanh(layer(hidden))
        return hidden / ids.shape[1] + torch.arange(ids.shape[1], device=ids.device).float().mean()


class Shared(nn.Module):
    """A figure of the whole batch crosses beside the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = dense(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.layers[0](x))
        largest = torch.linalg.matrix_norm(self.layers[1](x))
        return self.layers[2](torch.tanh(self.layers[1](x))) / largest


class SharedOutputs(nn.Module):
    """Outputs that share memory, one with infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = dense(3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        x = x.masked_fill(torch.arange(WIDTH) < 3, float("-inf"))
        return x, x, x[:, 1:]


class FewSamples(nn.Module):
    """Takes a path that no export with a free batch can hold, where there are more samples than five."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = dense(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x if x.shape[0] > 5 else 2.0 * x


class RefusesMany(FewSamples):
    """Fails where there are more samples than five."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 5:
            raise ValueError("too many samples")
        return super().forward(x)


class Recurrent(nn.Module):
    """Layers that hold their weights in a list as well: two of an LSTM, then a GRU that reads both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 8)
        self.lstm = nn.LSTM(16, 16, 2, batch_first=True)
        self.gru = nn.GRU(16, 8, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.lstm(torch.tanh(self.first(x)))[0])
        return self.last(self.gru(x)[0][:, -1])


class RecurrentTokens(nn.Module):
    """Layers that read any number of steps, and give the state after the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(100, 16), nn.Linear(16, 16), nn.Linear(24, 8)
        self.lstm = nn.LSTM(16, 16, 2, bidirectional=True, batch_first=True, proj_size=8)
        self.gru, self.rnn = nn.GRU(16, 16, batch_first=True), nn.RNN(16, 16, nonlinearity="relu")

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        steps, (state, _) = self.lstm(self.first(self.table(ids)).tanh_())
        steps = self.gru(torch.tanh(steps))[0]
        steps = self.rnn(torch.tanh(steps).transpose(0, 1))[0].transpose(0, 1)
        return self.last(torch.cat([steps[:, -1], state[-1]], 1)), steps


class WritesToInputs(nn.Module):
    """In-place on one input and through a view of another, of which it returns views."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = dense(3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mask[:, 0] = 1
        x -= 0.5
        x.view(-1, 8, 8)[:, 0].mul_(3.0)
        x.masked_fill_(mask == 0, 0.0)
        hidden = x
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return hidden, x[:, 8:], mask


class AsLongAsBatch(nn.Module):
    """In-place, with a dimension of 2 before the batch of its output, which is 2 as well when it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = dense(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:2]:
            x = torch.tanh(layer(x)).mul_(2.0)
        return self.layers[2](torch.stack([x, -x])).transpose(0, 1)


class Normalised(nn.Module):
    """Weights that each call computes from others and leaves in an attribute: the old forms of two norms."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.layers = nn.ModuleList(nn.utils.weight_norm(layer) for layer in dense(2))
            self.layers.extend(nn.utils.spectral_norm(layer) for layer in dense(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class Noisy(nn.Module):
    """Answers that depend on what is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = dense(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.layers[1](torch.tanh(self.layers[0](x))))
        return self.layers[2](x + torch.randn_like(x))


class Padded(nn.Module):
    """An encoder of torch's, which has a fast path that sets what is padding to zero."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, WIDTH, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(WIDTH, 8)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=torch.arange(x.shape[1]) >= lengths[:, None]))


class Slow(nn.Module):
    """Takes an hour for a real call, and says that it has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = dense(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if type(x) is torch.Tensor and x.device.type != "meta":
            Path(os.environ["SLOW_TEST_FOLDER"], f"running-{os.getpid()}").touch()
            time.sleep(3600)
        return self.layers[2](torch.tanh(self.layers[1](torch.tanh(self.layers[0](x)))))


class Blinded(nn.Module):
    """Noise and orders that are drawn at each call, without any input, and undone layers later."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = dense(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise, common, order = torch.randn(x.shape[0], WIDTH), torch.rand(WIDTH), torch.randperm(WIDTH)
        x = torch.tanh(self.layers[0](x)) + noise
        x = x + torch.tanh(self.layers[1](x - noise)) + common
        x = (x - noise)[:, order]
        x = (x - common[order])[:, torch.argsort(order)]
        return self.layers[3](torch.tanh(self.layers[2](x)))


class CastBuffers(nn.Module):
    """Constants computed by operations that are called as methods of every module are."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = dense(3)
        self.register_buffer("scale", torch.linspace(1.0, 2.0, WIDTH, dtype=torch.float64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) * self.scale.to(x.dtype)
        return x


class PerSample(nn.Module):
    """A layer that is written for one sample and mapped over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = dense(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.layers[0](x))
        x = torch.vmap(lambda sample: torch.tanh(self.layers[2](torch.tanh(self.layers[1](sample)))))(x)
        return self.layers[3](x)
