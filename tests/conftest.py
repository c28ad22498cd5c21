"""Settings of every test: one thread, a seed, a cache folder that is thrown away, and the devices to run on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from rnn_blocks.recipes.run.host.process import keep_bits

keep_bits()  # as the recipes do: it counts before the first product alone

settings.register_profile("rnn-blocks", deadline=None, max_examples=25)
settings.load_profile("rnn-blocks")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _throwaway_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Corpora that tests tokenize stay out of the user's cache, in this process and in those it starts."""
    before = os.environ.get("RNN_BLOCKS_CACHE")
    folder = tmp_path_factory.mktemp("cache")
    os.environ["RNN_BLOCKS_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["RNN_BLOCKS_CACHE"]
    else:
        os.environ["RNN_BLOCKS_CACHE"] = before


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_process_group_left() -> Iterator[None]:
    """Lightning leaves the one of a strategy with ranks; in the tests after it, a training would believe in them."""
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)
