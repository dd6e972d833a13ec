"""What a job may say. A job is complete from birth: defaults filled in, durations in milliseconds, sizes in bytes.

`parse_job` reads what a person wrote, or what `Job.canonical` gave; anything unknown is a fault, never ignored.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ledger.instant import ms_of, text_of
from policies.dependency import depths, loops
from policies.fault import BadValue, Fault, meant
from policies.field import (
    DURATION_FORMAT,
    Count,
    Duration,
    JobName,
    Json,
    LeaseKey,
    Number,
    OneOrMore,
    Size,
    Spec,
    StepName,
    TagName,
    Text,
    VariableName,
    Words,
    default_zone,
    each_once,
    in_order,
    json_value,
    named,
)
from policies.overlap import canonical as canonical_overlap
from policies.promise import SCHEMA_BYTES_MAX, check_schema, size_bytes
from policies.quantity import duration_text
from policies.schedule import Schedule, schedule_of
from policies.schedule_spec import SCHEDULE_SPECS, AnySchedule, OnSpec, ZonedSpec
from policies.template import Reference, places, reference, references
from policies.upgrade.spec import Upgrade
from policies.zone import first_instant_ms, wall_ms_of, zone_named

JOB_BYTES_MAX = 128 * 1024
"""Of a job's canonical form. It is recorded whole, in one line of the ledger, and some of it again in others."""
SPEC = 1  # The version of the canonical form. Only a canonical form carries it, and only there a bare number is ms.


class InvalidJob(ValueError):
    """A job that cannot be used, with everything that is wrong with it."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(str(fault) for fault in faults))
        self.faults = faults


def _inside(value: str) -> str:
    parts = value.split("/")
    if not value or value.startswith("/") or ".." in parts or "" in parts or "." in parts:
        raise BadValue(f"{value!r} is not a file inside the run's folder", "Write a relative path, such as report.md")
    return value


def _call(value: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", value):
        raise BadValue(f"{value!r} does not name a function", "Write module:function, such as reports.nightly:build")
    return value


# Files in the run's folder that are kept as artifacts once the run has ended.
Outputs = Annotated[tuple[Annotated[str, AfterValidator(_inside)], ...], OneOrMore(), AfterValidator(each_once)]


class Needs(Spec):
    """What a run takes up while it lives; the machine's whole is shared out. 0 is nothing to speak of. `tokens` are
    reserved from the budgets it draws on."""

    cpu: Number = Field(default=0.0, ge=0, le=1_000_000)
    memory_bytes: Size = Field(default=0, alias="memory")
    gpu_memory_bytes: Size = Field(default=0, alias="gpu_memory")
    tokens: Count = Field(default=0, ge=0)


Amount = Annotated[Count, Field(ge=1)] | None


class Budget(Spec):
    """At most so many within any minute, hour or day that ends now."""

    runs_per_minute: Amount = None
    runs_per_hour: Amount = None
    runs_per_day: Amount = None
    tokens_per_minute: Amount = None
    tokens_per_hour: Amount = None
    tokens_per_day: Amount = None


class Missed(Spec):
    """Slots that passed while nobody could start them. Of those within the window are run: none, the latest, or all,
    the newest `max` of them, one after another."""

    policy: Literal["skip", "latest", "all"] = "latest"
    window_ms: Duration = Field(default=86_400_000, alias="window")
    max: StrictInt = Field(default=20, ge=1, le=1000)


class Retry(Spec):
    """`attempts` counts the first one. A lost attempt (nobody saw its end) may be run again only if `idempotent`."""

    attempts: StrictInt = Field(default=1, ge=1, le=100)
    backoff: Literal["fixed", "exponential"] = "exponential"
    base_ms: Duration = Field(default=10_000, alias="base")
    max_ms: Duration = Field(default=300_000, alias="max")
    on: Annotated[tuple[Literal["exit", "timeout", "output", "lost"], ...], OneOrMore(), AfterValidator(in_order)] = (
        "exit",
        "output",
        "timeout",
    )
    idempotent: StrictBool = False

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if "lost" in self.on and not self.idempotent:
            raise BadValue(
                "`on: [lost]` needs `idempotent: true`",
                "A lost attempt may have done its work; say that doing it twice does no harm, or leave lost out",
            )
        if self.backoff == "exponential" and self.max_ms < self.base_ms:
            raise BadValue("`max` is shorter than `base`", "The wait grows from base up to max, 5m if that is not said")
        return self


class Limits(Spec):
    """Hard bounds set on every process of a run; absent is unbounded."""

    open_files: Count | None = Field(default=None, ge=16)
    file_size_bytes: Size | None = Field(default=None, alias="file_size")
    cpu_seconds: Count | None = Field(default=None, ge=1)
    memory_bytes: Size | None = Field(default=None, alias="memory")
    output_bytes: Size | None = Field(default=64 << 20, alias="output", ge=4096)
    """What stdout and stderr may each leave on the disk; the rest is cut out, with a mark."""

    def given(self) -> dict[str, int]:
        """By the names that `daemon.ports.Order.limits` uses."""
        return self.model_dump(by_alias=True, exclude_none=True)


class Keep(Spec):
    """How many ended runs keep their folders, and for how long. The ledger keeps all of them for ever."""

    runs: Count = Field(default=50, ge=1)
    days: StrictInt | None = Field(default=None, ge=1, le=36_500)


def _schema(value: dict[str, Json] | None, info: ValidationInfo) -> dict[str, Json] | None:
    if value is not None and not (info.context or {}).get("canonical"):
        check_schema(value)
    return value


def _small(value: tuple[Expectation, ...]) -> tuple[Expectation, ...]:
    if size_bytes([one.json_schema for one in value if one.json_schema is not None]) > SCHEMA_BYTES_MAX:
        raise BadValue(
            f"the schemas have more than {SCHEMA_BYTES_MAX} bytes together", "Describe only what makes it a success"
        )
    return value


class Expectation(Spec):
    """What a run must have left in its folder to count as a success. An agent's step may have its own."""

    file: Annotated[str, AfterValidator(_inside)]
    min_bytes: Size = 1
    json_schema: Annotated[dict[str, Json] | None, BeforeValidator(json_value), AfterValidator(_schema)] = None


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


