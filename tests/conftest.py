"""What several test files stand on."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Who starts the tests in the background of a script has them ignore SIGINT, and so would every process they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An example that takes long says that the machine is busy, and nothing of Hermes.
settings.register_profile("hermes", deadline=None)
settings.load_profile("hermes")


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that other users may enter, which pytest's own temporary folders are not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path
