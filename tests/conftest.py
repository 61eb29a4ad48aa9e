"""Every test runs offline, on the CPU (those that need a GPU too where CCM_TEST_GPU is set), with threads that do not fight each other."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
if "CCM_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
# Workers share the cores; a test alone may have two. Set before torch is imported; processes that a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `real` need the embedded model in the cache; they never fetch it."""
    from context_memory import fetch, models

    if models.EMBEDDED in fetch.cached():
        return
    skip = pytest.mark.skip(reason=f"{models.EMBEDDED} is not in {fetch.cache()}: ccm models pull {models.EMBEDDED}")
    for item in items:
        if "real" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of models."""
    folder = tmp_path / "models"
    monkeypatch.setenv("CCM_MODELS", str(folder))
    return folder


@pytest.fixture(autouse=True)
def exact_eager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The laws of a family that eager attention alone computes are shown to the last digits as well: transformers takes that
    softmax in float32, here it stays in float64 if the scores are."""
    from context_memory.families.base import family_of

    family = getattr(request.node, "callspec", None) and request.node.callspec.params.get("family")
    if not (isinstance(family, str) and family_of(family).attention(None)):
        return
    stock = torch.nn.functional.softmax

    def softmax(x: Any, *args: Any, **kwargs: Any) -> Any:
        return stock(x, *args, **(kwargs | {"dtype": x.dtype} if x.dtype == torch.float64 else kwargs))

    monkeypatch.setattr(torch.nn.functional, "softmax", softmax)
