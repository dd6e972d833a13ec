"""hermes-mini: the small model that comes with Hermes. Its folder is loaded by the same code as any other model."""

from pathlib import Path

FOLDER = Path(__file__).parent / "weights"
