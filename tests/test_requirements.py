"""The two ways to install are one: `requirements.txt` and uv's constraints hold the same exact versions.

Otherwise `pip install -r requirements.txt` and `uv sync` would give different libraries, and a number measured with one
could not be measured again with the other.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS_PINNED = ("gym", "retrieval", "dev")
ACCELERATOR = ("nvidia", "cuda", "triton")
"""What builds of torch for an accelerator bring along, each its own."""
EXACT = re.compile(r"[a-z0-9][a-z0-9-]*==[0-9][0-9A-Za-z.]*")


def pins(lines: Iterable[str]) -> dict[str, str]:
    """Name -> version; an error for a line that is not an exact pin, or a name that comes twice."""
    found: dict[str, str] = {}
    for line in (x.strip() for x in lines):
        if not line or line.startswith("#"):
            continue
        if not EXACT.fullmatch(line):
            raise ValueError(f"{line!r} is not an exact pin: write name==version, lower case, without a local version.")
        name, _, number = line.partition("==")
        if name in found:
            raise ValueError(f"{name} is pinned twice, to {found[name]} and {number}.")
        found[name] = number
    return found


def required() -> dict[str, str]:
    return pins((ROOT / "requirements.txt").read_text().splitlines())


def direct() -> list[Requirement]:
    project = PROJECT["project"]
    lines = project["dependencies"] + [x for e in EXTRAS_PINNED for x in project["optional-dependencies"][e]]
    return [Requirement(x) for x in lines if not x.startswith(project["name"])]


def test_requirements_equal_constraints() -> None:
    assert required() == pins(PROJECT["tool"]["uv"]["constraint-dependencies"])


def test_pins_are_inside_the_ranges() -> None:
    have = required()
    for need in direct():
        assert need.specifier.contains(have[canonicalize_name(need.name)]), need


def test_transitive_requirements_are_pinned() -> None:
    """Whatever a pinned package asks for on this platform is pinned as well, so that nothing floats."""
    have = required()
    for name in have:
        try:
            wanted = [Requirement(x) for x in requires(name) or []] if version(name).partition("+")[0] == have[name] else []
        except PackageNotFoundError:
            continue
        here = [n for n in wanted if n.marker is None or n.marker.evaluate({"extra": ""})]
        names = {canonicalize_name(n.name) for n in here if not (name == "torch" and n.name.startswith(ACCELERATOR))}
        assert names <= set(have), f"{name} needs {', '.join(sorted(names - set(have)))}, which requirements.txt does not pin."


def imported(source: str) -> set[str]:
    """Top-level names of the modules that a source imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"context_memory"}


def test_whatever_is_imported_is_declared() -> None:
    """A package that only comes along with another one may stop coming."""
    project = PROJECT["project"]
    lines = project["dependencies"] + [x for extra in project["optional-dependencies"].values() for x in extra]
    declared = {canonicalize_name(Requirement(x).name) for x in lines}
    owners = packages_distributions()
    for path in (ROOT / "src").rglob("*.py"):
        for module in imported(path.read_text()):
            names = {canonicalize_name(n) for n in owners.get(module, [module])}
            assert names & declared, f"{path.relative_to(ROOT)} imports {module}, which pyproject.toml does not name."


def test_control_imports_are_seen_inside_functions() -> None:
    assert imported("import os\ndef f():\n    from yaml.x import y\n    import torch.nn as nn") == {"yaml", "torch"}


@pytest.mark.parametrize("line", ["torch>=2.0", "torch", "torch==2.13.0+cpu", "Torch==2.13.0"])
def test_control_a_loose_pin_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not an exact pin"):
        pins([line])


def test_control_a_changed_pin_is_seen() -> None:
    have = required()
    assert have | {"torch": "0"} != have
    assert have["torch"] == "2.13.0"
