"""The commands of `ccm`: a file a command, found by looking into this folder.

`commands/x.py` defines a function `x` (or `x_`, where `x` is a word of Python's) that Typer can call, or a `typer.Typer`
called `app` for a command with sub-commands.
"""
