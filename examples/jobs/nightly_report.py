"""The function of nightly-report.yaml: counts a folder's files and names the largest ones."""

from pathlib import Path
from typing import Any


def build(folder: str, largest: int) -> dict[str, Any]:
    root = Path(folder).expanduser()
    sizes = sorted(((path.stat().st_size, str(path)) for path in root.rglob("*") if path.is_file()), reverse=True)
    return {
        "folder": str(root),
        "files": len(sizes),
        "bytes": sum(size for size, _ in sizes),
        "largest": [{"path": path, "bytes": size} for size, path in sizes[:largest]],
    }
