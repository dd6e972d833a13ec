"""File leases from a shell. They need no daemon: the files are all there is."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.control import user
from daemon.leases import KEY, Held, LeaseFolder, Me, lease_exec
from daemon.system import SystemClock
from policies.fault import BadValue
from policies.quantity import parse_duration


def listing(call: Call) -> None:
    call.home.check(write=False)
    clock = SystemClock()
    held = LeaseFolder(call.home.leases, clock, Me.here()).held() if call.home.leases.is_dir() else []
    now_ms = clock.now().boot_ms
    if call.json:
        show.json(
            [
                {
                    "key": one.key,
                    "holder": one.holder,
                    "token": one.token,
                    "foreign": one.foreign,
                    "acquired": one.acquired,
                    "ends_in_ms": None if one.until_boot_ms is None else one.until_boot_ms - now_ms,
                    "file": one.file,
                    "note": one.note,
                }
                for one in held
            ]
        )
    elif held:
        show.table(
            ("KEY", "HOLDER", "BY", "SINCE", "ENDS IN", "NOTE"),
            [
                (
                    one.key,
                    one.holder,
                    "somebody else" if one.foreign else "this home's daemon",
                    show.moment(one.acquired, call.zone),
                    "-" if one.until_boot_ms is None else show.span(one.until_boot_ms - now_ms),
                    one.note,
                )
                for one in held
            ],
        )
    else:
        print("No key is held.")


def acquire(call: Call, key: str, ttl: str) -> int:
    folder = _folder(call, key)
    answer = folder.acquire(key, f"{user()}'s shell", _ms("--ttl", ttl), mine=False)
    if isinstance(answer, Held):
        raise _taken(answer)
    if call.json:
        show.json({"key": key, "token": answer})
    else:
        print(answer)
    return Exit.FINE


def release(call: Call, key: str, token: int | None, *, force: bool) -> int:
    folder = _folder(call, key)
    if token is None and not force:
        raise Failure(
            Exit.BAD_INPUT,
            f"whose lease of {key} is meant?",
            do="give the token that `lease acquire` printed (--token), or --force to take it from whoever holds it",
        )
    if not folder.release(key, token, force=force):
        held = [one for one in folder.held() if one.key == key]
        if held:
            raise Failure(Exit.HELD, f"{key} is not held by that token but by {held[0].holder}", where=held[0].file)
        raise Failure(Exit.UNKNOWN, f"nobody holds {key}", do="see `hermesd lease list`")
    if call.json:
        show.json({"key": key, "released": True})
    else:
        print(f"{key} is free.")
    return Exit.FINE


def execute(call: Call, key: str, command: Sequence[str], ttl: str, wait: str) -> int:
    folder = _folder(call, key)
    return lease_exec(folder, key, command, _ms("--ttl", ttl) / 1000, _ms("--wait", wait) / 1000 if wait else None)


def _folder(call: Call, key: str) -> LeaseFolder:
    if not KEY.fullmatch(key):
        raise Failure(Exit.BAD_INPUT, f"{key!r} is no lease key", do="write 1 to 120 letters, digits and . _ : / @ -")
    call.home.check(write=True)
    call.home.leases.mkdir(mode=0o700, exist_ok=True)
    return LeaseFolder(call.home.leases, SystemClock(), Me.here())


def _ms(option: str, text: str) -> int:
    try:
        return parse_duration(text)
    except BadValue as error:
        raise Failure(Exit.BAD_INPUT, f"{option}: {error}", do=error.advice) from error


def _taken(held: Held) -> Failure:
    since = f" since {held.acquired}" if held.acquired else ""
    do = held.note or "wait, or look who it is: `hermesd lease list`"
    return Failure(Exit.HELD, f"{held.key} is held by {held.holder}{since}", where=held.file, do=do)
