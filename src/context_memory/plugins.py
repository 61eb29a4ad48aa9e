"""File name = key: every folder of plug-ins is a registry, found by looking into it.

A plug-in file defines one public class that derives from the folder's `base.py` class of the same purpose. Nothing is
registered by hand: a file that is dropped into the folder is there.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

NONE: Mapping[str, Any] = {}
WIDEST = 40
"""Characters of a setting that `title` shows; lists of words are longer."""


@cache
def keys(folder: str) -> tuple[str, ...]:
    """The names of the plug-ins in `context_memory.<folder>`, sorted."""
    package = importlib.import_module(f"context_memory.{folder}")
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "base" and not m.name.startswith("_")))


def find(folder: str, key: str, word: str | None = None) -> type:
    """The class that `folder/key.py` defines.

    Raises:
        LookupError: there is no such file; the message lists those that exist.
    """
    word = word or {"boundaries": "boundary", "families": "family", "data": "dataset"}.get(folder, folder.removesuffix("s"))
    if key not in keys(folder):
        raise LookupError(f"no {word} called '{key}'; have: {', '.join(keys(folder))}. To add one, create {folder}/{key}.py.")
    module = importlib.import_module(f"context_memory.{folder}.{key}")
    base = importlib.import_module(f"context_memory.{folder}.base")
    kinds = tuple(c for _, c in inspect.getmembers(base, inspect.isclass) if c.__module__ == base.__name__ and getattr(c, "plugin", False))
    found = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__ and issubclass(c, kinds)]
    if len(found) != 1:
        raise TypeError(f"{folder}/{key}.py must define one class that derives from {folder}/base.py, found {len(found)}.")
    return found[0]


def make(folder: str, key: str, /, **settings: object) -> object:
    """`find`, then construct it with `settings`.

    Raises:
        LookupError: no such plug-in.
        TypeError: a setting that it does not have; the message lists those it has.
    """
    kind = find(folder, key)
    known = inspect.signature(kind).parameters
    if unknown := sorted(set(settings) - set(known)):
        raise TypeError(f"{folder}/{key}.py has no setting {', '.join(map(repr, unknown))}; have: {', '.join(known) or 'none'}.")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})  # frozen, so that it can be a key


def beside(home: str | Path | None, folder: str, key: str, settings: Mapping[str, Any] = NONE) -> dict[str, Any]:
    """Settings with the place of what a plug-in has learnt: it lies in `home`, an adapter's folder, if no `path` says otherwise."""
    learnt = hasattr(find(folder, key), "file_name") and not settings.get("path")
    return {**settings, **({"path": str(home or "")} if learnt else {})}


def make_beside(home: str | Path | None, folder: str, key: str) -> Any:
    """`make`, with what it has learnt read from `home`."""
    return make(folder, key, **beside(home, folder, key))


def usual(kind: Any) -> dict[str, Any]:
    """The settings of a dataclass that have a default, with it."""
    out = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    return out | {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}


def title(folder: str, tree: Mapping[str, Any]) -> str:
    """A plug-in for people: its name and the settings that differ from their defaults; the number of comp tokens where there are some.

    >>> title("schemes", {"name": "concat", "n_comp": 2, "window": 44, "lag": 0})
    'concat n_comp=2 window=44'
    """
    try:
        before = usual(find(folder, tree["name"]))
    except LookupError:  # a plug-in of somebody else's, which is not here
        before = {}
    own = {k: v for k, v in tree.items() if k != "name" and (v != before.get(k, MISSING) or (k == "n_comp" and v))}
    return " ".join([tree["name"], *(_short(k, v) for k, v in own.items())])


def _short(key: str, value: Any) -> str:
    text = f"{key}={str(value).lower() if isinstance(value, bool) else value}"
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."
