"""`python -m simulations.fleet --nights 365`: nightly upgrades of a fleet of make-believe repositories.

The loop, the planners, the saga and the ledger are those that ship; git is `simulations.gitworld`. By day upstream
works and people do; by night the fleet is upgraded, while remotes fail, people commit in the middle, and the daemon is
killed, or the machine dies. After each night every repository is looked at: at its old good commit or a new verified
one, nobody's work lost, nothing left behind, one outcome each, and no lease held.

Exit status 0: all of it held in every night. 1: it did not; the night is shown, with the command that shows it again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import yaml

from daemon.home import Home
from daemon.loop import Doors
from daemon.ports import CommandTask, Order, PythonTask
from daemon.version import ROOT
from ledger.instant import ms_of
from ledger.reader import read
from ledger.record import Record
from policies.upgrade.facts import Integrity, unread
from policies.upgrade.policy import adopt
from simulations import checkers
from simulations.checkers import Violation
from simulations.faults import NOTHING
from simulations.gitworld import GitWorld
from simulations.host import Process, SimSpawner
from simulations.world import World, _NoOutputs
from state.graph import OVER

Json = Any

JOB = "nightly"
DAY_MS = 86_400_000
SLOT_MS = ms_of("1970-01-01T03:30:00Z")
STEPS_MAX = 3_000
FAULTS = frozenset({"kill", "power", "point", "slow", "foreign"})
"""What strikes beside what happens to git: the classes of `simulations.faults` that a night can meet."""
REPOSITORIES = 8
_STEPS = "daemon.upgrades.steps:"


@dataclass(slots=True)
class _GitStep:
    world: FleetWorld
    verb: str
    args: Mapping[str, Json]
    key: tuple[str, int]
    chance: Random

    def done(self) -> int:
        self.world.results[self.key] = self._result()
        return 0

    def _result(self) -> Json:
        git = self.world.git
        if self.verb == "integrity":
            return self.world.integrity()
        return git.probe(self.args) if self.verb == "probe" else git.step(self.verb, self.args)

    def cut(self) -> None:
        if self.verb not in ("integrity", "probe"):
            self.world.git.cut(self.verb, self.args, self.chance)


@dataclass(slots=True)
class _Proof:
    world: FleetWorld
    name: str
    path: str
    mark: str
    chance: Random

    def done(self) -> int:
        repository = self.world.git.repositories[self.path]
        commit = repository.worktrees.get(self.mark, "") if self.name == "canary" else repository.files
        known = not repository.gone and commit in self.world.git.commits
        return self.world.git.proof(repository, commit, self.name, self.chance) if known else 2

    def cut(self) -> None:
        pass


class _GitSpawner(SimSpawner):
    """Steps of upgrades are acted out; any other process is as in every life."""

    def __init__(self, world: FleetWorld) -> None:
        super().__init__(world.host)
        self._world = world

    def process_of(self, order: Order) -> Process:
        task, world = order.task, self._world
        chance = Random(f"{world.seed}/{order.run}/{order.attempt}")
        process = self._process(order, chance)
        if isinstance(task, PythonTask) and task.call.startswith(_STEPS):
            verb = task.call.removeprefix(_STEPS)
            process.work = _GitStep(world, verb, task.kwargs, (order.run, order.attempt), chance)
        elif isinstance(task, CommandTask):
            mark, _, step = order.run.rpartition(".")
            path = f"/src/{mark.rpartition('.repo-')[2]}"
            process.work = _Proof(world, step.split("-")[0], path, mark, chance)
        return process

    def _process(self, order: Order, chance: Random) -> Process:
        host, odd = self._world.host, self._world.git.trouble
        host.next_pid += 1
        span_ms = int(chance.choice((30, 300, 3_000, 30_000)) * (0.5 + chance.random()))
        if odd and chance.random() < 0.004:
            span_ms = 1 << 40  # It hangs, until its timeout.
        boot_ms = host.clock.boot_ns // 1_000_000
        return Process(
            (order.run, order.attempt), JOB, host.next_pid, boot_ms, boot_ms + span_ms, 0, False, (),
            unheard=odd and chance.random() < 0.01,
        )  # fmt: skip


class _Outputs(_NoOutputs):
    def __init__(self, results: Mapping[tuple[str, int], Json]) -> None:
        self._results = results

    def result(self, run: str, attempt: int) -> Json:
        return self._results.get((run, attempt))


@dataclass
class FleetWorld(World):
    """A life whose steps are nights."""

    repositories: int = REPOSITORIES
    trouble: bool = True
    outcomes: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    people: bool = True
    """Whether people work in the repositories while they are upgraded."""
    busy: float = 0.04
    """How likely somebody does something between two looks of the daemon by night."""
    unproven: dict[str, str] = field(default_factory=dict)
    """Repository -> the commit that it could last not be brought back from, because a person was in the way."""

    def _define_jobs(self) -> None:
        self.view_every_ms, self.snapshot_every, self.lives_max = 36_000_000, 2_000, 200 + 20 * self.steps
        self.bounds = replace(self.bounds, segment_bytes=4_000_000)
        self.policy = replace(self.policy, max_running=16, max_decisions_per_plan=200)
        self.results: dict[tuple[str, int], Json] = {}
        self.git = GitWorld(self.seed, lambda key: self.host.lease_files.get(key), trouble=self.trouble)
        defaults = yaml.safe_load((ROOT / "policies" / "defaults" / "upgrades.yaml").read_text())
        self.upgrade_policy = adopt(defaults, {}).values()
        chance = Random(f"{self.seed} fleet")
        repos = []
        for number in range(self.repositories):
            key = f"r{number}"
            roles = ("primary", "mirror", "cache")[: chance.randint(1, 3)]
            self.git.add(key, roles)
            repos.append(
                {
                    "key": key, "path": f"/src/{key}",
                    "remotes": {role: f"ssh://{role}.example/{key}.git" for role in roles},
                    "depends_on": [f"r{number - chance.randint(1, 2)}"] if number > 1 and chance.random() < 0.5 else [],
                    "canary": ["smoke"] if chance.random() < 0.7 else None, "verify": ["test"],
                    "strategy": "rebase" if chance.random() < 0.2 else "fast-forward",
                    "priority": chance.choice((50, 50, 80)),
                }
            )  # fmt: skip
        schedule = {"cron": "30 3 * * *", "timezone": "UTC"}
        self.define(
            JOB,
            {"name": JOB, "kind": "upgrade", "schedule": schedule, "parallel": 4, "keep": {"runs": 5}, "repos": repos},
        )

    def _spawner(self) -> SimSpawner:
        return _GitSpawner(self)

    def _doors(self, spawner: SimSpawner) -> Doors:
        return replace(
            super()._doors(spawner), outputs=_Outputs(self.results), upgrades=lambda: self.upgrade_policy
        )  # fmt: skip

    def integrity(self) -> Integrity:
        """What the real step would find: the lease files as they are. That the ledger verifies and every decision
        comes out again is looked at by the checkers, at the end of the life and not each night."""
        assert self.loop is not None
        head = self.loop.ledger.head
        ours = [
            {"key": key, "holder": holder, "token": token, "foreign": False, "expired": False}
            for key, (holder, token) in sorted(self.host.lease_files.items())
        ]
        theirs = [
            {"key": key, "holder": lease.holder, "token": 0, "foreign": True, "expired": False}
            for key, lease in sorted(self.host.foreign.items())
            if key not in self.host.lease_files
        ]
        return {
            **unread(""), "ok": True, "seq": head.seq, "hash": head.hash, "records": head.seq, "segments": 1,
            "leases": [*ours, *theirs], "home_free_bytes": 1 << 40,
        }  # fmt: skip

    # Days and nights.

    def _live(self) -> None:
        self.start()
        self.rouse(frozenset({"start"}))
        nights, self.steps_lived = self.steps, 0
        for self.step in range(1, nights + 1):
            self._day()
            self._night()
        self.git.trouble = False
        self._calm_down()
        checkers.whole_life(self)
        self._settled_once()

    def _day(self) -> None:
        chance = Random(f"{self.seed} day {self.step}")
        for repository in self.git.repositories.values():
            self.git.upstream_works(repository.key, chance)
        for remote in self.git.remotes.values():
            if remote.state != "well" and chance.random() < 0.5:
                remote.state = "well"
        for path in self.git.repositories:
            if chance.random() < 0.6:
                self.host.trace.append(f"-- {path}: {self.git.person_tidies(path)}")
        if self.trouble:
            for _ in range(chance.choice((0, 0, 1, 2, 3))):
                self._somebody_acts(chance)
        now_ms = self.clock.wall_ns // 1_000_000
        slot_ms = (now_ms - SLOT_MS) // DAY_MS * DAY_MS + SLOT_MS + DAY_MS
        self.clock.advance_ns((slot_ms - now_ms) * 1_000_000)

    def _somebody_acts(self, chance: Random) -> None:
        if chance.random() < 0.4 or not self.people:
            self.git.remote_changes(chance)
            return
        path = chance.choice(sorted(self.git.repositories))
        self.host.trace.append(f"-- {path}: {self.git.person_acts(path, chance)}")

    def _night(self) -> None:
        chance = Random(f"{self.seed} night {self.step}")
        self.rouse(frozenset({"timer", "housekeeping"}))
        for turn in range(STEPS_MAX):
            assert self.loop is not None
            if not self.loop.graph.active:
                self._rest()
                return
            self.steps_lived += 1
            reasons = frozenset({"timer"})
            now_ms = self.clock.wall_ns // 1_000_000
            self.clock.advance_ns(max(0, min(self._next_ms(), now_ms + 3_600_000) - now_ms) * 1_000_000)
            if self.trouble and chance.random() < self.busy:
                self._somebody_acts(chance)
            if self.trouble and chance.random() < 0.02:
                self.git.upstream_works(f"r{chance.randrange(self.repositories)}", chance)
            if chance.random() < 0.2:
                for fault, details in self.luck.strikes(100_000 * self.step + turn):
                    reasons |= fault.strike(self, details)
            self.rouse(reasons)
        assert self.loop is not None
        left = {run.name: (run.state, run.reason) for run in self.loop.graph.active.values()}
        raise self.violation("a night comes to its end", (left, self.timer_ms))

    def _rest(self) -> None:
        """What must hold after each night."""
        assert self.loop is not None
        graph = self.loop.graph
        (upgrade,) = graph.upgrades.values()
        run = graph.run(upgrade.run)
        if run is None or run.state not in OVER:
            raise self.violation("a night comes to its end", upgrade.run)
        for row in upgrade.plan.get("repos", ()):
            self.verdicts[row["verdict"]] += 1
        for data in upgrade.settled.values():
            self.outcomes[data["outcome"]] += 1
        stray = {key: held for key, held in self.host.lease_files.items() if key.startswith("repo:")}
        if stray:
            raise self.violation("no lease is left after a night", stray)
        for repository in self.git.repositories.values():
            outcome = upgrade.settled.get(repository.key, {}).get("outcome", "")
            problem = self.git.broken(repository)
            if problem.startswith("its branch is at") and outcome == "needs_person" and self.people:
                # It could not be rolled back, because a person was in the way. That is said, every night, until that
                # person does something about it, or a newer commit is verified.
                self.unproven[repository.key] = repository.tip
            elif problem.startswith("its branch is at") and self.unproven.get(repository.key) == repository.tip:
                continue
            elif problem:
                reason = upgrade.settled.get(repository.key, {}).get("reason", "")
                raise self.violation("no repository is left broken", (repository.key, problem, outcome, reason))

    def _settled_once(self) -> None:
        """Each repository one outcome in each run that came so far, counted from the events alone."""
        settled: Counter[tuple[str, str]] = Counter()
        planned: dict[str, set[str]] = {}
        for record in read(self.disk):
            self._note(record, settled, planned)
        for run, keys in planned.items():
            for key in keys:
                if settled[run, key] != 1:
                    raise self.violation("each repository has one outcome in each cycle", (run, key, settled[run, key]))
        if doubled := [pair for pair, times in settled.items() if times != 1]:
            raise self.violation("each repository has one outcome in each cycle", doubled[:3])

    @staticmethod
    def _note(record: Record, settled: Counter[tuple[str, str]], planned: dict[str, set[str]]) -> None:
        if record.type == "upgrade.settled":
            settled[record.data["run"], record.data["key"]] += 1
        elif record.type == "upgrade.planned":
            planned[record.data["run"]] = {row["key"] for row in record.data["repos"]}

    def violation(self, invariant: str, found: object) -> Violation:
        error = super().violation(invariant, found)
        told = str(error).rpartition("again: ")[0]
        again = (
            f"python -m simulations.fleet --seed {self.seed} --nights {self.steps} --repositories {self.repositories}"
        )
        again += f" --faults {','.join(sorted(self.drawn)) or 'none'}"
        other = Violation(f"{told}again: {again}")
        other.invariant = invariant
        return other


def live(
    seed: int, nights: int, *, repositories: int = REPOSITORIES, faults: frozenset[str] = FAULTS, people: bool = True,
    busy: float = 0.04,
) -> FleetWorld:  # fmt: skip
    world = FleetWorld(seed, faults, nights, NOTHING, repositories, people=people, busy=busy)
    world.live()
    return world


def main(arguments: list[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m simulations.fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--repositories", type=int, default=REPOSITORIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lives", type=int, default=1, help="so many seeds, one after another")
    parser.add_argument("--alone", action="store_true", help="nobody works in the repositories")
    parser.add_argument("--home", type=Path, help="leave the ledger there, for `hermesd --home`")
    parser.add_argument("--faults", default=",".join(sorted(FAULTS)), help="classes of simulations.faults, or none")
    asked = parser.parse_args(arguments)
    faults = frozenset(asked.faults.split(",")) - {"none", ""}
    for seed in range(asked.seed, asked.seed + asked.lives):
        began_s = time.monotonic()
        try:
            world = live(seed, asked.nights, repositories=asked.repositories, faults=faults, people=not asked.alone)
        except Violation as violation:
            print(violation)
            return 1
        told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in world.outcomes.most_common())
        print(
            f"seed {seed}: {asked.nights} nights of {asked.repositories} repositories, every invariant held: {told}; "
            f"{world.lives - 1} deaths of the daemon, {len(world.host.begun)} processes, {len(world.unproven)} left "
            f"for a person to roll back, {time.monotonic() - began_s:.0f} s",
            flush=True,
        )
        if asked.home is not None:
            keep(world, asked.home)
    return 0


def keep(world: FleetWorld, path: Path) -> None:
    """The ledger of a life, in a home that was not there before."""
    Home(path).make()
    for name, content in world.disk.files().items():
        if name.startswith("ledger/"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