Expects = Annotated[tuple[Expectation, ...], BeforeValidator(_listed), AfterValidator(_small)]


class Notice(Spec):
    """Whom to tell of what. Each is tried again until it has been delivered; that never changes a run's outcome."""

    on: Annotated[
        tuple[Literal["failed", "succeeded", "recovered", "missed", "skipped", "cancelled", "paused"], ...],
        OneOrMore(),
        AfterValidator(in_order),
        Field(min_length=1),
    ] = ("failed",)
    webhook: Text | None = None
    command: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.webhook is None) == (self.command is None):
            what = "neither webhook nor command" if self.webhook is None else "both webhook and command"
            raise BadValue(f"a notice has {what}", "Give webhook: https://..., or command: [program, argument]")
        if self.webhook is not None and not re.match(r"https?://|\{\{ *secret\.", self.webhook):
            raise BadValue(f"{self.webhook!r} is no address for a webhook", "It begins with http:// or https://")
        return self


Notices = Annotated[tuple[Notice, ...], BeforeValidator(_listed)]


class Body(Spec):
    """What there is to do."""

    kind: str


_SHELLS = frozenset({"sh", "ash", "bash", "dash", "fish", "ksh", "zsh"})


def _shell_text(argv: tuple[str, ...]) -> str:
    """What a shell is told to do by its arguments; "" if it is no shell, or is given a script."""
    if argv[0].rpartition("/")[2] not in _SHELLS:
        return ""
    return next((text for option, text in pairwise(argv) if re.fullmatch(r"-\w*c", option)), "")


