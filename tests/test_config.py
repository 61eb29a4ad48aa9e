"""`key=value` becomes typed settings; every slip is told with what there is; recipes and cards say the same as overrides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from context_memory import boundaries, cli, plugins
from context_memory.compose import load
from context_memory.config import FOLDERS, Config
from context_memory.errors import UserError
from context_memory.overrides import read_recipe

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml"))


def test_overrides_become_typed_settings() -> None:
    c = load(["scheme=merge", "scheme.n_comp=3", "data.seed=7", "pins=[results,prompt]", "pins.results.budget=4", "training.lr=1e-3",
              "training.max_steps=null", "model=llama-3.1-8b"])  # fmt: skip
    assert c.make("scheme") == plugins.make("schemes", "merge", n_comp=3)
    assert c.make("pins") == [plugins.make("pins", "results", budget=4), plugins.make("pins", "prompt")]
    assert c.make("data").seed == 7 and c.make("boundary") == plugins.make("boundaries", "newline")
    assert (c.training.lr, c.training.max_steps, c.model.name) == (1e-3, None, "llama-3.1-8b")
    assert load(["pins=[]"]).make("pins") == [] and load(["pins=sink"]).make("pins") == [plugins.make("pins", "sink")]


def test_what_an_earlier_version_did_not_say_has_its_default() -> None:
    config = load(["data=dialogue", "data.turns=5"])
    tree = config.to_dict()
    for name in ("permissive", "most", "problems"):
        del tree["data"][name]
    assert Config.from_dict(tree) == config and "most" not in tree["data"]
    assert Config.from_dict(tree | {"data": {"name": "gone", "x": 1}}).data["x"] == 1


def test_the_gate_follows_the_scheme() -> None:
    assert [load([o]).gate() for o in ("scheme=full", "scheme=nothing", "scheme=concat")] == ["all", "all", "comp"]
    assert load(["scheme=concat", "model.gate=all"]).gate() == "all"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.lrr=1"], r"no setting 'training\.lrr'; Did you mean 'lr'\? Have under 'training': accumulate, "),
        (["nonsense=1"], r"no setting 'nonsense'; Have at the top: boundary, called, data, "),
        (["scheme.colour=red"], r"no setting 'scheme\.colour'; Have under 'scheme=concat': cache, lag, n_comp, name, recurrent"),
        (["boundary.tau=0.5"], r"It is one of boundary=classifier; choose that first\. Have under 'boundary=newline': max_segment"),
        (["boundary.max_segment=0"], "boundary=newline: a segment has at least one token, got max_segment=0"),
        (["boundary=rules", "boundary.min_segment=-1"], "boundary=rules: min_segment must be at least 0, got -1"),
        (["evaluation.max_samples=-1"], r"evaluation\.max_samples must be at least 1, got -1"),
        (["pins.sink.budget=2"], r"Choose it first: pins=\[prompt,sink\]"),
        (["training"], "'training' is not an override; write key=value"),
        (["scheme=sum"], "scheme=sum: no scheme called 'sum'; have: capped, compressive, concat, full, "),
        (["boundary=paragraph"], r"no boundary called 'paragraph'; have: .*create boundaries/paragraph\.py"),
        (["data=mnist"], "no dataset called 'mnist'; have: "),
        (["pins={sink: {}, rare: {budget: 2}}"], "settings are said one by one"),
        (["pins.prompt=null"], r"stands for settings, not for a value\. Name the rules .*: pins=\[prompt,numbers\]"),
        (["evaluation=null"], r"evaluation=null: 'evaluation' stands for settings, .* one by one: split, max_samples, "),
        (["pins=[nose]"], "no pin called 'nose'; have: "),
        (["training.lr=fast"], r"training\.lr=fast: Value 'fast' of type 'str' could not be converted to Float"),
        (["scheme.n_comp=two"], r"scheme\.n_comp=two: .* Integer"),
        (["scheme.n_comp=0"], "scheme=concat: n_comp must be at least 1, got 0"),
        (["scheme=full", "scheme.n_comp=1"], "scheme=full: .*no comp tokens"),
        (["data.min_steps=99"], "data=tally: "),
        (["training.loss=hinge"], r"training\.loss must be one of ce, distill; got 'hinge'"),
        (["training.batch_size=0"], r"training\.batch_size must be at least 1, got 0"),
        (["model.positions=skipped"], r"model\.positions must be one of skip, base"),
        (["scheme=full", "model.gate=comp"], "scheme 'full' has none; use model.gate=all"),
        (["evaluation.depths=[1,2"], "is not a ListConfig"),
    ],
)
def test_a_slip_is_told_with_what_there_is(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(overrides)


def test_the_command_line_says_it_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "scheme=sum"])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.err.startswith("error: scheme=sum: no scheme called 'sum'") and "Traceback" not in said.err


@pytest.mark.parametrize("group", sorted(FOLDERS))
def test_every_plug_in_is_a_choice_with_its_settings(group: str) -> None:
    for name in plugins.keys(FOLDERS[group]):
        made = load([f"{group}={name}"]).make(group)
        assert type(made[0] if group == "pins" else made) is plugins.find(FOLDERS[group], name)


def test_a_file_that_is_dropped_into_a_folder_is_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thirds.py").write_text(
        "from dataclasses import dataclass\nfrom context_memory.boundaries.base import Boundary, Step\n\n"
        "@dataclass(frozen=True)\nclass Thirds(Boundary):\n    of: int = 3\n    max_segment: int = 256\n\n"
        "    def ends(self, step: Step) -> bool:\n        return len(step.ids) % self.of == 0\n"
    )
    monkeypatch.setattr(boundaries, "__path__", [*boundaries.__path__, str(tmp_path)])
    plugins.keys.cache_clear()
    try:
        assert load(["boundary=thirds", "boundary.of=5"]).make("boundary").of == 5
    finally:
        plugins.keys.cache_clear()


def test_a_recipe_is_the_same_as_its_overrides(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "model: {lora_r: 16}\ndata: {name: tally, seed: 3}\nscheme: {name: merge, n_comp: 1}\nboundary: newline\n"
        "pins: {results: {budget: 2}, sink: null}\ntraining: {lr: 1.0e-3, max_minutes: null}\nrun_id: a b\n"
    )
    same = load(["model.lora_r=16", "data.seed=3", "scheme=merge", "scheme.n_comp=1", "pins=[results,sink]", "pins.results.budget=2",
                 "training.lr=0.001", "run_id='a b'"])  # fmt: skip
    assert load([], recipe) == same
    assert load(["training.lr=0.5"], recipe).training.lr == 0.5
    assert load(["scheme=full"], recipe).make("scheme") == plugins.make("schemes", "full")  # and n_comp stays behind
    with pytest.raises(UserError, match=r"no recipe at '.*missing\.yaml'; there are: r\.yaml"):
        load([], tmp_path / "missing.yaml")
    recipe.write_text("a: [")
    with pytest.raises(UserError, match="is not YAML"):
        read_recipe(recipe)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads(recipe: Path) -> None:
    assert load([], recipe).make("scheme")


def test_a_recipe_may_start_from_another(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("scheme: {name: concat, n_comp: 3}\ndata: {name: tally, seed: 5}\nrun_id: first\n")
    (tmp_path / "second.yaml").write_text("from: first.yaml\nscheme: {name: merge}\nrun_id: second\n")
    (tmp_path / "third.yaml").write_text("from: second.yaml\nscheme: {n_comp: 4}\n")
    second, third = (load([], tmp_path / f"{name}.yaml") for name in ("second", "third"))
    assert second.scheme["name"] == third.scheme["name"] == "merge" and second.run_id == third.run_id == "second"
    assert (second.scheme["n_comp"], third.scheme["n_comp"], third.data["seed"]) == (2, 4, 5)  # n_comp was concat's setting
    assert load(["data.seed=1"], tmp_path / "third.yaml").data["seed"] == 1
    (tmp_path / "self.yaml").write_text("from: self.yaml\n")
    for name, message in (("self", "from: itself"), ("lost", "no recipe at")):
        (tmp_path / "lost.yaml").write_text("from: nowhere.yaml\n")
        with pytest.raises(UserError, match=message):
            load([], tmp_path / f"{name}.yaml")


def test_a_saved_configuration_comes_back() -> None:
    c = load(["pins=[results]", "scheme=gist"])
    tree = json.loads(json.dumps(c.to_dict()))
    assert Config.from_dict(tree) == c
    tree["training"]["of_a_later_version"] = tree["of_a_later_version"] = 1
    assert Config.from_dict(tree) == c
    del tree["data"]["problems"], tree["training"]["profile"]  # as an earlier version wrote it: a run of it goes on
    assert Config.from_dict(tree) == c


def test_hydra_leaves_nothing_behind() -> None:
    from hydra.core.global_hydra import GlobalHydra

    here = Path.cwd()
    load([])
    assert not GlobalHydra.instance().is_initialized() and Path.cwd() == here
