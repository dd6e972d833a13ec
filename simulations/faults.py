"""What goes wrong in the make-believe world, what must be survived, and what is outside.

Injected. Each class of `FAULTS` is on or off for a whole life, by chance one half; what is on strikes now and then.
- The daemon is killed before or after any operation on the disk, or in the middle of any of its acts; with `power` the
  machine dies, too: of what was not synced there may be nothing, a prefix, any sectors, NULs or all, a rename may have
  happened by half, a name may be lost, every process ends unseen, and the machine comes back under a new boot id.
  `point` does the same at the places where it hurts most, which are named in `POINTS`.
- The disk is full for a while, fails once or until the daemon is started again (EIO; after a failed sync the pages
  count as clean and are not), refuses (EROFS, EMFILE), or takes seconds for a sync.
- A byte of a file rots while the daemon is down, or a file of the ledger is cut short, is gone, or comes from an older
  backup.
- Workers never end, end unseen, report again after their end, and share process ids. Deliveries fail, hang, or are
  made and nobody hears of it.
- The wall clock is set by up to a day; the daemon gets no time for hours, or the machine sleeps.
- People edit jobs in the middle of a run, drop files, ask again with the same request, delete `state/`, snapshots and
  lease files, hold leases, and start a second daemon. A writer that lost its lock long ago appends once more.

To be survived. No acknowledged event is lost, nothing takes effect before it is durable, every slot has one decision,
every run one end; what can be recovered is; and what cannot be told from a lie ends in refusal, which changes nothing,
until a person puts the file back. All of it is said by the checkers, and by the tables of `simulations.oracle_sqlite`.

Outside. A device that says that it synced and did not, beyond what rot shows. A whole consistent older copy of the
ledger's folder with its own HEAD and EPOCH: that is a ledger, and only who remembers a later head can tell. Two bytes
changed so that both hashes fit. An editor that ignores lease files. EINTR, which Python retries. Threads, real signals
and real processes: the tests on real files and processes have those.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from ledger.disk import Locked
from ledger.errors import Full, Poisoned
from ledger.instant import Now
from ledger.record import Draft
from policies.foreign import SeenLease
from simulations import checkers

if TYPE_CHECKING:
    from simulations.world import World

Reasons = frozenset[str]
NOTHING: Reasons = frozenset()


class Point(NamedTuple):
    """Where a crash hurts most: an operation of the disk ("verb path") or an act of the daemon."""

    operation: str
    after: bool


POINTS = {
    "a batch is written and not synced": Point(r"write ledger/.*\.jsonl$", after=True),
    "a batch is durable and nobody was told": Point(r"sync ledger/.*\.jsonl$", after=True),
    "an epoch is claimed and not used": Point(r"replace ledger/\.EPOCH", after=True),
    "a new head is noted by half": Point(r"replace ledger/\.HEAD", after=True),
    "the next segment has no name yet": Point(r"replace ledger/\..*\.jsonl\.new", after=False),
    "the next segment has a name that may be lost": Point(r"replace ledger/\..*\.jsonl\.new", after=True),
    "a segment is not sealed yet": Point(r"create ledger/\..*\.seal\.new", after=False),
    "a seal is not noted in the manifest": Point(r"set_read_only ledger/", after=True),
    "a tail is kept and not cut": Point(r"truncate ledger/.*\.jsonl$", after=False),
    "a tail is cut and that is not synced": Point(r"truncate ledger/.*\.jsonl$", after=True),
    "a tail is being kept": Point(r"replace ledger/quarantine/", after=True),
    "a snapshot is named and may be lost": Point(r"replace snapshots/", after=True),
    "older snapshots are going": Point(r"remove snapshots/", after=False),
    "a lease is granted and its file not there": Point(r"act lease ", after=False),
    "a lease file is there and the run has not begun": Point(r"act start ", after=False),
    "a run has begun and nobody noted it": Point(r"act started ", after=False),
    "a run is to be stopped and no signal was sent": Point(r"act stop ", after=False),
    "a run is to be killed and no signal was sent": Point(r"act kill ", after=False),
    "a run is over and its lease file still there": Point(r"act withdraw ", after=False),
}


_RARE = ("a run is to be stopped and no signal was sent", *["a run is to be killed and no signal was sent"] * 8)
"""Hardly come by in a short life, and so drawn more often."""


class Fault(NamedTuple):
    what: str
    one_in: int
    """How many steps of a life go by, on average, before it strikes; 0: it is a condition, or strikes at a start."""
    strike: Callable[[World, Random], Reasons]
    """Do it; the reasons that the daemon is given to look."""


class Luck:
    """Which faults strike when. Each strike is decided on its own, so that one can be left out and the others stay."""

    def __init__(self, seed: int, faults: frozenset[str], without: frozenset[str]) -> None:
        self.seed, self.faults, self._without = seed, faults, without
        self.struck: list[str] = []
        """What has struck so far: "class@step", the names that `without` takes."""
        self._active = [(place, name) for place, name in enumerate(FAULTS) if name in faults and FAULTS[name].one_in]

    def strikes(self, step: int) -> list[tuple[Fault, Random]]:
        if not self._active:
            return []
        dice = blake2b(f"{self.seed} luck {step}".encode(), digest_size=2 * len(FAULTS)).digest()
        found = []
        for place, name in self._active:
            fault = FAULTS[name]
            if int.from_bytes(dice[2 * place : 2 * place + 2], "big") * fault.one_in < 65_536:
                chance = self.chance(name, step)
                if chance is not None:
                    found.append((fault, chance))
        return found

    def chance(self, name: str, step: int, one_in: int = 1) -> Random | None:
        """What decides the details of a strike; None if it does not come."""
        told = f"{name}@{step}"
        if name not in self.faults or told in self._without:
            return None
        chance = Random(f"{self.seed} {told}")
        if one_in > 1 and chance.randrange(one_in):
            return None
        self.struck.append(told)
        return chance


def _die(world: World, chance: Random) -> Reasons:
    """Within the next operations of the disk, or the next acts."""
    if chance.random() < 0.5:
        ahead = chance.choice((5, 30, 150))
        world.disk.cut_power(world.disk.operations + chance.randint(1, ahead), after=chance.random() < 0.5)
    else:
        world.host.deadly_in = chance.randint(1, 15)
    return NOTHING


def _die_at_a_point(world: World, chance: Random) -> Reasons:
    point = POINTS[chance.choice([*POINTS, *_RARE])]
    times = chance.choice((1, 1, 1, 3))
    if point.operation.startswith("act "):
        world.host.deadly_at = (point.operation.removeprefix("act "), times)
    else:
        world.disk.cut_power_at(point.operation, after=point.after, times=times)
    return NOTHING


def _fill(world: World, chance: Random) -> Reasons:
    world.disk.capacity_bytes = world.disk.used_bytes() + chance.choice((0, 40, chance.randint(0, 4_000)))
    world.full_until_step = world.step + chance.randint(1, 4)
    return NOTHING


def _fail(world: World, chance: Random) -> Reasons:
    if chance.random() < 0.5:
        world.disk.fail_at(r"sync ledger/0.*\.jsonl$", errno.EIO)
        return NOTHING
    operation = world.disk.operations + chance.randint(1, chance.choice((3, 30)))
    world.disk.fail(operation, errno.EIO, sticky=chance.random() < 0.4)
    return NOTHING


def _refuse(world: World, chance: Random) -> Reasons:
    """What the kernel says when a disk has gone read-only, or the process has too many files open."""
    operation = world.disk.operations + chance.randint(1, 12)
    world.disk.fail(operation, chance.choice((errno.EROFS, errno.EMFILE)), sticky=chance.random() < 0.5)
    return NOTHING


def _slow(world: World, chance: Random) -> Reasons:
    world.slow_syncs = [chance.randint(100, 40_000) for _ in range(chance.randint(1, 4))]
    return NOTHING


def _jump(world: World, chance: Random) -> Reasons:
    jump_ms = chance.choice((-86_400, -3_600, -30, 30, 3_600, 86_400)) * 1_000
    world.clock.wall_ns += jump_ms * 1_000_000
    world.jumped_ms += jump_ms
    return NOTHING


def _starve(world: World, chance: Random) -> Reasons:
    """The daemon is stopped, or the machine sleeps: processes may have gone on, and much is overdue at once."""
    world.clock.advance_ns(chance.choice((600, 3_600, 10 * 3_600)) * 1_000_000_000)
    return NOTHING


def _hold_a_lease(world: World, chance: Random) -> Reasons:
    """A polite editor: it takes no key whose file is there, or that a run has been granted."""
    key = chance.choice(("repo:a", "gpu"))
    if key in world.host.lease_files or (world.loop is not None and key in world.loop.graph.leases):
        return NOTHING
    ends_boot_ms = world.clock.boot_ns // 1_000_000 + chance.choice((1_000, 60_000))
    world.host.foreign[key] = SeenLease(key, "editor", ends_boot_ms, "")
    # Else the daemon has not been told yet when it grants the key.
    return frozenset({"leases"}) if chance.random() < 0.5 else NOTHING


def _delete_what_is_derived(world: World, chance: Random) -> Reasons:
    """`state/` and snapshots, which replay gives back; lease files, which the next start gives back."""
    doomed = chance.choice((("state/",), ("snapshots/",), ("state/", "snapshots/")))
    world.disk.lose([path for path in world.disk.files() if path.startswith(doomed)])
    if chance.random() < 0.3:
        world.host.lease_files.clear()
    return NOTHING


def _start_another(world: World, chance: Random) -> Reasons:
    """A second daemon on the same home must find the lock held, and leave everything as it is."""
    del chance
    world.calm_faults()  # Who is refused is to be refused, and not to die in the place of the first.
    before = world.disk.files()
    twin = world.new_loop()
    try:
        twin.begin()
    except Locked:
        pass
    else:
        raise world.violation("of two daemons one is refused", twin.ledger.epoch)
    if {path for path, content in world.disk.files().items() if before.get(path) != content}:
        raise world.violation("who is refused has changed nothing", sorted(before))
    return NOTHING


def _append_as_a_zombie(world: World, chance: Random) -> Reasons:
    """A writer that was stopped, and lost its lock to a successor, comes back and appends once more."""
    if world.loop is None or world.disk.capacity_bytes is not None:
        return NOTHING
    world.calm_faults()
    old = world.loop.ledger
    world.disk.break_locks()
    if not world.restart():
        return NOTHING
    # Sometimes so much that it goes on in a segment of its own.
    said = {"text": "x" * (world.bounds.segment_bytes if chance.random() < 0.5 else 1)}
    with suppress(Full, Poisoned, OSError, ValueError):  # Refused outright is as good as fenced.
        old.append([Draft("x-zombie.spoke", "zombie", said)], Now(world.clock.wall_ns, world.clock.boot_ns))
    return NOTHING


def _rot_at_rest(world: World, chance: Random) -> Reasons:
    """The next start refuses and changes nothing, and then the file is put back; or the damage does no harm."""
    if world.loop is None or world.disk.capacity_bytes is not None:
        return NOTHING
    if not world.stop():  # That a file is gone of which no note was made, nobody could tell.
        world.start()
        return frozenset({"start"})
    files = world.disk.files()
    path, data = rot(files, world.backup, chance)
    world.host.trace.append(f"-- rot {path}: {len(files[path])} bytes, now {'gone' if data is None else len(data)}")
    if data is None:
        world.disk.lose([path])
    else:
        world.disk.corrupt(path, data)
    checkers.start_with_damage(world, path, files[path])
    world.start()
    return frozenset({"start"})


def _nothing(world: World, chance: Random) -> Reasons:
    del world, chance
    return NOTHING


FAULTS = {
    "kill": Fault("the daemon is killed before, in or after anything it does", 12, _die),
    "power": Fault("the machine dies with it, and what was not synced may be lost", 14, _die),
    "point": Fault("either, at a place where it hurts most", 6, _die_at_a_point),
    "full": Fault("the disk is full for a while", 10, _fill),
    "error": Fault("an operation on the disk fails, and a sync that failed lies about it", 15, _fail),
    "refused": Fault("the disk has gone read-only, or too many files are open", 20, _refuse),
    "slow": Fault("a sync takes seconds", 12, _slow),
    "rot": Fault("bytes change at rest; older, shorter and missing files", 10, _rot_at_rest),
    "derived": Fault("people delete state/, snapshots and lease files", 15, _delete_what_is_derived),
    "jump": Fault("the wall clock is set", 12, _jump),
    "starve": Fault("the daemon gets no time, or the machine sleeps, for hours", 20, _starve),
    "foreign": Fault("others hold leases", 6, _hold_a_lease),
    "workers": Fault("workers hang, end unseen, report again after their end, share process ids", 0, _nothing),
    "notices": Fault("deliveries fail, hang, or are made unseen", 0, _nothing),
    "twin": Fault("a second daemon is started", 40, _start_another),
    "zombie": Fault("a writer without its lock appends once more", 30, _append_as_a_zombie),
    "edit": Fault("jobs are edited while they run", 0, _nothing),
    "files": Fault("files come, change and go", 0, _nothing),
    "again": Fault("who has no answer asks again with the same request", 0, _nothing),
}


def rot(files: dict[str, bytes], backup: dict[str, bytes], chance: Random) -> tuple[str, bytes | None]:
    """What has become of one file of a home at rest: its path, and what it holds now (None: it is gone).

    What is cut short or taken from a backup is a segment, because of these HEAD tells."""
    segments = [path for path in files if re.fullmatch(r"ledger/\d.*\.jsonl", path)]
    kind = chance.choice(("flip", "sealed", "sealed", "cut", "gone", "old", "other", "snapshot", "snapshot"))
    if kind == "flip":
        path = chance.choice(segments)
    elif kind == "sealed":
        path = segments[-2:][0]
    elif kind == "snapshot":
        path = max((path for path in files if path.startswith("snapshots/")), default=segments[-1])
    elif kind == "other":
        path = chance.choice([path for path in files if path.endswith((".seal", "MANIFEST.jsonl", "HEAD", "EPOCH"))])
    else:
        path = segments[-1]
    data = bytearray(files[path])
    if kind == "gone" or not data:  # Of an empty file, which a failed write may leave, no byte can rot.
        return path, None
    if kind == "old" and backup.get(path) not in (None, bytes(data)):
        return path, backup[path]
    if kind in ("cut", "old"):
        del data[chance.randrange(len(data)) :]
    else:
        data[chance.randrange(len(data))] ^= 1 << chance.choice((0, 0, 1, 5, 7))  # Mostly a digit becomes another one.
    return path, bytes(data)