class CommandBody(Body):
    """A program. `shell` is given to /bin/sh -c; `argv` is run as it stands, with no shell anywhere."""

    kind: Literal["command"]
    argv: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    shell: str | None = None
    stdin: Text | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.argv is None) == (self.shell is None):
            what = "neither argv nor shell" if self.argv is None else "both argv and shell"
            raise BadValue(f"a command has {what}", "Give argv: [program, argument], or shell: text for /bin/sh")
        if not (self.argv[0] if self.argv is not None else (self.shell or "").strip()):
            raise BadValue("the command is empty", "Name the program to run")
        if self.shell and "\0" in self.shell:
            raise BadValue("the text holds a NUL character", "No program can take one")
        if any(found.name.startswith("file.") for found in references(_shell_text(self.command))):
            raise BadValue(
                "the name of a file stands in a text for the shell, where it could be a command",
                'Write "$HERMESD_FILE" there, with the quotes: it holds the path of the file',
            )
        return self

    @property
    def command(self) -> tuple[str, ...]:
        return self.argv if self.argv is not None else ("/bin/sh", "-c", self.shell or "")


class PythonBody(Body):
    """A function in a warm worker process: its JSON return value is the result. `path` goes before sys.path."""

    kind: Literal["python"]
    call: Annotated[str, AfterValidator(_call)]
    kwargs: Annotated[dict[str, Json], BeforeValidator(json_value)] = Field(default_factory=dict)
    path: Words = ()


class Lines(Spec):
    """The last so many lines of the first of these files that can be read; the prompt is asked once for each."""

    paths: Annotated[Words, Field(min_length=1)]
    last: StrictInt = Field(default=100, ge=1, le=100_000)


class InferenceBody(Body):
    """One generation, or one for each line. `model` is an alias or a folder. Temperature 0 is greedy."""

    kind: Literal["inference"]
    model: Text = Field(min_length=1)
    prompt: str = Field(min_length=1)
    lines: Lines | None = None
    max_new_tokens: StrictInt = Field(default=128, ge=1, le=1_000_000)
    temperature: Number = Field(default=0.0, ge=0, le=100)
    top_p: Number = Field(default=1.0, gt=0, le=1)
    top_k: Count = Field(default=0, ge=0)  # 0 is no bound
    seed: StrictInt = Field(default=0, ge=0, lt=2**63)
    stop: Annotated[tuple[str, ...], OneOrMore()] = ()
    device: Annotated[str, named(r"auto|cpu|mps|cuda(:\d{1,3})?", "cuda:0")] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "bnb-8bit", "bnb-4bit"] = "none"

    @model_validator(mode="after")
    def _each_line(self) -> Self:
        asked = Reference("line") in references(self.prompt)
        if asked and self.lines is None:
            raise BadValue("the prompt has {{ line }} but there are no `lines`", "Add lines: {paths: [file]}")
        if not asked and self.lines is not None:
            raise BadValue("the prompt never uses {{ line }}: every line would get one answer", "Put {{ line }} in it")
        return self


class Step(Spec):
    """One node of an agent's graph. It starts when all of `after` have succeeded."""

    name: StepName
    after: Annotated[tuple[StepName, ...], OneOrMore(), AfterValidator(in_order)] = ()
    timeout_ms: Duration | None = Field(default=None, alias="timeout", ge=1)
    outputs: Outputs = ()
    expects: Expects = ()


class CommandStep(CommandBody, Step):
    pass


class PythonStep(PythonBody, Step):
    pass


class InferenceStep(InferenceBody, Step):
    pass


