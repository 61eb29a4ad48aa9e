"""The bytes of tensors that are alive, found by walking whatever an object refers to: an account that nobody's own method can cook."""

from __future__ import annotations

import gc
from types import FunctionType, ModuleType

from torch import Tensor, nn


def alive(root: object) -> int:
    """Bytes of every floating tensor that can be reached, without asking the object; modules (the model) are not walked into."""
    seen: set[int] = set()
    storages: dict[int, int] = {}
    todo: list[object] = [root]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType, nn.Module)):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            if thing.is_floating_point():
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
            continue
        todo.extend(gc.get_referents(thing))
    return sum(storages.values())
