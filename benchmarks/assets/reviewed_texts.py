"""The texts that people rated for the VADER paper: newspaper editorials and film reviews, in fixed splits."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks.assets.archive import member, members_of_tar
from benchmarks.assets.source import AssetError

INNER_ARCHIVE = "*/additional_resources/hutto_ICWSM_2014.tar.gz"
EDITORIALS = "nytEditorialSnippets_GroundTruth.txt"
REVIEWS = "movieReviewSnippets_GroundTruth.txt"

EDITORIAL_SHARES = {"calibration": 0.5, "validation": 0.2, "test": 0.3}
REVIEW_SHARES = {"train": 0.6, "calibration": 0.1, "validation": 0.15, "test": 0.15}
"""Split -> share of the documents (of the distinct snippets, for reviews)."""

Item = TypeVar("Item")


class Rated(NamedTuple):
    """A snippet, and the mean of its ratings by about twenty people: -4 most negative, 4 most positive."""

    text: str
    rating: float


def load_editorials(archive: Path) -> dict[str, list[str]]:
    """``calibration``, ``validation`` and ``test``: one string per editorial, sentences joined by a space.

    No editorial is in two splits. Source: Hutto and Gilbert (2014), VADER: A Parsimonious Rule-based Model
    for Sentiment Analysis of Social Media Text, ICWSM-14 (the data set beside the paper).

    Raises:
        AssetError: the archive is not the one expected.
    """
    documents: dict[str, list[str]] = {}
    for name, row in _rows(archive, EDITORIALS):
        documents.setdefault(name.partition("_")[0], []).append(row.text)
    texts = [" ".join(sentences) for sentences in documents.values()]
    return in_splits(texts, list(documents), EDITORIAL_SHARES)


def load_reviews(archive: Path) -> dict[str, list[Rated]]:
    """``train``, ``calibration``, ``validation`` and ``test``: snippets of film reviews with their ratings.

    Snippets that differ only in case and white space are in one split. The data set does not tell which
    snippets are of one review, so a review may reach over splits. Source: as for the editorials.

    Raises:
        AssetError: the archive is not the one expected.
    """
    rows = [row for _, row in _rows(archive, REVIEWS)]
    return in_splits(rows, [" ".join(row.text.casefold().split()) for row in rows], REVIEW_SHARES)


def in_splits(
    items: Sequence[Item], keys: Sequence[Hashable], shares: Mapping[str, float]
) -> dict[str, list[Item]]:
    """Items in splits that depend on nothing but their keys; within a split they keep their order.

    The distinct keys, in the order of the SHA-256 of their text, are cut where the shares say.

    Args:
        items: the items.
        keys: one per item; items with equal keys are in one split.
        shares: split -> share of the distinct keys; they add up to 1.
    """
    ordered = sorted(set(keys), key=lambda key: hashlib.sha256(str(key).encode()).digest())
    split_of: dict[Hashable, str] = {}
    begin, sum_of_shares = 0, 0.0
    for split, share in shares.items():
        sum_of_shares += share
        end = round(sum_of_shares * len(ordered))
        split_of |= dict.fromkeys(ordered[begin:end], split)
        begin = end
    splits: dict[str, list[Item]] = {split: [] for split in shares}
    for item, key in zip(items, keys, strict=True):
        splits[split_of[key]].append(item)
    return splits


def _rows(archive: Path, file: str) -> Iterable[tuple[str, Rated]]:
    """Identifier and rated text per line of ``file``: three columns between tabs."""
    found = members_of_tar(member(archive, INNER_ARCHIVE), f"*/{file}")
    if len(found) != 1:
        raise AssetError(f"there are {len(found)} files {file}", expected="one", where=archive.name)
    for line in next(iter(found.values())).decode("utf-8").split("\n"):
        if line.strip():
            name, rating, text = line.strip().split("\t")
            yield name, Rated(text.strip(), float(rating))
