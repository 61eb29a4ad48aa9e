"""Rows of files, and where a dataset's files are."""

from __future__ import annotations

import json
import os
import reprlib
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from context_memory.errors import InputError

Row = tuple[str, Mapping[str, Any]]
"""Where it stood, for messages, and what it said."""
P = ParamSpec("P")
T = TypeVar("T")


def rows_of(path: Path) -> list[Row]:
    """The rows of a .jsonl (one object a line) or .json (a list of objects) file.

    Raises:
        ValueError: it has no rows, or something in it is none; the message names file and line.
    """
    rows: list[Row] = []
    if path.suffix == ".json":
        if not isinstance(found := json_of(path, ", or name it .jsonl"), list):
            raise ValueError(f"{path}: needs a list of rows, got {shown(found)}; put them into [...], or name the file .jsonl.")
        rows = [(f"{path}, row {i}", row) for i, row in enumerate(found, 1)]
    else:
        for number, line in enumerate(decoded(path).split("\n"), 1):
            try:
                rows += [(f"{path}, line {number}", json.loads(line))] if line.strip() else []
            except (ValueError, RecursionError) as error:
                got = f"{line[:40]}..." if len(line) > 40 else line
                raise ValueError(f"{path}, line {number}: not JSON ({_fault(error)}), got {got!r}; mend or delete the line.") from error
    for row in rows:
        fields_of(row)
    if not rows:
        raise ValueError(f"{path} has no rows: there is nothing to read; is it the right file?")
    return rows


def json_of(path: Path, advice: str = "") -> Any:
    """What a JSON file says.

    Raises:
        ValueError: it cannot be read, or is no JSON; the message names file and line.
    """
    text = decoded(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"{path}, line {error.lineno}" if isinstance(error, json.JSONDecodeError) else f"{path}"
        raise ValueError(f"{where}: not JSON ({_fault(error)}); is it cut off? Mend the file{advice}.") from error


def _fault(error: Exception) -> str:
    """What Python's reader of JSON stumbled over: its own limits are named as such."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of thousands of digits"


ERRORS = ("strict", "replace", "ignore")


def text_of(file: Path, errors: str = "strict", advice: str = "") -> str:
    """`decoded`, with something in it."""
    text = decoded(file, errors, advice)
    if not text.strip():
        raise InputError(f"'{file}' is empty: there is nothing to read; give a file with text in it.")
    return text


def decoded(file: Path, errors: str = "strict", advice: str = "") -> str:
    """The text of a file, which must be UTF-8 without NUL; `replace` puts a replacement character for every bad byte, `ignore` drops it.

    Args:
        advice: what else can be done about bad bytes, for the message.

    Raises:
        ValueError: no such file, or bytes that are no text: says where.
    """
    if errors not in ERRORS:
        raise InputError(f"errors must be one of {', '.join(ERRORS)}, got '{errors}'.")
    try:
        data = file.read_bytes()
    except OSError as e:
        raise InputError(f"cannot read '{file}': {e.strerror or e}; give a text file.") from e
    if errors == "strict":
        at, what = data.find(b"\0"), "a NUL byte"
        try:
            data.decode()
        except UnicodeDecodeError as e:
            if not 0 <= at < e.start:
                at, what = e.start, f"byte 0x{data[e.start]:02x}, which is not UTF-8"
        if at >= 0:
            line = data.count(10, 0, at) + 1
            raise InputError(f"'{file}' has {what} at offset {at} (line {line}); is it a text? Convert it to UTF-8{advice}.")
    return data.decode("utf-8-sig", errors).replace("\0", "\N{REPLACEMENT CHARACTER}" if errors == "replace" else "")


def once(read: Callable[P, T]) -> Callable[P, T]:
    """Remembers what a reader has read, for as long as a relative path and `$CCM_DATA` mean the same: its arguments say where."""

    @lru_cache(maxsize=16)
    def kept(_: tuple[str, str], args: Any, kwargs: Any) -> T:
        return read(*args, **dict(kwargs))

    @wraps(read)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return kept((os.getcwd(), os.environ.get("CCM_DATA", "")), args, tuple(sorted(kwargs.items())))

    return call


CARVED: Mapping[str, range] = {"train": range(15, 100), "validation": range(5), "test": range(5, 15)}
"""The splits of a single file, as numbers of `part`."""


def part(text: str) -> int:
    """0..99 by a checksum, so that a carved split is the same in every run and a text is in one split only."""
    return zlib.crc32(text.strip().encode()) % 100


def home(path: str, name: str) -> Path:
    """`path`, or the folder `name` of `$CCM_DATA`.

    Raises:
        ValueError: there is neither; the message says what to give.
    """
    root = os.environ.get("CCM_DATA", "")
    place = Path(path).expanduser() if path else Path(root) / name
    if not (path or root):
        raise ValueError(f"needs files: give data.path=, or put a folder '{name}' at $CCM_DATA and set that.")
    if not place.exists():
        raise ValueError(f"'{place}' does not exist; give data.path=, or put the files there.")
    return place


def must(split: str, splits: tuple[str, ...], name: str) -> None:
    """Raises ValueError unless the dataset has the split."""
    if split not in splits:
        raise ValueError(f"{name} has the splits {', '.join(splits)}; got '{split}'.")


def fields_of(row: Row) -> Mapping[str, Any]:
    """Raises ValueError for a row that is no object."""
    where, fields = row
    if not isinstance(fields, Mapping):
        raise ValueError(f"{where}: needs an object {{...}}, got {shown(fields)}; mend it or leave it out.")
    return fields


def shown(value: object) -> str:
    """A value for a message, shortened, and its type."""
    return "nothing" if value is None else f"{reprlib.repr(value)} ({type(value).__name__})"
