"""Every setting that there is: its value, what it is without a word, and what its docstring says. Read off the dataclasses.

A setting is documented where it is declared, by a string behind it; a plug-in by the first line of its file.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from context_memory import plugins
from context_memory.compose import CHOICES, load
from context_memory.config import FOLDERS, PLAIN, Config
from context_memory.defaults import DataExtras
from context_memory.errors import UserError
from context_memory.overrides import is_override, written

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Setting:
    key: str
    """As an override has it: `scheme.n_comp`. A group of plug-ins is `scheme`, one that can be chosen `scheme=merge`, without a value."""
    value: Any
    usual: Any
    """What it is where nobody says anything."""
    about: str
    """What it does, in words; the choices, where there are a few."""


def settings(words: Sequence[str] = (), recipe: str | None = None) -> list[Setting]:
    """The settings below the groups and keys that are named, with what recipe and overrides make of them; all if none is named.
    A group that is named lists the plug-ins that can be chosen as well.

    Raises:
        UserError: a word that is neither a group, a key nor an override.
    """
    config = load([w for w in words if is_override(w)], recipe)
    usual = load()
    every = [s for f in dataclasses.fields(Config) for s in _of(f.name, config, usual)]
    named = [w for w in words if not is_override(w)]
    for word in named:
        if not any(_under(s.key, word) for s in every):
            raise UserError(f"no setting or group '{word}'; the groups are {', '.join([*FOLDERS, *PLAIN])}.")
    kept = [s for s in every if not named or any(_under(s.key, word) for word in named)]
    return [x for s in kept for x in (s, *(_plugins(s.key) if s.key in FOLDERS and s.key in named else ()))]


def table(found: Sequence[Setting]) -> Table:
    """For people; what is not as usual has a star."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    out = Table(box=SIMPLE_HEAD)
    out.add_column("setting", no_wrap=True)
    out.add_column("value", overflow="fold")
    out.add_column("what it does", overflow="fold")
    for s in found:
        value = written(s.value).lower() if isinstance(s.value, bool) else "" if "=" in s.key else written(s.value)
        out.add_row(escape(s.key), escape(value) + (" *" if s.value != s.usual else ""), escape(s.about))
    return out


def _under(key: str, word: str) -> bool:
    return key == word or key.startswith(f"{word}.")


def _of(name: str, config: Config, usual: Config) -> list[Setting]:
    """The settings of one field of the configuration: itself, a plain group, a plug-in or several."""
    value, before = getattr(config, name), getattr(usual, name)
    if name in PLAIN:
        return _fields(name, PLAIN[name], value, before)
    if name not in FOLDERS:
        return [Setting(name, value, before, _about(Config).get(name, ""))]
    chosen = value if name == "pins" else {value["name"]: value}
    first = list(before) if name == "pins" else before["name"]
    shown = list(value) if name == "pins" else value["name"]
    several = "Any of" if name == "pins" else "One of"
    out = [Setting(name, shown, first, f"{several} {', '.join(plugins.keys(FOLDERS[name]))}. `ccm settings {name}` says what they are.")]
    for key, own in chosen.items():
        kind = plugins.find(FOLDERS[name], key)
        out += _fields(f"{name}.{key}" if name == "pins" else name, kind, own, plugins.usual(kind))
    return out + (_fields(name, DataExtras, value, DataExtras()) if name == "data" else [])


def _fields(prefix: str, kind: type, value: Any, usual: Any) -> list[Setting]:
    about = _about(kind)
    pick = [(f.name, _get(value, f.name), _get(usual, f.name)) for f in dataclasses.fields(kind)]
    return [Setting(key := f"{prefix}.{n}", now, then, _with_choices(about.get(n, ""), CHOICES.get(key, ()))) for n, now, then in pick]


def _get(owner: Any, name: str) -> Any:
    value = owner.get(name) if isinstance(owner, dict) else getattr(owner, name)
    return list(value) if isinstance(value, tuple) else value


def _with_choices(about: str, choices: Sequence[str]) -> str:
    said = "" if all(c in about for c in choices) else f"One of {', '.join(choices)}."
    return " ".join(filter(None, (about, said)))


def _plugins(group: str) -> list[Setting]:
    """Those that can be chosen, with the first line of their files; why one cannot be had, where a package is missing."""
    out = []
    for key in plugins.keys(FOLDERS[group]):
        try:
            kind = plugins.find(FOLDERS[group], key)
            about = (sys.modules[kind.__module__].__doc__ or kind.__doc__ or "").strip().partition("\n")[0]
        except ImportError as e:
            about = f"Needs a package that is not installed: {e}."
        out.append(Setting(f"pins=[{key}]" if group == "pins" else f"{group}={key}", None, None, about))
    return out


def _about(kind: type) -> dict[str, str]:
    """Field -> the string behind its declaration, of the class and those it derives from."""
    out: dict[str, str] = {}
    for owner in reversed([c for c in kind.__mro__ if c.__module__.startswith("context_memory.")]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for at, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(at, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                out[ast.unparse(at.target)] = " ".join(str(after.value.value).split())
    return out
