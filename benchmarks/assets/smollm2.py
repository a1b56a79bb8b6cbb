"""SmolLM2-135M-Instruct, dequantised once and kept as safetensors beside the file that it came in."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.assets.archive import member
from benchmarks.assets.llama_gguf import read_model, read_tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from prunekit.files import PARTIAL, file_digest, flush, put_in_place

PREPARED = "prepared-1"
"""Directory for the dequantised model; another number when what is written there changes."""

DIGESTS = "digests.json"
"""File name -> SHA-256 of everything else in that directory."""


@dataclass(frozen=True)
class LanguageModel:
    """The model in evaluation mode and float32, and its tokenizer."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast


def load(archive: Path) -> LanguageModel:
    """Model and tokenizer; the first time they are read from the GGUF file in the archive.

    The weights are those of the release at 4 bits (8 for the embedding), so figures differ from those of the
    original. Source: Ben Allal et al. (2025), SmolLM2, arXiv:2502.02737.

    Raises:
        AssetError: the archive is not the one expected.
        OSError: the disk refused.
    """
    prepared = archive.parent / PREPARED
    if not _is_intact(prepared):
        _prepare(archive, prepared)
    with _no_progress_bar():
        model = LlamaForCausalLM.from_pretrained(prepared, dtype="float32", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(prepared, local_files_only=True)
    return LanguageModel(model.eval(), tokenizer)


def _prepare(archive: Path, prepared: Path) -> None:
    """Write the model so that the directory is there whole or not at all; a damaged one makes way."""
    with tempfile.TemporaryDirectory(dir=prepared.parent, prefix=".", suffix=PARTIAL) as name:
        gguf, written = Path(name) / "model.gguf", Path(name) / PREPARED
        gguf.write_bytes(member(archive, "*.gguf"))
        with _no_progress_bar():
            read_model(gguf).save_pretrained(written)
        read_tokenizer(gguf).save_pretrained(written)
        digests = {file.name: file_digest(file) for file in sorted(written.iterdir())}
        (written / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")
        for file in written.iterdir():
            flush(file)
        if prepared.exists() and not _is_intact(prepared):
            prepared.rename(Path(name) / "damaged")
        try:
            put_in_place(written, prepared)
        except OSError:
            if not _is_intact(prepared):  # otherwise another process was first, with the same content
                raise


def _is_intact(prepared: Path) -> bool:
    """Whether a prepared directory is there and holds what was written to it."""
    if not (prepared / DIGESTS).is_file():
        return False
    try:
        digests = json.loads((prepared / DIGESTS).read_bytes())
        return all(file_digest(prepared / name) == digest for name, digest in digests.items())
    except (ValueError, FileNotFoundError):
        return False


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Of transformers, which shows one for every model; the setting is put back."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
