"""`hermesd upgrade calibrate`: whether the risks that plans estimated have come true, by a replay of the ledger."""

from __future__ import annotations

from typing import Any

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.policyfile import upgrade_policy
from policies.upgrade import calibrate as policy
from policies.upgrade.calibrate import Pairs, Tried

Json = Any


def calibrate(call: Call) -> int:
    reading = call.reading
    rules, problem = upgrade_policy(call.home).read()
    tried = list(policy.replayed(reading.records(), rules))
    then = [(one.estimated, one.failed) for one in tried]
    now = [(one.now, one.failed) for one in tried]
    correction, judged = policy.fitted(now), policy.judged(now)
    if call.json:
        told = {"as_estimated": _scores(then), "by_todays_policy": _scores(now), "policy_problem": problem}
        show.json(
            {"upgrades": len(tried), "failed": sum(one.failed for one in tried), **told}
            | {"proposed": [list(pair) for pair in correction], "judged": judged and judged._asdict()}
        )
        return Exit.FINE
    if problem:
        print(f"{problem}\nThe last good policy is used.\n")
    if not tried:
        print("No upgrade has come to a proof yet: there is nothing to hold the estimates against.")
        return Exit.FINE
    _tell(call, tried, then, now)
    print()
    if not correction:
        print(f"No correction is proposed: that takes {policy.ENOUGH} upgrades of which some failed and some did not.")
        return Exit.FINE
    print("Proposed for policies/upgrades.yaml (today's parameters, corrected by this history):\n")
    print("risk:")
    print(f"  calibration: {[list(pair) for pair in correction]}")
    if judged is not None:
        better = "better" if judged.after < judged.before else "no better: leave it out"
        print(
            f"\nFitted on the first {judged.seen} and tried on the {judged.unseen} after them, which it had not seen:"
            f" Brier score {judged.after:.4f} with it, {judged.before:.4f} without ({better})."
        )
    return Exit.FINE


def _tell(call: Call, tried: list[Tried], then: Pairs, now: Pairs) -> None:
    first, last = (show.moment(one.at_ms, call.zone) for one in (tried[0], tried[-1]))
    failed = sum(one.failed for one in tried)
    print(f"{show.count(len(tried), 'upgrade')} came to a proof from {first} to {last}; {failed} failed it.\n")
    rows = [
        (
            f"{one.low:.3f} to {one.high:.3f}", one.upgrades, f"{one.estimated:.3f}", f"{one.observed:.3f}",
            f"{one.lower:.3f} to {one.upper:.3f}", "" if one.fits else "no",
        )
        for one in policy.reliability(then)
    ]  # fmt: skip
    show.table(("ESTIMATED", "UPGRADES", "MEAN", "FAILED", "95 %", "FITS"), rows)
    print()
    rate = policy.base_rate(then)
    blind = policy.brier([(rate, failed) for _, failed in then])
    show.facts(
        [
            ("Brier score as estimated", f"{policy.brier(then):.4f} (skill {policy.skill(then):+.3f})"),
            ("by today's policy", f"{policy.brier(now):.4f} (skill {policy.skill(now):+.3f})"),
            ("of always saying the rate", f"{blind:.4f} (rate {rate:.3f})"),
        ]
    )


def _scores(pairs: Pairs) -> Json:
    bins = [one._asdict() | {"fits": one.fits} for one in policy.reliability(pairs)]
    return {
        "brier": policy.brier(pairs), "skill": policy.skill(pairs), "rate": policy.base_rate(pairs),
        "reliability": bins,
    }  # fmt: skip
