"""A small language over the graph, for `hermesd bisect --assert`: `jobs["backup"].failures_in_row < 3 or here.paused`.

It is written as Python is, and only so: the text is parsed, and what is not in the list here is refused; nothing of it
is ever executed as Python. What is not there (a job before it was defined, a lease nobody holds) is None, which is
neither smaller nor larger than anything, and arithmetic with it gives None.
"""

from __future__ import annotations

import ast
import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from policies.fault import BadValue, meant
from policies.policy import SchedulingPolicy
from state.graph import HERE, OVER, POLICY, WITH_PROCESS, AnyNode, Graph, Job, Lease, Node, Run

Json = Any
Read = Callable[[Graph], Json]
Values = Mapping[str, Json]
Evaluate = Callable[[Values], Json]

TEXT_MAX = 2000
_LIVE = ("waiting", "backoff", *sorted(WITH_PROCESS))
_JOB = (
    "active", "kept", "failures_in_row", "last_outcome", "last_success_at", "failing_since", "revision", "paused",
    "removed", "exists", "priority",
)  # fmt: skip
_RUN = (
    "state", "reason", "rule", "attempt", "token", "trigger", "job", "code", "signal", "tokens", "started_at",
    "ended_at", "exists",
)  # fmt: skip
_POLICY = tuple(field.name for field in dataclasses.fields(SchedulingPolicy))
_LEASE = ("holder", "token", "foreign", "held")
_ORDERS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_SUMS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip


