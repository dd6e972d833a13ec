"""Policies in force: the defaults that come with Hermes, and a home's overrides in `policies/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from daemon.document import Unreadable, read_document
from daemon.home import Home
from daemon.version import ROOT
from policies.policy import IllegalPolicy, SchedulingPolicy, adopt
from policies.upgrade.policy import UpgradePolicy
from policies.upgrade.policy import adopt as adopt_upgrades

Json = Any
P = TypeVar("P")

SCHEDULING, UPGRADES = "scheduling.yaml", "upgrades.yaml"
"""The files of `policies/` that are read."""


class PolicyFile(Generic[P]):
    """A policy in force: the defaults that come with Hermes, and the home's override as long as it is legal."""

    def __init__(self, folder: Path, name: str, adopt: Callable[[Mapping[str, Json], Mapping[str, Json]], P]) -> None:
        self._path, self._adopt = folder / name, adopt
        self._defaults = yaml.safe_load((ROOT / "policies" / "defaults" / name).read_text())
        self._good = adopt(self._defaults, {})

    def read(self) -> tuple[P, str]:
        """The policy, and what is wrong with the override; then the last good one stays."""
        try:
            override = (read_document(self._path)[0] or {}) if self._path.exists() else {}
            if not isinstance(override, dict):
                return self._good, f"{self._path}: a policy is written as `name: value`, one a line"
            self._good = self._adopt(self._defaults, override)
        except IllegalPolicy as error:
            return self._good, f"{self._path}: {error}; the names are {', '.join(self._defaults)}"
        except Unreadable as error:
            line, column = error.position
            place = f"{self._path}:{line}:{column}" if line else str(self._path)
            return self._good, f"{place}: {error.message}" + (f". {error.advice}" if error.advice else "")
        return self._good, ""


def scheduling_policy(home: Home) -> PolicyFile[SchedulingPolicy]:
    return PolicyFile(home.policies, SCHEDULING, adopt)


def upgrade_policy(home: Home) -> PolicyFile[UpgradePolicy]:
    return PolicyFile(home.policies, UPGRADES, adopt_upgrades)
