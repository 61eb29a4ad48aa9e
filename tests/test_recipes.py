"""Every recipe parses, and trains two steps of a toy model on a handful of examples of its own kind of data; one that goes on from an
adapter goes on from a toy of what that adapter is."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

import toys
from context_memory import adapter, compose, head, loading
from context_memory.boundaries.classifier import FILE
from context_memory.config import Config
from context_memory.data.gsm8k import Gsm8k
from context_memory.data.icl import Icl
from context_memory.errors import UserError
from context_memory.train import train

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SMALL = ["model.dtype=float32", "model.lora_r=2", "training.max_steps=2", "training.tokens_per_batch=1500", "training.max_tokens=4000",
         "training.eval_steps=2", "training.eval_samples=2", "training.save_steps=2", "training.wandb=false"]  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.folder(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of every dataset that reads files."""
    root = tmp_path_factory.mktemp("data")

    def jsonl(name: str, rows: list[dict[str, object]]) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("".join(json.dumps(r) + "\n" for r in rows))

    problems = [{"question": f"{e.prompt} ({i})", "answer": f"{e.target}"} for i in range(30) for e in Gsm8k.samples]
    labels = [{"input": f"{e.prompt} {i}", "output": e.target, "options": list(e.options)} for i in range(12) for e in Icl.samples]
    film = [{"text": f"Film {i}", "rating": str(1 + i % 5)} for i in range(8)]
    for split in ("train", "validation", "test"):
        jsonl(f"gsm8k/{split}.jsonl", problems)
        for corpus in ("self_dialogue", "dailydialog"):
            jsonl(f"dialogue/{corpus}/{split}.jsonl", [{"dialog": [f"I say {i}, {j}." for j in range(15)]} for i in range(9)])
        jsonl(f"icl/{split}/films.jsonl", [row | {"split": s} for row in labels for s in ("train", "test")])
        jsonl(f"personal/{split}.jsonl", [{"profile": film, "input": f"Film {i}", "output": "3", "options": ["1", "3"]} for i in range(9)])
        (root / "books" / split).mkdir(parents=True)
        (root / "books" / split / "a.txt").write_text(" ".join(str(i % 10) for i in range(9000)))
    return root


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_trains(recipe: Path, toy: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCM_DATA", str(data))
    config = compose.load([f"model={toy}", *SMALL, f"output={tmp_path}", *_small(recipe)], recipe)
    assert config.run_id and config.scheme["name"]
    for setting in ("adapter", "start"):
        if name := getattr(config.model, setting):
            earlier = _toy_of(name, config, tmp_path / setting)
            config = replace(config, model=replace(config.model, **{setting: str(earlier)}))
    if config.boundary.get("path"):  # a head of the real model
        lm = loading.build(config)
        head.save(head.Head(lm.base.config.hidden_size), tmp_path / FILE, lm.origin)
        config = replace(config, boundary={**config.boundary, "path": str(tmp_path / FILE)})
    result = train(config)
    assert result.steps == 2 and (tmp_path / config.data["name"] / config.run_id / "adapter" / "ccm.json").is_file()


@cache
def _every() -> list[Config]:
    return [compose.load([], recipe) for recipe in RECIPES]


def _written_by(adapter: str) -> list[Config]:
    """The configurations of the recipes that write this adapter."""
    return [c for c in _every() if f"{c.output}/{c.data['name']}/{c.run_id}/adapter" == adapter]


def _toy_of(name: str, config: Config, place: Path) -> Path:
    """A fresh toy adapter of the scheme that the adapter `name` has: shipped, or what a recipe writes."""
    (was,) = _written_by(name) if not name.startswith("adapters/") else [Config.from_dict(adapter.read_card(ROOT / name).config)]
    model = replace(was.model, name=config.model.name, adapter=None, start=None, dtype="float32", lora_r=config.model.lora_r)
    toy = replace(was, model=model)
    lm = loading.build(toy)
    adapter.save(lm, place, loading.card_of(lm, toy, place))
    return place


def test_a_recipe_that_does_not_fit_its_adapter_is_noticed(toy: Path, tmp_path: Path) -> None:
    """The control of what is above: another number of comp tokens than the adapter's."""
    recipe = ROOT / "recipes" / "books_concat.yaml"
    config = compose.load([f"model={toy}", *SMALL, "scheme.n_comp=3"], recipe)
    assert config.model.adapter and _written_by(config.model.adapter) and not _written_by("result/books/nobody/adapter")
    place = _toy_of(config.model.adapter, config, tmp_path / "earlier")
    with pytest.raises(UserError, match="2 comp token"):
        loading.build(replace(config, model=replace(config.model, adapter=str(place))))


def _small(recipe: Path) -> list[str]:
    """Fewer and shorter examples, where a recipe's data are generated."""
    config = compose.load([], recipe)
    data = config.data
    made = ["data.train=40", "data.validation=4", "data.test=4"] if data["name"] in ("tally", "gsm_symbolic") else []
    several = ["data.problems=2"] if data.get("problems", 1) > 1 else []
    mark = ["boundary.token='<|system|>'"] if config.boundary["name"] == "model" else []  # the toy has none in reserve
    return [*made, *several, *mark]
