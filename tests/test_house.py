"""The house stays tidy: small rooms, no path of anybody's machine, every plug-in importable, every link leads somewhere."""

import ast
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from context_memory import plugins

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "context_memory"
FOLDERS = sorted(p.parent.name for p in SOURCE.glob("*/base.py"))
ROOM = 300
"""Lines of a source file. The aim is 250."""
HEAVY = 25_000_000
"""Bytes of a file."""
MACHINE = re.compile(r"(?<![\w.~-])/(?:home|root|Users)/[\w.]|\b[A-Z]:\\Users\\")
REGISTRY = re.compile(r"\b(?:[\w-]+\.)*(?:pypi|pythonhosted|npmjs|anaconda|debian)\.(?:org|com|net|io)\b")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


@cache
def tracked() -> tuple[Path, ...]:
    """The files that are in the repository, or will be at the next commit."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    return tuple(p for name in said.stdout.split("\0") if name and (p := ROOT / name).is_file())


def text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def dead_links(path: Path, content: str) -> list[str]:
    """Relative links of a markdown text that lead nowhere."""
    targets = (x.partition("#")[0] for x in LINK.findall(content) if not re.match(r"[a-z]+:", x))
    return [x for x in targets if x and not (path.parent / x).exists()]


@pytest.mark.parametrize("pattern", [MACHINE, REGISTRY, re.compile(re.escape(str(ROOT)))], ids=["home", "registry", "checkout"])
def test_nothing_names_a_machine(pattern: re.Pattern[str]) -> None:
    found = [f"{p.relative_to(ROOT)}: {m.group()}" for p in tracked() if (m := pattern.search(text(p)))]
    assert not found


def test_control_a_machine_is_seen() -> None:
    slash = "/"
    assert MACHINE.search(f"cd {slash}home{slash}jin")
    assert MACHINE.search(f'"{slash}root{slash}.cache"')
    assert not MACHINE.search("see docs/home/page, ~/.cache and ./root/x")
    assert REGISTRY.search("files.pythonhosted" + ".org")


def test_rooms_are_small() -> None:
    long = {str(p.relative_to(ROOT)): n for p in SOURCE.rglob("*.py") if (n := len(text(p).splitlines())) > ROOM}
    assert not long, f"over {ROOM} lines: {long}; a file is one idea."


def test_every_source_file_says_what_it_is_for() -> None:
    silent = [str(p.relative_to(ROOT)) for p in SOURCE.rglob("*.py") if not text(p).lstrip().startswith('"""')]
    assert not silent, f"no docstring: {silent}"


@cache
def layers() -> dict[str, int]:
    """Module or folder -> its row in the layout of docs/design.md."""
    section = text(ROOT / "docs" / "design.md").partition("## 4.")[2].partition("## 5.")[0]
    rows = re.findall(r"^\| (`[^|]*`) \|", section, re.M)
    return {name: i for i, row in enumerate(rows) for name in re.findall(r"`(\w+)(?:\.py|/)`", row)}


def upward(module: str, source: str) -> list[str]:
    """What a module imports at its top from rows below its own."""
    names: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "context_memory":
            names += [a.name for a in node.names] if node.module == "context_memory" else [node.module.split(".")[1]]
    return [n for n in names if layers().get(n, -1) > layers()[module]]


def test_the_design_names_every_file() -> None:
    there = {p.stem for p in SOURCE.glob("*.py")} | {p.parent.name for p in SOURCE.glob("*/__init__.py")}
    missing = there - {"__init__"} - set(layers())
    assert not missing, f"docs/design.md, section 4, does not name {sorted(missing)}."
    assert not set(layers()) - there, f"docs/design.md names {sorted(set(layers()) - there)}, which is not there."


def test_imports_run_one_way() -> None:
    wrong = {}
    for path in SOURCE.rglob("*.py"):
        module = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if module != "__init__" and module in layers() and (up := upward(module, text(path))):
            wrong[str(path.relative_to(SOURCE))] = up
    assert not wrong, f"imports against the order of docs/design.md, section 4: {wrong}"


def test_control_an_import_the_wrong_way_is_seen() -> None:
    assert upward("schemes", "from context_memory import plan, memory") == ["memory"]
    assert upward("text", "from context_memory.plan import Plan") == ["plan"]


def test_no_heavy_files() -> None:
    heavy = {str(p.relative_to(ROOT)): p.stat().st_size for p in tracked() if p.stat().st_size > HEAVY}
    assert not heavy


@pytest.mark.parametrize("folder", FOLDERS)
def test_plugins_import_and_explain_themselves(folder: str) -> None:
    assert plugins.keys(folder)
    for key in plugins.keys(folder):
        kind = plugins.find(folder, key)
        assert kind.__doc__ or __import__(kind.__module__, fromlist=["_"]).__doc__


def test_control_an_unknown_plugin_is_named_with_those_that_exist() -> None:
    with pytest.raises(LookupError, match=r"no scheme called 'nonsense'; have: .*concat.*create schemes/nonsense\.py"):
        plugins.find("schemes", "nonsense")


def test_links_lead_somewhere() -> None:
    pages = [p for p in tracked() if p.suffix == ".md"]
    dead = {str(p.relative_to(ROOT)): d for p in pages if (d := dead_links(p, text(p)))}
    assert not dead


def test_control_a_dead_link_is_seen() -> None:
    page = "[a](pyproject.toml) [b](nowhere.md#x) [c](https://example.org) [d](#here)"
    assert dead_links(ROOT / "x.md", page) == ["nowhere.md"]
