"""What `standalone.py` needs for seals, the manifest and archives. Like it, this shares no code with the ledger."""
import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

damages: list[str] = []
unread: list[str] = []

def report(file: str, offset: int, reason: object) -> None:
    damages.append(f"{file}: byte {offset}: {reason}")
    print(damages[-1])

def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()

def root(leaves: list[bytes]) -> str:
    while len(leaves) > 1:  # the Merkle tree hash of RFC 6962
        odd = leaves[len(leaves) // 2 * 2 :]
        leaves = [sha(b"\1" + left + right) for left, right in zip(leaves[::2], leaves[1::2], strict=False)] + odd
    return leaves[0].hex()

def hashed(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(sha(data))[:22]

def parse(line: bytes) -> Any:
    """The object in a line (no newline) that ends with the hash of the bytes before it; ValueError if it does not."""
    if not is_whole(line):
        raise ValueError("the line does not end with the hash of its bytes")
    return json.loads(line)

def is_whole(line: bytes) -> bool:
    return line[-30:] == b',"h":"' + hashed(line[:-30]) + b'"}'

def parse_record(line: bytes) -> Any:
    """As `parse`, with what follows from the fields: `hash`, that of the record `before`, and if there is `more` of its
    batch, in which it is number `n`."""
    if not is_record(line):
        raise ValueError("the line is not laid out as a record of format 2 that ends with the start of its hash")
    now = json.loads(line)
    if now.get("of", now.get("n")) != now.get("n"):
        raise ValueError("the record is the last of its batch, and has not the number of the last")
    told = {"hash": hashed(line[:-10]).decode(), "before": now["h"][:22], "more": "n" in now and "of" not in now}
    return {"n": 1} | now | told

def is_record(line: bytes) -> bool:
    """What is torn off may end as a line does, within; its hash tells."""
    return line[:7] == b'{"seq":' and line[-38:-32] == b',"h":"' and line[-10:] == hashed(line[:-10])[:8] + b'"}'

def unpack(packed: bytes) -> bytes:
    """What is in an archive. ValueError if it is damaged, ImportError if there is nothing here to unpack it with."""
    frames, behind = packed[: -17 - int(packed[-9:-1])], packed[-17 - int(packed[-9:-1]) :]
    ends = (0x184D2A5E).to_bytes(4, "little") + (len(behind) - 8).to_bytes(4, "little"), b"%08d\n" % (len(behind) - 17)
    if (parse(behind[8:-10])["sha256"], behind[:8], behind[-10:]) != (sha(frames).hex(), ends[0], b"\n" + ends[1]):
        raise ValueError("the archive's bytes are not those that its trailer vouches for")
    if sys.version_info < (3, 14) and shutil.which("zstd"):
        return subprocess.run(["zstd", "-dcq"], input=frames, capture_output=True, check=True).stdout
    from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    return bytes(zstd.decompress(frames))

def check_manifest(data: bytes, seals: dict[str, Any]) -> None:
    *lines, rest = data.split(b"\n")
    leaves: list[bytes] = []
    offset, before = 0, "0" * 22
    for line in lines:
        try:
            entry = parse(line)
            leaves.append(sha(b"\0" + line[line.index(b'"seal":') + 7 : line.index(b',"root":"')]))
            if (entry["p"], entry["root"], entry["seal"]["segment"]) != (before, root(leaves), len(leaves)):
                raise ValueError("the line does not follow the one before it")
            seals[f"{len(leaves):010}-e{entry['seal']['epoch']:04}-{entry['seal']['first_seq']:016}"] = entry["seal"]
        except (ValueError, KeyError) as error:
            return report("MANIFEST.jsonl", offset, error)
        offset, before = offset + len(line) + 1, entry["h"]
    if is_whole(rest[:-1]):
        report("MANIFEST.jsonl", offset, "the line does not end with a newline")

def check_seals(folder: Path, names: set[str], seals: dict[str, Any]) -> None:
    for stem in sorted({name[:-5] for name in names if name.endswith(".seal")} | set(seals)):
        try:
            line = (folder / f"{stem}.seal").read_bytes()
            seal = parse(line[:-1])
            named = f"{seal['segment']:010}-e{seal['epoch']:04}-{seal['first_seq']:016}"
            if (named, seals.setdefault(stem, seal), line[-1:]) != (stem, seal, b"\n"):
                raise ValueError("it is not the seal of this segment, or the manifest has another one")
        except (ValueError, KeyError, OSError) as error:
            report(f"{stem}.seal", 0, error)

def seals_in(folder: Path, names: set[str]) -> dict[str, Any]:
    """Stem of a segment -> its seal, by the manifest and by the files beside the segments, which must agree."""
    seals: dict[str, Any] = {}
    unread.clear()
    if (folder / "MANIFEST.jsonl").is_file():
        check_manifest((folder / "MANIFEST.jsonl").read_bytes(), seals)
    check_seals(folder, names, seals)
    return seals

def content(folder: Path, stem: str, names: set[str], seal: Any) -> bytes | None:
    """What the segment holds, archived or not; None if that cannot be had."""
    file, data = folder / f"{stem}.jsonl", None
    packed = folder / f"{stem}.jsonl.zst"
    if file.name not in names and packed.name not in names:
        report(file.name, 0, "the sealed segment is missing")
    try:
        data = unpack(packed.read_bytes()) if packed.name in names else None
        if data is not None and seal and sha(data).hex() != seal["sha256"]:
            raise ValueError("the archive's content is not that which the seal names")
    except ImportError:
        unread.append(packed.name)
    except Exception as error:
        report(packed.name, 0, error)
    return file.read_bytes() if file.name in names else data

def check(data: bytes, stem: str, seal: Any) -> None:
    """A segment's bytes against its seal."""
    if seal and sha(data[: seal["size_bytes"]]).hex() != seal["sha256"]:
        report(f"{stem}.jsonl", 0, "its bytes are not those that its seal names")
    elif seal and root([sha(b"\0" + line) for line in data[: seal["size_bytes"]].split(b"\n")[:-1]]) != seal["merkle"]:
        report(f"{stem}.seal", 0, "its Merkle root is not that of the segment's lines")

def last(seal: Any) -> tuple[Any, ...]:
    return seal["last_seq"], seal["last_hash"], seal["epoch"]

def check_mark(name: str, line: bytes, seen: dict[Any, Any], epoch: int) -> None:
    try:
        mark = parse(line[:-1])
        if line[-1:] != b"\n" or (mark["file"], mark["ledger"]) != (name, seen.get("id", mark["ledger"])):
            raise ValueError(f"it is not the {name} of this ledger")
        if mark["seq"] > seen["last"] or seen.get(mark["seq"], mark["hash"]) != mark["hash"]:
            raise ValueError(f"it names seq {mark['seq']} as durable, which the segments do not hold")
        if name == "EPOCH" and mark["epoch"] < epoch:
            raise ValueError("there is a segment of a later epoch")
    except (ValueError, KeyError) as error:
        report(name, 0, error)

def say_unread() -> bool:
    print(*(f"{name} could not be read: install zstd, or use Python 3.14" for name in unread), sep="\n", end="")
    return bool(unread)
