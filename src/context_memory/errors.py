"""Errors that are a user's to mend: the command line prints their message and exits with 2, without a traceback.

A message says what was wrong, what came, and what to do. Anything else that is raised is a defect of ours and keeps its
traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Something given to us is wrong, or something outside of us is missing."""


class InputError(UserError, ValueError):
    """A value that cannot be used. To Python it is the ValueError that a library's user expects."""


class EmptySplit(InputError):
    """Nothing of a dataset is in one of its splits."""


class ModelError(UserError):
    """A model cannot be had, or its files are not what they should be."""


class UnknownModel(ModelError, LookupError):
    """A name that is neither a known model, a hub id, a folder nor a `.gguf` file."""


class UnknownFamily(UserError, LookupError):
    """An architecture that has no file in `families/`."""
