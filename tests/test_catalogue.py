"""`ccm settings`: every setting is there, says what it does, and is shown as it would be used."""

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from context_memory import plugins
from context_memory.catalogue import settings, table
from context_memory.cli import assemble
from context_memory.compose import load
from context_memory.config import FOLDERS, PLAIN, Config
from context_memory.errors import UserError


def by_key(*words: str, recipe: str | None = None) -> dict[str, object]:
    return {s.key: s for s in settings(words, recipe)}


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, folder in FOLDERS.items() for n in plugins.keys(folder)])
def test_every_setting_of_a_plugin_is_listed_and_explained(group: str, name: str) -> None:
    found = by_key(f"{group}=[{name}]" if group == "pins" else f"{group}={name}", group)
    prefix = f"pins.{name}" if group == "pins" else group
    own = {f"{prefix}.{f.name}" for f in dataclasses.fields(plugins.find(FOLDERS[group], name))}
    assert own <= set(found)
    assert not [key for key, s in found.items() if not s.about]


def test_every_plain_setting_is_listed_and_explained() -> None:
    found = by_key()
    assert {f"{group}.{f.name}" for group, kind in PLAIN.items() for f in dataclasses.fields(kind)} <= set(found)
    assert {f.name for f in dataclasses.fields(Config)} - set(PLAIN) <= set(found)
    assert not [key for key, s in found.items() if not s.about]


def test_a_listed_setting_can_be_said() -> None:
    plain = [s for s in settings() if "." in s.key and isinstance(s.value, int | float | str) and s.key.split(".")[0] != "pins"]
    assert len(plain) > 40
    assert load([f"{s.key}={s.value}" for s in plain]) == load()


def test_what_is_not_as_usual_is_marked(tmp_path) -> None:
    (tmp_path / "r.yaml").write_text("scheme: {name: merge, decay: 0.25}\ntraining: {lr: 0.001}\n")
    found = by_key("training.seed=7", recipe=str(tmp_path / "r.yaml"))
    other = {key for key, s in found.items() if s.value != s.usual}
    assert other == {"scheme", "scheme.decay", "training.lr", "training.seed"}
    assert found["scheme"].value == "merge" and found["scheme.decay"].value == 0.25


def test_a_group_that_is_named_lists_what_can_be_chosen() -> None:
    assert {f"scheme={n}" for n in plugins.keys("schemes")} <= set(by_key("scheme"))
    assert not [key for key in by_key() if "=" in key]
    assert [s.key for s in settings(["training.lr", "generation.seed"])] == ["training.lr", "generation.seed"]


def test_a_word_that_is_no_setting() -> None:
    with pytest.raises(UserError, match="no setting or group 'trainings'; the groups are data, scheme"):
        settings(["trainings"])


def test_the_command(capsys) -> None:
    said = CliRunner().invoke(assemble(), ["settings", "pins", "pins=[prompt,numbers]", "--json"])
    assert said.exit_code == 0
    assert {s["key"] for s in json.loads(said.stdout)} >= {"pins", "pins=[rare]", "pins.numbers.once"}
    shown = CliRunner().invoke(assemble(), ["settings", "pins", "pins=[prompt,numbers]"])
    assert "pins=[rare]" in shown.stdout and "[prompt,numbers] *" in shown.stdout
    assert table(settings(["model"])).row_count == len(settings(["model"]))
