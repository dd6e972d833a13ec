"""The integrity gate: named invariants, each with its verdict and what was looked at. One that does not hold blocks
every change of this cycle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from policies.upgrade.facts import Integrity, Invariant, LeaseNow, Planned, Probe, Question
from policies.upgrade.policy import UpgradePolicy
from state.upgrades import figures

Json = Any

EVIDENCE_MAX = 300
_DERIVED = ("state/", "snapshots/")


def gate(
    question: Question, granted: Sequence[Planned], cycles: Mapping[str, Sequence[str]], hashes: tuple[str, str],
    lanes: int, policy: UpgradePolicy,
) -> list[Invariant]:  # fmt: skip
    """`granted`: what would be changed. `hashes`: of this plan as it was decided, and as it came out when it was asked
    again with the same inputs in another order."""
    integrity, leases = question["integrity"], question["leases"]
    probes = {row["key"]: question["probes"][row["key"]] for row in granted}
    roles = {row["key"]: row["role"] for row in granted}
    run = question["run"]
    asked: list[tuple[str, Callable[[], tuple[bool, str]]]] = [
        ("the ledger's chain verifies", lambda: _chain(integrity)),
        ("decisions are reproduced from their recorded inputs", lambda: _decisions(integrity, hashes)),
        ("every granted reservation has a matching active lease", lambda: _reservations(integrity, leases, run)),
        ("active leases are unique by key", lambda: _unique(integrity, leases, probes)),
        ("no lease held here has expired", lambda: _unexpired(integrity, leases)),
        ("every granted repository is clean and on its branch", lambda: _clean(probes)),
        ("the topology of what is granted is acyclic", lambda: _acyclic(probes, cycles)),
        ("state files carry the ledger's head", lambda: _views(integrity)),
        ("the disk has room for the change", lambda: _room(integrity, probes, roles, lanes, policy)),
    ]
    found: list[Invariant] = []
    for name, look in asked:
        ok, evidence = look()
        found.append({"name": name, "ok": ok, "evidence": evidence[:EVIDENCE_MAX]})
    return found


def broken(invariants: Sequence[Invariant]) -> str:
    """What does not hold, in words; "" if all does."""
    return "; ".join(f"{one['name']}: {one['evidence']}" for one in invariants if not one["ok"])


def _findings(integrity: Integrity, derived: bool) -> list[str]:
    return [
        f"{one.get('where', '')} {one.get('what', '')}".strip()
        for one in integrity["findings"]
        if one.get("where", "").startswith(_DERIVED) == derived
    ]


def _chain(integrity: Integrity) -> tuple[bool, str]:
    against = _findings(integrity, derived=False)
    if against:
        return False, against[0]
    if not integrity["ok"] and not integrity["findings"] and not integrity["decisions_differing"]:
        return False, "it could not be read again"
    if integrity["findings_in_all"] > len(integrity["findings"]):
        return False, f"{integrity['findings_in_all']} findings, more than are told"
    if not integrity["records"]:
        return False, "no record was read"
    return True, f"{integrity['records']} records in {integrity['segments']} segments, up to {integrity['hash'][:16]}"


def _decisions(integrity: Integrity, hashes: tuple[str, str]) -> tuple[bool, str]:
    if hashes[0] != hashes[1]:
        return False, f"this plan came out as {hashes[0]}, and asked again as {hashes[1]}"
    if integrity["decisions_differing"]:
        different = [one for one in integrity["decisions"] if one["hash"] != one["again"]]
        shown = f": record {different[-1]['seq']} says {different[-1]['hash']}" if different else ""
        return (
            False,
            f"{integrity['decisions_differing']} of {integrity['decisions_compared']} come out otherwise{shown}",
        )
    return True, f"this plan twice, and {integrity['decisions_compared']} earlier decisions by a replay"


def _reservations(integrity: Integrity, leases: Mapping[str, LeaseNow], run: str) -> tuple[bool, str]:
    files = {(one["key"], one["token"]): one for one in integrity["leases"] if not one["foreign"]}
    mine = 0
    for key, lease in sorted(leases.items()):
        if lease["foreign"]:
            continue
        if not lease["holder_alive"]:
            return False, f"{key} is held by {lease['holder']}, which is over"
        # Others' may have been granted since the files were read; those of this run were there before its probes.
        if lease["holder"] == run:
            mine += 1
            file = files.get((key, lease["token"]))
            if file is None or file["holder"] != lease["holder"]:
                return False, f"{key} is granted to {run} and its lease file says otherwise"
    return True, f"{sum(not one['foreign'] for one in leases.values())} of ours, {mine} of this run"


def _unique(integrity: Integrity, leases: Mapping[str, LeaseNow], probes: Mapping[str, Probe]) -> tuple[bool, str]:
    seen: dict[str, str] = {}
    for one in integrity["leases"]:
        if one["key"] in seen and not one["expired"]:
            return False, f"{one['key']} is held by {seen[one['key']]} and by {one['holder']}"
        seen |= {} if one["expired"] else {one["key"]: one["holder"]}
    for key in sorted(probes):
        if f"repo:{key}" in leases:
            return False, f"repo:{key} is to be granted and held by {leases[f'repo:{key}']['holder']}"
    return True, f"{len(seen)} lease files, {len(leases)} leases in the graph"


def _unexpired(integrity: Integrity, leases: Mapping[str, LeaseNow]) -> tuple[bool, str]:
    for one in integrity["leases"]:
        lease = leases.get(one["key"])
        if not one["foreign"] and one["expired"] and lease is not None and lease["token"] == one["token"]:
            return False, f"{one['key']}, held by {one['holder']}"
    return True, f"{sum(not one['foreign'] for one in integrity['leases'])} lease files of ours"


def _clean(probes: Mapping[str, Probe]) -> tuple[bool, str]:
    for key, probe in sorted(probes.items()):
        wrong = [
            word
            for word, holds in (
                ("not readable", not probe["ok"]), ("dirty", probe["dirty_count"] > 0), ("detached", probe["detached"]),
                ("unborn", probe["unborn"]), ("bare", probe["bare"]), ("not whole", not probe["fsck_ok"]),
                (f"in a {probe['in_progress']}", bool(probe["in_progress"])), ("locked", bool(probe["locks"])),
                ("obstructed", bool(probe["obstructing"])),
                (f"on {probe['branch'] or 'no branch'}", probe["branch"] != probe["wanted"]),
            )
            if holds
        ]  # fmt: skip
        if wrong:
            return False, f"{key} is {', '.join(wrong)}"
    return True, f"{len(probes)} repositories"


def _acyclic(probes: Mapping[str, Probe], cycles: Mapping[str, Sequence[str]]) -> tuple[bool, str]:
    for key in sorted(probes):
        if key in cycles:
            return False, f"{' -> '.join(cycles[key])}"
    return True, f"{len(cycles)} repositories on cycles, none of them granted" if cycles else "no cycle"


def _views(integrity: Integrity) -> tuple[bool, str]:
    against = _findings(integrity, derived=True)
    if against:
        return False, against[0]
    compared = ", ".join(f"{count} {what}" for what, count in sorted(integrity["compared"].items()))
    return True, f"{compared or 'nothing'} compared byte for byte"


def _changed_bytes(probe: Probe, role: str) -> int:
    """What the change takes: in the objects, in the worktree, and in the work tree."""
    change = figures(probe, role)[2]
    return 3 * int(change["bytes"]) if change is not None else 0


def need_bytes(probe: Probe, role: str) -> int:
    """What an upgrade takes on the disk while it goes on: the change, and a whole worktree, for which the size of the
    object store stands."""
    return _changed_bytes(probe, role) + probe["objects_bytes"]


def _room(
    integrity: Integrity, probes: Mapping[str, Probe], roles: Mapping[str, str], lanes: int, policy: UpgradePolicy
) -> tuple[bool, str]:
    reserve = policy.disk_reserve_bytes
    if integrity["records"] and integrity["home_free_bytes"] < reserve // 8:
        return False, f"fewer than {reserve // 8 >> 20} MiB are free where the ledger is"
    # They may all be on one disk. The change stays, of worktrees there are as many at once as there are lanes.
    stays = sum(_changed_bytes(probe, roles[key]) for key, probe in probes.items())
    passes = sum(sorted((probe["objects_bytes"] for probe in probes.values()), reverse=True)[: max(1, lanes)])
    least = min((probe["disk_free_bytes"] for probe in probes.values()), default=0)
    if probes and least < stays + passes + reserve:
        return False, f"{stays + passes >> 20} MiB are needed and {reserve >> 20} kept free, and there are fewer"
    return True, f"{stays + passes >> 20} MiB are needed, and there is room" if probes else "nothing is needed"
