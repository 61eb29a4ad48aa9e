"""What the fields of a row must be: texts, lists, options to choose among. Each refusal names the row and what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from context_memory.data._files import Row, fields_of, shown


def texts(row: Row, *names: str) -> list[str]:
    """Fields that must be texts with something in them.

    Raises:
        ValueError: one is missing, no text, or empty.
    """
    got = fields_of(row)
    for name in names:
        if not isinstance(got.get(name), str) or not got[name].strip() or not sound(got[name]):
            raise ValueError(f"{row[0]}: needs a text '{name}', got {shown(got.get(name))}; have: {', '.join(got) or 'no fields'}.")
    return [got[name] for name in names]


def sound(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON can name half a character (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def spoken(row: Row, *names: str) -> list[str]:
    """`texts`, where a number is as good as a text."""
    return texts((row[0], {k: str(v) if type(v) in (int, float) else v for k, v in fields_of(row).items()}), *names)


def listed(row: Row, name: str) -> list[Any]:
    """A field that must be a list.

    Raises:
        ValueError: it is missing, or no list.
    """
    got = fields_of(row)
    if not isinstance(got.get(name), list):
        raise ValueError(f"{row[0]}: needs a list '{name}', got {shown(got.get(name))}; have: {', '.join(got) or 'no fields'}.")
    return list(got[name])


def all_texts(where: str, what: str, values: Sequence[Any]) -> tuple[str, ...]:
    """Raises ValueError if one of them is no text; says which."""
    for i, value in enumerate(values, 1):
        if not isinstance(value, str) or not sound(value):
            raise ValueError(f"{where}: {what} {i} must be a text, got {shown(value)}.")
    return tuple(values)


def options_of(row: Row, output: str) -> tuple[str, ...]:
    """The answers to choose among, of which `output` must be one, each once; none where a row has no `options`, or an empty list. A number
    is as good as a text.

    Raises:
        ValueError: no list of at least two different texts, or the output is not among them.
    """
    where, fields = row
    given = listed(row, "options") if fields.get("options") is not None else []
    every = all_texts(where, "option", [str(o) if type(o) in (int, float) else o for o in given])
    for i, option in enumerate(every, 1):
        if not option.strip():
            raise ValueError(f"{where}: option {i} is empty, got {option!r}; write a text, or leave it out.")
    found = tuple(dict.fromkeys(every))  # some of MetaICL's rows say one twice
    if found and len({o.strip() for o in found}) < max(2, len(found)):
        raise ValueError(f"{where}: options must be at least two, each another text, got {list(every)}.")
    if found and output not in found:
        raise ValueError(f"{where}: output {output!r} must be one of the options {list(found)}, to the letter.")
    return found
