"""Check a ledger with Python alone: `python standalone.py HOME_OR_LEDGER_FOLDER`; exit 0 sound, 1 damaged, 2 usage, 3
no damage, but an archive could not be unpacked: that takes Python 3.14 or the `zstd` program. Each damage is printed as
file, byte offset, reason. FORMAT.md says what is checked; seals and archives are the part of `standalone_seals.py`.
They share no code with the ledger, so that one mistake cannot hide in both; hence they open files in a pure room.
"""
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import standalone_seals as sealed  # type: ignore[import-not-found]
from standalone_seals import damages as damages
from standalone_seals import is_record, parse_record, report, sha

del sys.path[0]

def check_kept(kept: Any, who: object, folder: Path) -> None:
    for name, digest in kept:
        file = folder / "quarantine" / name
        if not file.is_file() or sha(file.read_bytes()).hex() != digest:
            report(f"quarantine/{name}", 0, f"it is gone, or not what {who} says was put there")

def check_record(now: Any, before: Any, stem: str, first_line: bool, folder: Path, seen: dict[Any, Any]) -> None:
    """ValueError if `now` may not follow `before`, the record before it ({} if that is lost)."""
    data = now["data"]
    if now["type"] in ("ledger.recovered", "ledger.cut", "ledger.restored"):
        check_kept([(cut["quarantine"], cut["sha256"]) for cut in data["cuts"] + data["found"]], now["seq"], folder)
    if before:
        number = before["n"] + 1 if before["more"] else 1
        if (now["before"], now["seq"], now["n"]) != (before["hash"], before["seq"] + 1, number):
            raise ValueError("the record does not follow the one before it")
    opens = f"{data['segment']:010}-e{data['epoch']:04}-{data['first_seq']:016}" if first_line else stem
    starts = not first_line or (now["type"] == "segment.open" and not now["more"])
    if not starts or now["ep"] != int(stem[12:-17]) or opens != stem:
        raise ValueError("the record is not of the segment that the file's name says, or does not begin it")
    if first_line and seen.setdefault("id", data["ledger"]) != data["ledger"]:
        raise ValueError("the segment belongs to another ledger")

def check_segment(data: bytes, before: Any, stem: str, ends: int, folder: Path, seen: dict[Any, Any]) -> Any:
    """`ends`: the last seq that belongs to this segment (0: it is the last). Returns its last record, {} if lost."""
    *lines, rest = data.split(b"\n")
    name, offset, good, now = f"{stem}.jsonl", 0, 0, before
    for line in lines:
        if ends and now.get("seq") == ends and not now["more"]:
            report(name, offset, "written by a superseded epoch after its successor began")
            return now
        before, now = now, {}
        try:
            now = parse_record(line)
            check_record(now, before, stem, not offset, folder, seen)
            seen[now["seq"]] = now["hash"]
        except (ValueError, KeyError, TypeError) as error:
            report(name, offset, error)
        offset += len(line) + 1
        good, seen["last"] = (offset, now["seq"]) if now and not now["more"] else (good, seen["last"])
    if is_record(rest[:-1]):
        report(name, offset, "the line does not end with a newline")
    elif not lines or (ends and (rest or now.get("seq", ends) != ends)):
        report(name, offset, "the segment does not end where the next one begins")
    elif now and good < offset + len(rest):
        print(f"{name}: from byte {good}: an unfinished write, which nobody was answered on")
    return now

def main(folder: Path) -> int:
    folder = folder / "ledger" if (folder / "ledger").is_dir() else folder
    marks = {name: (folder / name).read_bytes() for name in ("EPOCH", "HEAD") if (folder / name).is_file()}
    names = {path.name for path in folder.glob("*") if not re.fullmatch(r"\..*\.new|quarantine|\d.*\.idx", path.name)}
    found = {name: re.fullmatch(r"(\d{10}-e\d{4,20}-\d{16})(\.jsonl|\.jsonl\.zst|\.seal)", name) for name in names}
    stems = {match[1] for match in found.values() if match and match[2] != ".seal"}
    seals = sealed.seals_in(folder, {name for name in names if found[name]})
    if not stems and not marks:
        print(f"{folder}: there is no ledger here", file=sys.stderr)
        return 2
    for name in sorted({"EPOCH"} | {name for name in names if not found[name]} - {*marks, "MANIFEST.jsonl"}):
        if name not in marks and (name not in ("LOCK", "ARCHIVING") or (folder / name).stat().st_size):
            report(name, 0, "the file is missing" if name == "EPOCH" else "this is no file of a ledger, or not empty")
    order = sorted(stems | set(seals))
    for stem in sorted(stems):
        if any(other[:10] <= stem[:10] and int(other[12:-17]) > int(stem[12:-17]) for other in stems):
            report(f"{stem}.jsonl", 0, "begun by a superseded epoch after its successor began")
            order.remove(stem)
    seen, now = {0: "0" * 22, "last": 0}, {"seq": 0, "hash": "0" * 22, "n": 0, "more": False, "ep": 0}
    for stem, after in zip(order, [*order, ""][1:], strict=True):
        seal, before = seals.get(stem), len(damages)
        data = sealed.content(folder, stem, names, seal)
        if data is not None and len(damages) == before:
            now = check_segment(data, now, stem, seal["last_seq"] if seal else int(after[-16:] or 1) - 1, folder, seen)
            sealed.check(data, stem, seal if len(damages) == before else None)
        if seal:
            seen |= {"last": seal["last_seq"], seal["last_seq"]: seal["last_hash"]}
            now = dict(zip(("seq", "hash", "ep"), sealed.last(seal), strict=True), n=0, more=False)
            check_kept(seal["quarantined"].items() if data is None else (), f"{stem}.seal", folder)
    for name, line in marks.items():
        sealed.check_mark(name, line, seen, now.get("ep", 0))
    print(f"{folder}: {len(damages)} damages, {len(order)} segments, last complete seq {seen['last']}")
    return 1 if damages else 3 if sealed.say_unread() else 0

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])) if len(sys.argv) == 2 else print(__doc__, file=sys.stderr) or 2)