class Expression:
    """BadValue says what cannot be used in it, and what can."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: dict[str, Read] = {}
        """Each thing of the graph that it reads, as it is written."""
        self.counted: dict[str, Callable[[AnyNode], bool]] = {}
        """Of those, the ones that say how many nodes are so -> whether one is."""
        self._ids: set[str] = set()
        self._prefixes: set[str] = set()
        self.jobs: set[str] | None = set()
        """It reads only these jobs and runs of theirs; None: it reads other things, too."""
        if len(text) > TEXT_MAX:
            raise BadValue(f"the expression has more than {TEXT_MAX} letters", "Write a shorter one")
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise BadValue(f"this is no expression: {getattr(error, 'msg', error)}", _FORMS) from None
        try:
            self._evaluate = self._compiled(tree.body)
        except RecursionError:
            raise BadValue("the expression is nested too deeply", "Write a flatter one") from None

    def value(self, graph: Graph) -> Json:
        return self._evaluate({text: read(graph) for text, read in self.names.items()})

    def holds(self, graph: Graph) -> bool:
        return bool(self.value(graph))

    def holds_for(self, values: Values) -> bool:
        """As `holds`, of what `names` read."""
        return bool(self._evaluate(values))

    def reads(self, names: Iterable[str]) -> bool:
        """Whether a change of these nodes (ids) may change its value."""
        ids, prefixes = self._ids, tuple(self._prefixes)
        return any(name in ids or name.startswith(prefixes) for name in names)

    def concerns(self, put: Iterable[AnyNode], drop: Iterable[str]) -> bool:
        """As `reads`, of what a patch puts and drops."""
        ids, prefixes = self._ids, tuple(self._prefixes)
        for node in put:
            if node[0] in ids or (prefixes and node[0].startswith(prefixes)):
                return True
        return any(name in ids or (prefixes and name.startswith(prefixes)) for name in drop)

    def _compiled(self, node: ast.expr) -> Evaluate:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return lambda values: value
            case ast.List(elts=items) | ast.Tuple(elts=items):
                reads = [self._compiled(item) for item in items]
                return lambda values: [read(values) for read in reads]
            case ast.BoolOp(op=op, values=parts):
                reads = [self._compiled(part) for part in parts]
                wanted = isinstance(op, ast.Or)
                return lambda values: any(bool(read(values)) == wanted for read in reads) == wanted
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                read = self._compiled(operand)
                return lambda values: not read(values)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                read = self._compiled(operand)
                return lambda values: _summed(operator.sub, 0, read(values))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _SUMS:
                first, second, sum_ = self._compiled(left), self._compiled(right), _SUMS[type(op)]
                return lambda values: _summed(sum_, first(values), second(values))
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self._comparison(left, ops, others)
            case ast.Name() | ast.Attribute() | ast.Subscript():
                return self._named(node)
        raise BadValue(f"{ast.unparse(node)!r} cannot be used here", _FORMS)

    def _comparison(self, left: ast.expr, ops: list[ast.cmpop], others: list[ast.expr]) -> Evaluate:
        reads = [self._compiled(part) for part in (left, *others)]
        compares = [_comparer(op) for op in ops]

        def evaluate(values: Values) -> bool:
            parts = [read(values) for read in reads]
            return all(compare(parts[n], parts[n + 1]) for n, compare in enumerate(compares))

        return evaluate

    def _named(self, node: ast.expr) -> Evaluate:
        text = ast.unparse(node)
        match node:
            case ast.Name(id="seq"):
                self._whole("")
                return self._known(text, lambda graph: graph.seq)
            case ast.Attribute(value=ast.Name(id=base), attr=field):
                return self._known(text, self._field(text, base, field))
            case ast.Attribute(
                value=ast.Subscript(value=ast.Name(id=base), slice=ast.Constant(value=str(key))), attr=field
            ):
                return self._known(text, self._field_of(base, key, field))
        raise BadValue(f"{text!r} names nothing", _FORMS)

    def _known(self, text: str, read: Read) -> Evaluate:
        self.names[text] = read
        return lambda values: values[text]

    def _whole(self, *prefixes: str) -> None:
        self._prefixes.update(prefixes)
        self.jobs = None

    def _one(self, *names: str) -> None:
        self._ids.update(names)
        self.jobs = None

    def _count(self, text: str, kind: type[Job] | type[Run], one: Callable[[Any], bool]) -> Read:
        self.counted[text] = lambda node: type(node) is kind and one(node)
        self._whole("job/" if kind is Job else "run/")
        if kind is Job:
            return lambda graph: sum(map(one, graph.jobs.values()))
        return lambda graph: sum(map(one, graph.active.values()))

    def _field(self, text: str, base: str, field: str) -> Read:
        match base, field:
            case "runs", "active":
                self._whole("run/")
                return lambda graph: len(graph.active)
            case "runs", _ if field in OVER:
                self._one(HERE)
                return lambda graph: graph.here.counts.get(field, 0)
            case "runs", _ if field in _LIVE:
                return self._count(text, Run, lambda run: run.state == field)
            case "jobs", "count":
                return self._count(text, Job, lambda job: not job.removed)
            case "jobs", "paused":
                return self._count(text, Job, lambda job: bool(job.paused))
            case "jobs", "failing":
                return self._count(text, Job, lambda job: bool(job.failing_since))
            case "leases", "count":
                self._whole("lease/")
                return lambda graph: len(graph.leases)
            case "requests", "count":
                self._whole("request/")
                return lambda graph: len(graph.requests)
            case "notices", "count":
                self._whole("notice/")
                return lambda graph: len(graph.notices)
            case "decisions", "count":
                self._one(HERE)
                return lambda graph: graph.here.tick
            case "here", _ if field in Node._fields:
                self._one(HERE)
                return lambda graph: _plain(getattr(graph.here, field))
            case "policy", _ if field in _POLICY:
                self._one(POLICY)
                return lambda graph: _plain(graph.policy.values.get(field))
        fields = _FIELDS.get(base)
        if fields is None:
            raise BadValue(f"{base!r} names nothing", meant(base, sorted(_FIELDS), _FORMS))
        raise BadValue(f"{base} has no {field!r}", meant(field, fields, f"There are {', '.join(fields)}"))

    def _field_of(self, base: str, key: str, field: str) -> Read:
        fields = {"jobs": _JOB, "run": _RUN, "leases": _LEASE}.get(base)
        if fields is None:
            raise BadValue(f"{base}[...] names nothing", 'There are jobs["NAME"], run["NAME"] and leases["KEY"]')
        if field not in fields:
            advice = meant(field, fields, f"There are {', '.join(fields)}")
            raise BadValue(f"{base}[...] has no {field!r}", advice)
        if base == "jobs":
            self._ids.add(f"job/{key}")
            if self.jobs is not None:
                self.jobs.add(key)
            return lambda graph: _of_job(graph.jobs.get(key), field)
        if base == "run":
            self._ids.add(f"run/{key}")
            if self.jobs is not None:
                self.jobs.add(key.split(".")[0])
            return lambda graph: _of_run(graph.run(key), field)
        self._one(f"lease/{key}")
        return lambda graph: _of_lease(graph.leases.get(key), field)


def _of_job(job: Job | None, field: str) -> Json:
    if field == "exists":
        return job is not None and not job.removed
    if job is None:
        return None
    if field in ("active", "kept"):
        return len(getattr(job, field))
    if field == "priority":
        return job.spec.get("priority")
    return _plain(getattr(job, field))


def _of_run(run: Run | None, field: str) -> Json:
    if field == "exists":
        return run is not None
    return None if run is None else _plain(getattr(run, field))


def _of_lease(lease: Lease | None, field: str) -> Json:
    if field == "held":
        return lease is not None
    return None if lease is None else _plain(getattr(lease, field))


def _plain(value: Json) -> Json:
    """What can be compared. Of anything that has parts: whether there are any."""
    return value if isinstance(value, bool | int | float | str | None) else bool(value)


def _summed(sum_: Callable[[Any, Any], Any], first: Json, second: Json) -> Json:
    if not (isinstance(first, int | float) and isinstance(second, int | float)):
        return None
    try:
        return sum_(first, second)
    except (ZeroDivisionError, OverflowError):
        return None


def _comparer(op: ast.cmpop) -> Callable[[Json, Json], bool]:
    match op:
        case ast.Eq() | ast.Is():
            return lambda first, second: bool(first == second)
        case ast.NotEq() | ast.IsNot():
            return lambda first, second: bool(first != second)
        case ast.In():
            return lambda first, second: isinstance(second, list) and first in second
        case ast.NotIn():
            return lambda first, second: not (isinstance(second, list) and first in second)
    order = _ORDERS[type(op)]

    def compare(first: Json, second: Json) -> bool:
        numbers = isinstance(first, int | float) and isinstance(second, int | float)
        texts = isinstance(first, str) and isinstance(second, str)
        return (numbers or texts) and order(first, second)

    return compare


_FIELDS: dict[str, tuple[str, ...]] = {
    "runs": ("active", *sorted(OVER), *_LIVE),
    "jobs": ("count", "failing", "paused"),
    "leases": ("count",),
    "requests": ("count",),
    "notices": ("count",),
    "decisions": ("count",),
    "here": Node._fields,
    "policy": _POLICY,
}
_FORMS = 'Such as runs.failed < 3, jobs["backup"].failures_in_row == 0; `hermesd bisect --help` lists what there is'


def fields() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Everything that has a name here, for whoever writes it down."""
    yield from _FIELDS.items()
    yield from (('jobs["NAME"]', _JOB), ('run["NAME"]', _RUN), ('leases["KEY"]', _LEASE))
