"""The `frcnn` command, run in this process."""

from __future__ import annotations

import pytest

from frcnn import cli


def run(*arguments: object) -> int:
    """Exit code of a command line."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code or 0