def _kind(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return f"<{kind}>" if kind else None


AnyStep = Annotated[
    Annotated[CommandStep, Tag("<command>")]
    | Annotated[PythonStep, Tag("<python>")]
    | Annotated[InferenceStep, Tag("<inference>")],
    Discriminator(_kind),
]


class AgentBody(Body):
    """A graph of steps. Steps that do not wait for each other run side by side."""

    kind: Literal["agent"]
    steps: Annotated[tuple[AnyStep, ...], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _graph(self) -> Self:
        names = [step.name for step in self.steps]
        for name in names:
            if names.count(name) > 1:
                raise BadValue(f"two steps are called {name!r}", "Give each step its own name")
        before = {step.name: step.after for step in self.steps}
        for step in self.steps:
            for other in step.after:
                if other not in before:
                    advice = meant(other, names, f"The steps are {', '.join(names)}")
                    raise BadValue(f"step {step.name!r} is after {other!r}, which is no step", advice)
        for path in loops(before).values():
            raise BadValue(f"the steps wait for each other: {' -> '.join(path)}", "Remove one of these `after`")
        upstream: dict[str, set[str]] = {}
        for name in depths(before):
            upstream[name] = set(before[name]).union(*(upstream[other] for other in before[name]))
        for step in self.steps:
            for found in references(step.model_dump()):
                if found.step and found.step not in before:
                    advice = meant(found.step, names, f"The steps are {', '.join(names)}")
                    raise BadValue(f"step {step.name!r} uses the output of {found.step!r}, which is no step", advice)
                if found.step and found.step not in upstream[step.name]:
                    raise BadValue(
                        f"step {step.name!r} uses the output of {found.step!r} but does not wait for it",
                        f"Add {found.step} to its `after`",
                    )
            if isinstance(step, CommandStep) and any(
                found.output in ("text", "result") for found in references(step.shell)
            ):
                raise BadValue(
                    f"step {step.name!r} puts an earlier step's output into a shell text, where it could be a command",
                    "Use {{ steps.NAME.file }} there, or pass the output through argv or stdin",
                )
        return self


_NOT_FILLED = ("schedule", "cwd", "outputs", "expects", "notify")


class Job(Body):
    """Everything but the body, which each kind adds."""

    name: JobName
    description: str = ""
    tags: Annotated[tuple[TagName, ...], OneOrMore(), AfterValidator(in_order)] = ()
    schedule: AnySchedule
    priority: StrictInt = Field(default=50, ge=0, le=100)
    leases: Annotated[tuple[LeaseKey, ...], OneOrMore(), AfterValidator(in_order)] = ()
    needs: Needs = Needs()
    overlap: Annotated[str, AfterValidator(canonical_overlap)] = "skip"
    missed: Missed = Missed()
    jitter_ms: Duration = Field(default=0, alias="jitter", le=86_400_000)
    timeout_ms: Duration = Field(default=3_600_000, alias="timeout", ge=1)
    grace_ms: Duration = Field(default=10_000, alias="grace")
    retry: Retry = Retry()
    budget: Budget | None = None
    stop_after_failures: StrictInt | None = Field(default=None, ge=1, le=1000)
    fresh_ms: Duration | None = Field(default=None, alias="fresh", ge=1)
    """How old the last success may grow before `hermesd watch` and `status` say so."""
    notify: Notices = ()
    enabled: StrictBool = True
    expires: Text | None = None
    env: dict[VariableName, Text] = Field(default_factory=dict)
    cwd: Text | None = None
    limits: Limits = Limits()
    outputs: Outputs = ()
    expects: Expects = ()
    keep: Keep = Keep()

    _steps_known: ClassVar[bool] = False

    @model_validator(mode="after")
    def _placeholders(self) -> Self:
        if not self._steps_known:
            for found in references(self.model_dump(exclude={"description"})):
                if found.step:
                    raise BadValue(
                        f"{{{{ steps.{found.step}.{found.output} }}}} in a job of kind {self.kind}",
                        "Only the steps of kind: agent have earlier steps",
                    )
        return self

    @model_validator(mode="after")
    def _files(self) -> Self:
        told = self.model_dump(exclude={"description"})
        filled = {field: value for field, value in told.items() if field not in _NOT_FILLED}
        if not isinstance(self.schedule, OnSpec) and any(f.name.startswith("file.") for f in references(filled)):
            raise BadValue(
                "{{ file.path }} or {{ file.name }} in a job that no file starts",
                "Only a job with schedule: {on: {path: ...}} has a file",
            )
        for field in _NOT_FILLED:
            if any(f.name.startswith("file.") for f in references(told.get(field))):
                raise BadValue(
                    f"{{{{ file.path }}}} and {{{{ file.name }}}} are not filled in `{field}`",
                    "They can stand in argv, stdin, env, kwargs, prompt and the steps",
                )
        return self

    @model_validator(mode="after")
    def _end(self, info: ValidationInfo) -> Self:
        if self.expires is not None:
            zone = self.schedule.timezone if isinstance(self.schedule, ZonedSpec) else default_zone(info)
            object.__setattr__(self, "expires", _instant_text(self.expires, zone))
        return self

    @property
    def when(self) -> Schedule:
        """Its schedule, as the daemon holds it."""
        return schedule_of(self.schedule.model_dump(by_alias=True))

    @property
    def expires_ms(self) -> int | None:
        """The instant from which there are no more slots."""
        return None if self.expires is None else ms_of(self.expires)

    def canonical(self) -> dict[str, Json]:
        """JSON values only, nothing left to a default. `parse_job` makes the same job of it."""
        return {"spec": SPEC, **self.model_dump(mode="json", by_alias=True)}

    def digest(self) -> str:
        """32 hex digits that name this very spec: any change of what it says changes them."""
        return digest_of(self.canonical())


def digest_of(canonical: Mapping[str, Json]) -> str:
    """The digest of the job of which this is the canonical form."""
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def _instant_text(text: str, zone_name: str) -> str:
    """UTC text of a date, or a date with a time, as the wall shows it in a zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadValue(f"{text!r} is not a date: {error}", "Write it like 2027-01-01 or 2027-01-01T09:00") from error
    if not 1970 < moment.year < 9000:
        raise BadValue(f"{text!r} is out of range", "Dates lie in the years 1971 to 8999")
    if moment.tzinfo is not None:
        return text_of(ms_of(moment.isoformat()) // 1000 * 1000)
    return text_of(first_instant_ms(zone_named(zone_name), wall_ms_of(moment)) // 1000 * 1000)


class CommandJob(CommandBody, Job):
    pass


class PythonJob(PythonBody, Job):
    pass


class InferenceJob(InferenceBody, Job):
    pass


class AgentJob(AgentBody, Job):
    _steps_known: ClassVar[bool] = True

    @model_validator(mode="after")
    def _outputs_of_steps(self) -> Self:
        for field in ("outputs", "expects"):
            if getattr(self, field):
                raise BadValue(
                    "an agent's steps write its files, not the agent", f"Put `{field}` on the step that writes them"
                )
        return self


class UpgradeJob(Upgrade, Job):
    kind: Literal["upgrade"]
    timeout_ms: Duration = Field(default=21_600_000, alias="timeout", ge=1)

    @model_validator(mode="after")
    def _not_for_all(self) -> Self:
        if self.retry.attempts > 1:
            raise BadValue("an upgrade is not tried again by `retry`", "The next slot does; leave `retry` out")
        for field in ("outputs", "expects", "cwd"):
            if getattr(self, field):
                raise BadValue(f"`{field}` has no meaning for many repositories", "Leave it out")
        return self


AnyJob = Annotated[
    Annotated[CommandJob, Tag("<command>")]
    | Annotated[PythonJob, Tag("<python>")]
    | Annotated[InferenceJob, Tag("<inference>")]
    | Annotated[AgentJob, Tag("<agent>")]
    | Annotated[UpgradeJob, Tag("<upgrade>")],
    Discriminator(_kind),
]
_KINDS: dict[str, type[Job]] = {
    "command": CommandJob,
    "python": PythonJob,
    "inference": InferenceJob,
    "agent": AgentJob,
    "upgrade": UpgradeJob,
}


def parse_job(raw: Json, default_zone: str = "UTC") -> Job:
    """A job from plain JSON values. `default_zone` is written into schedules that name none. InvalidJob, with all
    faults, if it cannot be used."""
    if not isinstance(raw, Mapping):
        raise InvalidJob([Fault((), f"a job is a mapping, not {_type_name(raw)}", "Begin with name: and kind:")])
    context = {"zone": default_zone, "canonical": "spec" in raw}
    fields = dict(raw)
    if fields.pop("spec", SPEC) != SPEC:
        raise InvalidJob([Fault(("spec",), f"canonical form {raw['spec']!r} is unknown", f"This program reads {SPEC}")])
    kind = fields.get("kind")
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        known = f"The kinds are {', '.join(_KINDS)}"
        if kind is None:
            raise InvalidJob([Fault((), "the field 'kind' is missing", known)])
        advice = meant(kind, _KINDS, known) if isinstance(kind, str) else known
        raise InvalidJob([Fault(("kind",), f"unknown kind {kind!r}", advice)])
    try:
        job = model.model_validate(fields, context=context)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise InvalidJob([_fault(model, detail) for detail in details if not _echo(detail, details)]) from error
    if not context["canonical"] and (faults := [*_misplaced(job), *_too_large(job)]):
        raise InvalidJob(faults)
    return job


def _too_large(job: Job) -> Iterator[Fault]:
    size = size_bytes([job.canonical()])
    if size > JOB_BYTES_MAX:
        what = f"the job takes {size} bytes, and the ledger records no more than {JOB_BYTES_MAX}"
        yield Fault((), what, "Put what is long into a file, and name the file")


def _misplaced(job: Job) -> Iterator[Fault]:
    """Placeholders that are not filled where they stand."""
    for path, inside in places(job.model_dump(by_alias=True, exclude={"description"})):
        found, shown, top = reference(inside), f"{{{{ {inside} }}}}", path[0]
        if top == "notify" and not (found.secret and path[2:3] and path[2] in ("webhook", "command")):
            advice = "Only secrets are, in webhook and command; what happened is told in HERMESD_NOTICE_JSON"
            yield Fault(path, f"{shown} is not filled in here", advice)
        elif found.secret and top not in ("env", "notify"):
            advice = "A secret can stand in a value of `env`: give it to the program as a variable"
            yield Fault(path, f"{shown} cannot stand here, where others could see it", advice)
        elif found.step and top == "env":
            advice = "Give it to the step that needs it, by argv, stdin or kwargs"
            yield Fault(path, f"{shown} in `env`, which holds for every step, also for those before it", advice)


def json_schema() -> dict[str, Json]:
    """What `jobs/*.yaml` may hold: one job or a list of them."""
    one = TypeAdapter[Any](AnyJob).json_schema(by_alias=True, mode="validation")
    definitions = one.pop("$defs", {})
    for definition in definitions.values():
        for entry in definition.get("properties", {}).values():
            if entry.get("format") == DURATION_FORMAT and isinstance(entry.get("default"), int):
                entry["default"] = duration_text(entry["default"])
    definitions["Job"] = one
    job = {"$ref": "#/$defs/Job"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Hermes jobs",
        "anyOf": [job, {"type": "array", "items": job}],
        "$defs": definitions,
    }


_TYPE_NAMES = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number"}


def _type_name(value: Any) -> str:
    return "nothing" if value is None else _TYPE_NAMES.get(type(value), f"a {type(value).__name__}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _echo(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """A list counts as too short once its items have failed; that is no fault of its own."""
    path = detail["loc"]
    return detail["type"] == "too_short" and any(
        other["loc"][: len(path)] == path for other in details if len(other["loc"]) > len(path)
    )


def _fault(model: type[BaseModel], detail: ErrorDetails) -> Fault:
    # Parts in angle brackets are the tags of unions: they choose a model and stand nowhere in the file.
    path = tuple(part for part in detail["loc"] if not str(part).startswith("<"))
    kind, given = detail["type"], detail["input"]
    context = detail.get("ctx", {})
    expected = detail["msg"].replace("Input should be", "It should be").replace("Value should", "It should")
    if kind == "value_error" and isinstance(context.get("error"), BadValue):
        return Fault(path, str(context["error"]), context["error"].advice)
    if kind == "extra_forbidden":
        fields = _fields_at(model, detail["loc"][:-1])
        return Fault(
            path, f"unknown field {str(path[-1])!r}", meant(str(path[-1]), fields, f"Known here: {', '.join(fields)}")
        )
    if kind == "missing":
        return Fault(path[:-1], f"the field {str(path[-1])!r} is missing", _EXAMPLES.get(str(path[-1]), ""))
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        otherwise = f"Write {' or '.join(words)}" if words else expected
        advice = meant(given, words, otherwise) if isinstance(given, str) else otherwise
        return Fault(path, f"{_shown(given)} is not allowed", advice)
    if kind in ("union_tag_invalid", "union_tag_not_found") and isinstance(given, Mapping):
        if "kind" in given:
            return Fault((*path, "kind"), f"unknown kind of step {_shown(given['kind'])}", f"Use {_STEP_KINDS}")
        return Fault(path, "the field 'kind' is missing", f"A step is of kind {_STEP_KINDS}")
    if kind in ("model_type", "dict_type", "union_tag_not_found"):
        fields = _fields_at(model, detail["loc"])
        one_kind = len(fields) == len(set(fields))
        known = f"Known here: {', '.join(fields)}" if fields and one_kind else ""
        return Fault(path, f"a mapping of fields belongs here, not {_type_name(given)}", known)
    if kind == "too_short":
        return Fault(path, "the list is empty", "Give at least one")
    if kind == "bool_type":
        return Fault(path, f"{_shown(given)} is neither true nor false", "Write true or false, without quotes")
    if kind == "tuple_type":
        command = path[-1:] == ("argv",)
        how = "argv: [program, argument], or shell: text for /bin/sh" if command else "it as [one, another]"
        return Fault(path, f"a list belongs here, not {_type_name(given)}", f"Write {how}")
    if kind.endswith("_type") or kind.endswith("_parsing"):
        return Fault(path, f"{_type_name(given)} cannot stand here", expected)
    return Fault(path, f"{_shown(given)} cannot be used", expected)


_STEP_KINDS = "command, python or inference"
_EXAMPLES = {
    "name": "Add for example name: nightly-report",
    "schedule": "Add for example schedule: {every: 30m}, or schedule: manual for a job that is only started by hand",
    "call": "Add call: module:function",
    "model": "Add model: hermes-mini, or the folder of a Hugging Face model",
    "prompt": "Add the text that the model is given",
    "steps": "Add a list of steps, each with a name and a kind",
    "repos": "Add a list of repositories, each with a key, a path and its remotes",
    "key": "Add for example key: core-lib",
    "remotes": "Add for example remotes: {origin: origin}",
}


def _fields_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The names that may stand in the mapping at `path`, an error's location with its union tags."""
    here: list[type[BaseModel]] = [model]
    for part in path:
        if isinstance(part, int):
            continue
        if part.startswith("<"):
            here = [one for one in here if _tagged(one, part[1:-1])]
        else:
            here = [found for one in here for found in _models_in(_field(one, part))]
    return [field.alias or name for one in here for name, field in one.model_fields.items()]


def _tagged(model: type[BaseModel], tag: str) -> bool:
    kind = model.model_fields.get("kind")
    return model is SCHEDULE_SPECS.get(tag) or (kind is not None and tag in get_args(kind.annotation))


def _field(model: type[BaseModel], name: str) -> FieldInfo | None:
    return next((field for key, field in model.model_fields.items() if name in (key, field.alias)), None)


def _models_in(found: Any) -> list[type[BaseModel]]:
    if isinstance(found, FieldInfo):
        found = found.annotation
    if isinstance(found, type) and issubclass(found, BaseModel):
        return [found]
    return [model for inner in get_args(found) for model in _models_in(inner)]
