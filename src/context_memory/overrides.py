"""What a person says: `key=value` on the command line, and recipes, which are read as such. As text, before anything is made of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from context_memory.config import FOLDERS, Config
from context_memory.errors import UserError


def said(overrides: Sequence[str], recipe: str | Path | None = None) -> list[str]:
    """What the recipe says and what comes after it, without the settings of plug-ins that another takes the place of."""
    given = [_plain(o) for o in overrides]
    chosen = choices(given)
    return [*(o for o in (read_recipe(recipe) if recipe else []) if not _left_behind(o, chosen)), *given]


def adapter_of(overrides: Sequence[str]) -> str | None:
    """The adapter that is named last, if one is.

    >>> adapter_of(['model.adapter="adapters/mine"', "scheme=full"])
    'adapters/mine'
    """
    named = [value for key, _, value in (o.partition("=") for o in overrides) if key == "model.adapter"]
    if not named or named[-1] in ("null", ""):
        return None
    return named[-1].strip("'\"")


def read_recipe(path: str | Path) -> list[str]:
    """A recipe is a YAML file of the same tree; `scheme: concat`, or `scheme: {name: concat, n_comp: 2}`. As overrides. One that says
    `from: other.yaml` has what that recipe beside it says, but for what it says itself. A bare name is also looked for in `recipes/`."""
    import yaml

    file = Path(path)
    if not file.is_file():
        bare, ours = file.parent == Path(), Path("recipes")
        if bare and (known := (ours / file.name).with_suffix(".yaml")).is_file():
            return read_recipe(known)
        found = ", ".join(sorted(p.name for p in (ours if bare or not file.parent.is_dir() else file.parent).glob("*.yaml"))) or "none"
        raise UserError(f"no recipe at '{path}'; there are: {found}.")
    try:
        text = file.read_text(encoding="utf-8")
        _no_key_twice(yaml.compose(text, yaml.SafeLoader), file)
        tree = yaml.safe_load(text) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"recipe '{path}' is not YAML: {e}") from e
    if not isinstance(tree, dict):
        raise UserError(f"recipe '{path}' must be a mapping of groups and settings, got {type(tree).__name__}.")
    source = tree.pop("from", None)
    out: list[str] = []
    for key, value in tree.items():
        if key == "pins" and isinstance(value, dict):
            out += [
                f"pins=[{','.join(value)}]",
                *(f"pins.{n}.{k}={written(v)}" for n, s in value.items() for k, v in (s or {}).items()),
            ]
        elif isinstance(value, dict):
            out += [f"{key}={v}" if k == "name" and key in FOLDERS else f"{key}.{k}={written(v)}" for k, v in value.items()]
        else:
            out.append(f"{key}={written(value)}")
    if source is None:
        return out
    if file.parent / source == file:
        raise UserError(f"recipe '{path}' says from: itself; name another one.")
    own = choices(out)
    return [*(o for o in read_recipe(file.parent / source) if not _left_behind(o, own)), *out]


def axis(override: str) -> list[str]:
    """An override with several values, separated as in Hydra's own sweeps, one by one: `boundary=newline,rules`,
    `pins=[prompt],[prompt,results]`, `boundary.n=range(8,32,8)`.

    Raises:
        UserError: not `key=value,value`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as e:
        raise UserError(f"--sweep '{override}' is not key=value,value: {str(e).splitlines()[0]}") from e
    if not parsed.is_sweep_override():
        raise UserError(f"--sweep '{override}' needs several values with commas between them, as in --sweep boundary=newline,rules.")
    return [f"{parsed.key_or_group}={value}" for value in parsed.sweep_string_iterator()]


def _no_key_twice(node: Any, file: Path) -> None:
    """Raises UserError for a mapping that says one thing twice: YAML would take the last without a word."""
    if not hasattr(node, "tag") or not node.tag.endswith(":map"):
        return
    keys = [key.value for key, _ in node.value]
    if twice := sorted({k for k in keys if keys.count(k) > 1}):
        raise UserError(f"recipe '{file}' says {', '.join(twice)} twice; put their settings together.")
    for _, value in node.value:
        _no_key_twice(value, file)


def is_override(argument: str) -> bool:
    """`key=value` with a key of the configuration; `x = 3` is text."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and key.split(".")[0] in {f.name for f in dataclasses.fields(Config)}


def choices(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Which plug-ins the overrides choose, group by group.

    Raises:
        UserError: a mapping, as recipes have it.

    >>> choices(["scheme=concat", "scheme.n_comp=2", "pins=[prompt,sink]"])
    {'scheme': ['concat'], 'pins': ['prompt', 'sink']}
    """
    out: dict[str, list[str]] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if key in FOLDERS:
            if value.lstrip().startswith("{"):
                shown = "pins=[sink,rare] pins.rare.budget=2" if key == "pins" else "scheme=concat scheme.n_comp=2"
                raise UserError(f"{key}={value}: a plug-in is named, and its settings are said one by one, as in {shown}.")
            names = value.strip().removeprefix("[").removesuffix("]").split(",")
            out[key] = [n.strip().strip("'\"") for n in names if n.strip()]
    return out


def written(value: object) -> str:
    """A value as an override has it."""
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{written(v)}" for k, v in value.items()) + "}"
    return "null" if value is None else json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _plain(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"'{override}' is not an override; write key=value, as in training.max_steps=500.")
    key = "model.name" if key == "model" else key.removeprefix("--")
    return f"{key}={_text(key, value)}"


def _text(key: str, value: str) -> str:
    """The value, in quotation marks if it would not be read as the text that it is: a file of any name, a run that is named 1_000."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if value[:1] in ("", "'", '"') or value == "null":
        return value
    if key == "run_id":
        return written(value)
    try:
        OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        return value if value[0] + value[-1] in ("[]", "{}") else written(value)
    return value


def _left_behind(override: str, chosen: Mapping[str, list[str]]) -> bool:
    """Whether a recipe's setting belongs to a plug-in that the command line replaces."""
    group = override.partition("=")[0].split(".")[0]
    return group in chosen
