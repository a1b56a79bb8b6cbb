"""What is fetched is what the table says: checkpoints do what they were trained for, data is all there.

All of these download on their first run, 230 MB together.
"""

import math
from collections import Counter

import pytest
import torch
from benchmarks.assets.efficientnet import preprocess
from benchmarks.assets.reviewed_texts import EDITORIAL_SHARES, REVIEW_SHARES

from benchmarks import assets

pytestmark = pytest.mark.slow


def perplexity(model, windows):
    with torch.no_grad():
        logits = model(windows).logits[:, :-1]
    return math.exp(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


def test_smollm2_continues_sentences_and_knows_english():
    """The perplexity was 466 with query and key rows left as GGUF has them."""
    model, tokenizer = vars(assets.load("smollm2-135m")).values()
    asked = tokenizer("The capital of France is", return_tensors="pt")
    said = model.generate(**asked, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(said[0]) == "The capital of France is Paris."
    text = "\n\n".join(assets.load("nyt-editorials")["test"][:15])
    windows = torch.tensor(tokenizer(text).input_ids[: 4 * 512]).view(4, 512)
    assert perplexity(model, windows) == pytest.approx(39.6, rel=0.01)
    shuffled = windows[:, torch.randperm(512, generator=torch.Generator().manual_seed(0))]
    assert perplexity(model, shuffled) > 1000


def test_editorials_are_all_there_and_in_one_split():
    splits = assets.load("nyt-editorials")
    assert {split: len(texts) for split, texts in splits.items()} == {
        split: round(498 * share) for split, share in EDITORIAL_SHARES.items()
    }
    assert max(Counter(text for texts in splits.values() for text in texts).values()) == 1
    assert sum(len(text.split()) for texts in splits.values() for text in texts) == 90_600


def test_reviews_are_all_there_and_in_one_split():
    splits = assets.load("movie-reviews")
    assert list(splits) == list(REVIEW_SHARES)
    assert sum(map(len, splits.values())) == 10_605
    texts = [{row.text for row in rows} for rows in splits.values()]
    assert len(set.union(*texts)) == sum(map(len, texts))
    for rows in splits.values():
        ratings = torch.tensor([row.rating for row in rows])
        assert ratings.abs().max() <= 4
        assert ratings.mean().abs() < 0.1
        assert ratings.std() > 1


def test_efficientnet_knows_most_of_the_sample_pictures():
    """The release says 75.1 % of ImageNet; 18 of these 20, and 19 among the first five."""
    model, samples = assets.load("efficientnet-lite0"), assets.load("imagenet-samples")
    assert len(samples.pictures) == len(samples.labels) == 20
    with torch.no_grad():
        logits = model(torch.stack([preprocess(picture) for picture in samples.pictures]))
    labels = torch.tensor(samples.labels)
    assert int((logits.argmax(1) == labels).sum()) == 18
    assert int((logits.topk(5).indices == labels[:, None]).any(1).sum()) == 19


def test_minilm_puts_like_sentences_together():
    """Each sentence is nearest to the one that says the same in other words."""
    embedded = assets.load("minilm").embed(
        [
            "A man is eating food.",
            "Someone has a meal.",
            "The girl is carrying a baby.",
            "A woman holds an infant.",
            "The stock market fell sharply today, after weeks in which prices had only known one direction.",
            "Shares dropped on Wall Street.",
        ]
    )
    assert embedded.shape == (6, 384)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(6))
    similar = (embedded @ embedded.T).fill_diagonal_(-1)
    assert similar.argmax(1).tolist() == [1, 0, 3, 2, 5, 4]
    pairs = similar[range(0, 6, 2), range(1, 6, 2)]
    others = similar.clone()
    for at in range(0, 6, 2):
        others[at, at + 1] = others[at + 1, at] = -1
    assert pairs.min() > others.max() + 0.1


def test_minilm_does_not_see_the_padding():
    minilm = assets.load("minilm")
    alone, beside = minilm.embed(["A man eats."]), minilm.embed(["A man eats.", "A woman walks " * 20])
    torch.testing.assert_close(alone[0], beside[0], rtol=0, atol=1e-5)


def test_fashion_mnist_is_all_there():
    """Mean and deviation of the training pictures, 0.2860 and 0.3530 of white, are much quoted."""
    data = assets.load("fashion-mnist")
    assert data.train_images.shape == (60_000, 28, 28)
    assert data.test_images.shape == (10_000, 28, 28)
    assert Counter(data.train_labels.tolist()) == dict.fromkeys(range(10), 6000)
    assert Counter(data.test_labels.tolist()) == dict.fromkeys(range(10), 1000)
    assert data.train_images.mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    assert data.train_images.std() / 255 == pytest.approx(0.3530, abs=1e-4)
