"""Check a ledger with Python alone: `python standalone.py HOME_OR_LEDGER_FOLDER`; exit 0 sound, 1 damaged, 2 usage.

It shares no code with the ledger, so that one mistake cannot hide in both; that is why it alone, in a room that has no
disk of its own, opens files. FORMAT.md says what is checked. Each damage is printed as file, byte offset, reason.
"""
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

damages: list[str] = []

def report(file: str, offset: int, reason: object) -> None:
    damages.append(f"{file}: byte {offset}: {reason}")
    print(damages[-1])

def parse(line: bytes, record: bool = True) -> Any:
    """The object in a line (no newline) that ends with the hash of the bytes before it; ValueError if it does not."""
    digest = hashlib.sha256(line[:-40]).hexdigest()[:32]
    if line[-40:] != b',"h":"' + digest.encode() + b'"}':
        raise ValueError("the line does not end with the hash of its bytes")
    if record and (line[:13] != b'{"v":1,"seq":' or line[-79:-73] != b',"p":"' or line[-41:-40] != b'"'):
        raise ValueError("the line is not laid out as a record of format 1")
    return json.loads(line)

def check_record(now: Any, before: Any, name: str, first_line: bool, folder: Path, seen: dict[Any, Any]) -> None:
    """ValueError if `now` may not follow `before`, the record before it ({} if that is lost)."""
    data, epoch = now["data"], int(name.split("-")[1][1:])
    for cut in data["cuts"] + data["found"] if now["type"] == "ledger.recovered" else ():
        kept = folder / "quarantine" / cut["quarantine"]
        if not kept.is_file() or hashlib.sha256(kept.read_bytes()).hexdigest() != cut["sha256"]:
            report(f"quarantine/{kept.name}", 0, f"it is gone, or not what record {now['seq']} says was put there")
    if before:
        batch = (before["b"], before["n"] - 1) if before["n"] else (before["b"] + 1, max(now["n"], 0))
        if (now["p"], now["seq"], now["b"], now["n"]) != (before["h"], before["seq"] + 1, *batch):
            raise ValueError("the record does not follow the one before it")
    opens = f"{data['segment']:010}-e{data['epoch']:04}-{data['first_seq']:016}.jsonl" if first_line else name
    if (first_line and (now["type"] != "segment.open" or now["n"])) or now["ep"] != epoch or opens != name:
        raise ValueError("the record is not of the segment that the file's name says, or does not begin it")
    if first_line and seen.setdefault("id", data["ledger"]) != data["ledger"]:
        raise ValueError("the segment belongs to another ledger")

def check_segment(folder: Path, name: str, before: Any, ends: int, seen: dict[Any, Any]) -> Any:
    """`ends`: the last seq that belongs to this segment (0: it is the last). Returns its last record, {} if lost."""
    *lines, rest = (folder / name).read_bytes().split(b"\n")
    offset = good = 0
    for line in lines:
        if ends and before.get("seq") == ends and not before["n"]:
            report(name, offset, "written by a superseded epoch after its successor began")
            return before
        now: Any = {}
        try:
            now = parse(line)
            check_record(now, before, name, not offset, folder, seen)
            seen[now["seq"]] = now["h"]
        except (ValueError, KeyError, TypeError) as error:
            report(name, offset, error)
        before, offset = now, offset + len(line) + 1
        if before and not before["n"]:
            good, seen["last"] = offset, before["seq"]
    if len(rest) > 40 and rest[-41:-35] == b',"h":"' and rest[-3:-1] == b'"}':
        report(name, offset, "the line does not end with a newline")
    elif not lines or (ends and (rest or before.get("seq", ends) != ends)):
        report(name, offset, "the segment does not end where the next one begins")
    elif before and good < offset + len(rest):
        print(f"{name}: from byte {good}: an unfinished write, which nobody was answered on")
    return before

def main(folder: Path) -> int:
    folder = folder / "ledger" if (folder / "ledger").is_dir() else folder
    marks = {name: (folder / name).read_bytes() for name in ("EPOCH", "HEAD") if (folder / name).is_file()}
    names = {path.name for path in folder.glob("*") if not re.fullmatch(r"\..*\.new|quarantine", path.name)}
    segments = [name for name in sorted(names) if re.fullmatch(r"\d{10}-e\d{4,20}-\d{16}\.jsonl", name)]
    if not segments and not marks:
        print(f"{folder}: there is no ledger here", file=sys.stderr)
        return 2
    for name in sorted({"EPOCH", *names} - {*segments, *marks}):
        if name != "LOCK" or (folder / name).stat().st_size:
            report(name, 0, "the file is missing" if name == "EPOCH" else "this is no file of a ledger, or not empty")
    seen, before = {0: "0" * 32, "last": 0}, {"seq": 0, "h": "0" * 32, "b": 0, "n": 0, "ep": 0}
    for name, after in zip(segments, [*segments[1:], ""], strict=False):
        before = check_segment(folder, name, before, int(after.split("-")[2][:16]) - 1 if after else 0, seen)
    for name, data in marks.items():
        try:
            mark = parse(data[:-1], record=False)
            if data[-1:] != b"\n" or (mark["file"], mark["ledger"]) != (name, seen.get("id", mark["ledger"])):
                raise ValueError(f"it is not the {name} of this ledger")
            if mark["seq"] > seen["last"] or seen.get(mark["seq"], mark["hash"]) != mark["hash"]:
                raise ValueError(f"it names seq {mark['seq']} as durable, which the segments do not hold")
            if name == "EPOCH" and mark["epoch"] < before.get("ep", 0):
                raise ValueError("there is a segment of a later epoch")
        except (ValueError, KeyError) as error:
            report(name, 0, error)
    print(f"{folder}: {len(damages)} damages, {len(segments)} segments, last complete seq {seen['last']}")
    return 1 if damages else 0

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])) if len(sys.argv) == 2 else print(__doc__, file=sys.stderr) or 2)
