"""Making a home: `hermesd init`."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "jobs"


def init(call: Call, *, examples: bool) -> None:
    home = call.home
    made = not home.settings_file.exists()
    there = home.path.exists()
    if made:
        home.make()
    else:
        home.check(write=False)
    copied = _copy_examples(home.jobs / "examples") if examples else []
    if call.json:
        show.json({"home": str(home.path), "made": made, "examples": [str(path) for path in copied]})
        return
    if made:
        print(f"{'Completed' if there else 'Made'} the home {home.path}.")
    else:
        print(f"There is a home at {home.path} already; nothing of it was changed.")
    if copied:
        print(f"{len(copied)} examples are in {home.jobs / 'examples'}: copy what you want into {home.jobs}.")
    option = f" --home {shlex.quote(str(home.path))}" if call.home_given else ""
    print("Next:")
    show.facts(
        [
            (
                "  write a job",
                f"{home.jobs}/NAME.yaml" + ("" if examples else "   (`hermesd init --examples` brings some)"),
            ),
            ("  check it", f"hermesd jobs check{option}"),
            ("  see when", f"hermesd next{option}"),
            ("  start the daemon", f"hermesd run{option}   (or `hermesd service install{option}`)"),
            ("  settings", str(home.settings_file)),
        ]
    )


def _copy_examples(folder: Path) -> list[Path]:
    """Into a folder of their own, where they are not jobs yet. What is there stays as it is."""
    if not EXAMPLES.is_dir():
        raise Failure(Exit.UNAVAILABLE, "this installation came without the examples", where=str(EXAMPLES))
    folder.mkdir(mode=0o700, exist_ok=True)
    copied = []
    for path in sorted(EXAMPLES.iterdir()):
        target = folder / path.name
        if path.is_file() and not target.exists():
            shutil.copyfile(path, target)
            target.chmod(0o700 if path.stat().st_mode & 0o100 else 0o600)
            copied.append(target)
    return copied
