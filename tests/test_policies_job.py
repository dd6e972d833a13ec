import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.instant import ms_of
from policies.fault import BadValue
from policies.job import AgentJob, CommandJob, InvalidJob, json_schema, parse_job
from policies.quantity import duration_text, parse_duration, parse_size
from policies.template import Reference, fill, references

ROOT = Path(__file__).parent.parent


def raw(**more):
    return {"name": "report", "kind": "command", "argv": ["make"], "schedule": "30 3 * * *", **more}


def agent(*steps, **more):
    return {"name": "brief", "kind": "agent", "schedule": "manual", "steps": list(steps), **more}


def step(name, **more):
    return {"name": name, "kind": "command", "argv": ["make", name], **more}


def faults(given, zone="UTC"):
    with pytest.raises(InvalidJob) as caught:
        parse_job(given, zone)
    return [str(fault) for fault in caught.value.faults]


def test_a_short_job_is_complete_from_birth():
    job = parse_job(raw(), "Europe/Paris")

    assert isinstance(job, CommandJob)
    assert job.command == ("make",)
    assert job.canonical() == {
        "spec": 1,
        "name": "report",
        "description": "",
        "tags": [],
        "kind": "command",
        "argv": ["make"],
        "shell": None,
        "stdin": None,
        "schedule": {"cron": "30 3 * * *", "timezone": "Europe/Paris"},
        "priority": 50,
        "leases": [],
        "needs": {"cpu": 0.0, "memory": 0, "gpu_memory": 0, "tokens": 0},
        "overlap": "skip",
        "missed": {"policy": "latest", "window": 86_400_000, "max": 20},
        "jitter": 0,
        "timeout": 3_600_000,
        "grace": 10_000,
        "retry": {
            "attempts": 1,
            "backoff": "exponential",
            "base": 10_000,
            "max": 300_000,
            "on": ["exit", "output", "timeout"],
            "idempotent": False,
        },
        "budget": None,
        "stop_after_failures": None,
        "fresh": None,
        "notify": [],
        "enabled": True,
        "expires": None,
        "env": {},
        "cwd": None,
        "limits": {"open_files": None, "file_size": None, "cpu_seconds": None, "memory": None, "output": 64 << 20},
        "outputs": [],
        "expects": [],
        "keep": {"runs": 50, "days": None},
    }


FULL = [
    raw(schedule="@daily", tags=["b", "a"], needs={"cpu": 0.5, "memory": "2GiB"}, env={"PORT": 8080}, cwd="~/src"),
    raw(schedule={"every": "30m", "offset": "5m"}, limits={"open_files": 64, "memory": "1GB"}, outputs="report.md"),
    raw(schedule={"at": "2026-12-01T09:00"}, expires="2027-01-01", missed={"policy": "skip", "window": "2h"}),
    raw(schedule={"after": ["b", "a"], "when": "any"}, retry={"attempts": 3, "on": "lost", "idempotent": True}),
    {"name": "p", "kind": "python", "call": "m:f", "kwargs": {"a": [1, 2.5, None, {"b": "é"}]}, "schedule": "manual"},
    {
        "name": "i",
        "kind": "inference",
        "model": "hermes-mini",
        "prompt": "Triage: {{ line }}",
        "lines": {"paths": ["/var/log/syslog"]},
        "schedule": "manual",
    },
    agent(step("one"), step("two", after="one", stdin="{{ steps.one.file }}", timeout="5m", outputs=["a/b.txt"])),
]


@pytest.mark.parametrize("given", FULL, ids=lambda given: given["name"])
def test_the_canonical_form_makes_the_same_job_in_any_home(given):
    job = parse_job(given, "Asia/Kathmandu")
    stored = json.loads(json.dumps(job.canonical()))

    again = parse_job(stored, "UTC")

    assert again == job
    assert again.canonical() == stored
    assert again.digest() == job.digest()
    assert len(job.digest()) == 32


def test_the_digest_depends_on_meaning_alone():
    job = parse_job(raw(tags=["b", "a"], leases=["y", "x", "y"], env={"A": "1", "B": "2"}))

    same = parse_job(
        dict(reversed(raw(tags=["a", "b"], leases=["x", "y"], env={"B": "2", "A": "1"}, timeout="60m").items()))
    )
    other = parse_job(raw(tags=["b", "a"], leases=["y", "x"], env={"A": "1", "B": "2"}, timeout="61m"))

    assert job.digest() == same.digest()
    assert job.digest() != other.digest()


CHANGES = {
    "name": "other",
    "description": "x",
    "tags": ["t"],
    "argv": ["make", "x"],
    "stdin": "file",
    "schedule": "31 3 * * *",
    "priority": 51,
    "leases": ["k"],
    "needs": {"cpu": 2},
    "overlap": "allow_all",
    "missed": {"window": "2d"},
    "jitter": "5s",
    "budget": {"tokens_per_day": 1000},
    "stop_after_failures": 3,
    "fresh": "26h",
    "notify": {"webhook": "https://example.org/hook"},
    "expects": {"file": "report.md"},
    "timeout": "2h",
    "grace": "11s",
    "retry": {"attempts": 2},
    "enabled": False,
    "expires": "2030-01-01",
    "env": {"A": "1"},
    "cwd": "/",
    "limits": {"open_files": 100},
    "outputs": ["a"],
    "keep": {"runs": 1},
}


def test_every_field_is_part_of_the_digest():
    plain = parse_job(raw())
    assert set(CHANGES) | {"spec", "kind", "shell"} == set(plain.canonical())

    digests = {parse_job(raw() | {field: value}).digest() for field, value in CHANGES.items()}

    assert len(digests - {plain.digest()}) == len(CHANGES)


def test_the_digest_is_the_same_under_another_hash_seed():
    program = "import json, sys; from policies.job import parse_job; print(parse_job(json.load(sys.stdin)).digest())"
    given = json.dumps(FULL[-1] | {"tags": ["c", "a", "b"], "env": {"B": "1", "A": "2"}})

    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            input=given,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "4242")
    }

    assert digests == {parse_job(json.loads(given)).digest() + "\n"}


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (raw(shedule="* * * * *"), "shedule: unknown field 'shedule'. Did you mean 'schedule'?"),
        (raw(retry={"atempts": 2}), "retry.atempts: unknown field 'atempts'. Did you mean 'attempts'?"),
        (raw(jiter="30s"), "jiter: unknown field 'jiter'. Did you mean 'jitter'?"),
        (raw(jitter="2d"), "jitter: "),
        (raw(budget={"tokens_per_week": 5}), "budget.tokens_per_week: unknown field"),
        (raw(budget={"runs_per_hour": 0}), "budget.runs_per_hour: "),
        (raw(notify={"on": ["failed"]}), "notify[0]: a notice has neither webhook nor command"),
        (raw(notify={"webhook": "ftp://x"}), "notify[0]: 'ftp://x' is no address for a webhook"),
        (raw(expects={"file": "../x"}), "expects[0].file: '../x' is not a file inside the run's folder"),
        (raw(timeout_ms=5), "timeout_ms: unknown field 'timeout_ms'. Did you mean 'timeout'?"),
        (raw(model="x"), "model: unknown field 'model'"),
        (raw(timeout=10), "timeout: 10 has no unit. Write 10s, 10m or 10h"),
        (raw(timeout="10"), "timeout: '10' is not a duration"),
        (raw(timeout="0"), "timeout: 0 cannot be used. It should be greater than or equal to 1"),
        (raw(timeout=True), "timeout: True is not a duration"),
        (raw(needs={"memory": "2 gigs"}), "needs.memory: '2 gigs' has the unknown unit 'gigs'"),
        (raw(needs={"cpu": "2"}), "needs.cpu: text cannot stand here"),
        (raw(needs={"cpu": float("nan")}), "needs.cpu:"),
        (raw(needs={"tokens": -5}), "needs.tokens: "),
        (raw(overlap="bufer_one"), "overlap: 'bufer_one' is no overlap policy. Did you mean 'buffer_one'?"),
        (raw(overlap="skip(<=3)"), "overlap: 'skip(<=3)' has a bound that cannot be used"),
        (raw(missed={"policy": "al"}), "missed.policy: 'al' is not allowed. Did you mean 'all'?"),
        (raw(priority=101), "priority: 101 cannot be used. It should be less than or equal to 100"),
        (raw(priority=True), "priority: true or false cannot stand here"),
        (raw(priority="5"), "priority: text cannot stand here"),
        (raw(enabled="yes"), "enabled: 'yes' is neither true nor false. Write true or false, without quotes"),
        (raw(name="Report"), "name: 'Report' cannot be used here. Write something like nightly-report"),
        (raw(name="a" * 65), "name: "),
        (raw(name="a\n"), "name: "),
        (raw(leases=["a b"]), "leases[0]: 'a b' cannot be used here"),
        (raw(env={"A": True}), "env.A: true is not text here. Put it in quotes"),
        (raw(env={"A=B": "x"}), "env.A=B"),
        (raw(argv=[]), "argv: the list is empty"),
        (raw(argv=[""]), "the command is empty"),
        (raw(argv=["a\0b"]), "argv[0]: the text holds a NUL character"),
        (raw(argv="make all"), "argv: a list belongs here, not text. Write argv: [program, argument], or shell:"),
        (raw(argv=["a", None]), "argv[1]: null is not text here"),
        (raw(shell="make"), "a command has both argv and shell"),
        ({"name": "a", "kind": "command", "schedule": "manual"}, "a command has neither argv nor shell"),
        ({"name": "a", "argv": ["a"]}, "the field 'kind' is missing. The kinds are command, python, inference, agent"),
        (raw(kind="comand"), "kind: unknown kind 'comand'. Did you mean 'command'?"),
        (raw(kind=["command"]), "kind: unknown kind ['command']"),
        ({"name": "a", "kind": "command", "argv": ["a"]}, "the field 'schedule' is missing"),
        (raw(schedule={}), "schedule: a schedule needs one of cron, every, at, after, on, manual"),
        (raw(schedule={"evry": "5m"}), "schedule: a schedule needs one of cron, every, at, after, on, manual. Did"),
        (raw(schedule={"cron": "* * * * *", "every": "5m"}), "schedule: a schedule has one of cron, every, not"),
        (raw(schedule={"on": "x"}), "schedule.on: a mapping of fields belongs here, not text"),
        (raw(schedule=5), "schedule: 5 is no schedule"),
        (raw(schedule={"manual": False}), "schedule.manual: False is not allowed"),
        (raw(schedule={"every": "30m", "timezone": "UTC"}), "schedule.timezone: unknown field 'timezone'. Known here:"),
        (raw(schedule={"every": "500ms"}), "schedule: `every` is shorter than a second"),
        (raw(schedule={"every": "5m", "offset": "5m"}), "schedule: `offset` is not shorter than `every`"),
        (raw(schedule={"cron": "0 0 31 2 *"}), "schedule.cron: '0 0 31 2 *' never comes: day 31 does not exist"),
        (raw(schedule="0 0 31 2 *"), "schedule.cron: '0 0 31 2 *' never comes"),
        (
            raw(schedule={"cron": "* * * * *", "timezone": "Europe/paris"}),
            "schedule.timezone: unknown time zone 'Europe/paris'. Did you mean 'Europe/Paris'?",
        ),
        (raw(schedule={"at": "2026-02-30T09:00"}), "schedule: '2026-02-30T09:00' is not a date with a time: day is"),
        (raw(schedule={"at": "2026-12-01"}), "schedule: '2026-12-01' is not a date with a time. Write it like"),
        (raw(schedule={"at": "tomorrow"}), "schedule: 'tomorrow' is not a date with a time"),
        (raw(schedule={"after": []}), "schedule.after: the list is empty"),
        (raw(schedule={"after": ["a"], "when": "succes"}), "schedule.when: 'succes' is not allowed. Did you"),
        (raw(expires="2026-02-30"), "'2026-02-30' is not a date: day is out of range"),
        (raw(outputs=["../x"]), "outputs[0]: '../x' is not a file inside the run's folder"),
        (raw(outputs=["/etc/passwd"]), "outputs[0]: "),
        (raw(retry={"on": ["lost"]}), "retry: `on: [lost]` needs `idempotent: true`"),
        (raw(retry={"base": "10m", "max": "1m"}), "retry: `max` is shorter than `base`"),
        (raw(retry={"attempts": 0}), "retry.attempts: 0 cannot be used"),
        (raw(retry="3"), "retry: a mapping of fields belongs here, not text. Known here: attempts, backoff, base"),
        (raw(limits={"open_files": 1}), "limits.open_files: 1 cannot be used"),
        (raw(argv=["a", "{{ steps.x.text }}"]), "{{ steps.x.text }} in a job of kind command"),
        (raw(argv=["{{ run.foldr }}"]), "unknown placeholder {{ run.foldr }}"),
        (raw(argv=["curl", "{{ secret.x }}"]), "argv[1]: {{ secret.x }} cannot stand here, where others could see it"),
        (raw(stdin="{{ secret.x }}"), "stdin: {{ secret.x }} cannot stand here"),
        (raw(env={"A": "{{ secret.../x }}"}), "unknown placeholder {{ secret.../x }}"),
        ({**FULL[4], "kwargs": {"a": ["{{ secret.x }}"]}}, "kwargs.a[0]: {{ secret.x }} cannot stand here"),
        (agent(step("a", argv=["x", "{{ secret.x }}"])), "steps[0].argv[1]: {{ secret.x }} cannot stand here"),
        (agent(step("a"), env={"A": "{{ steps.a.text }}"}), "env.A: {{ steps.a.text }} in `env`, which holds for"),
        (
            raw(notify={"command": ["say", "{{ run.folder }}"]}),
            "notify[0].command[1]: {{ run.folder }} is not filled in here",
        ),
        ({**FULL[4], "call": "f"}, "call: 'f' does not name a function. Write module:function"),
        ({**FULL[4], "kwargs": {"a": float("inf")}}, "kwargs: inf is no JSON value"),
        ({**FULL[4], "kwargs": {"a": 2**70}}, "kwargs: 1180591620717411303424 does not fit in 64 bits"),
        ({**FULL[4], "kwargs": {"a": "\ud800"}}, "kwargs: the text holds half of a surrogate pair"),
        ({**FULL[5], "lines": None}, "the prompt has {{ line }} but there are no `lines`"),
        ({**FULL[5], "prompt": "Triage"}, "the prompt never uses {{ line }}"),
        ({**FULL[5], "device": "gpu"}, "device: 'gpu' cannot be used here"),
        ({**FULL[5], "temperature": -1}, "temperature: -1 cannot be used"),
        ({**FULL[5], "promt": "x"}, "promt: unknown field 'promt'. Did you mean 'prompt'?"),
        (agent(), "steps: the list is empty"),
        (agent(step("a"), step("a")), "two steps are called 'a'"),
        (agent(step("a", after=["b"]), step("b", after=["a"])), "the steps wait for each other: a -> b -> a"),
        (agent(step("a", after=["a"])), "the steps wait for each other: a -> a"),
        (agent(step("fetch"), step("b", after=["fetsh"])), "is after 'fetsh', which is no step. Did you mean 'fetch'?"),
        (agent(step("a"), step("b", stdin="{{ steps.a.file }}")), "does not wait for it. Add a to its `after`"),
        (agent(step("a", stdin="{{ steps.a.file }}")), "uses the output of 'a' but does not wait for it"),
        (agent(step("a", stdin="{{ steps.z.file }}")), "uses the output of 'z', which is no step"),
        (agent(step("a", stdin="{{ steps.b.fle }}")), "a step has no 'fle' in {{ steps.b.fle }}. It has text"),
        (agent({"name": "a"}), "steps[0]: the field 'kind' is missing. A step is of kind command, python or inference"),
        (agent({"name": "a", "kind": "agent"}), "steps[0].kind: unknown kind of step 'agent'"),
        (agent(5), "steps[0]: a mapping of fields belongs here, not a number"),
        (agent(step("a.b")), "steps[0].name: 'a.b' cannot be used here"),
        (agent(step("a", retries=5)), "steps[0].retries: unknown field 'retries'. Known here:"),
        (agent(step("a"), outputs=["x"]), "an agent's steps write its files"),
        (
            agent(step("a"), {"name": "b", "after": ["a"], "kind": "command", "shell": "echo {{ steps.a.text }}"}),
            "puts an earlier step's output into a shell text",
        ),
        ("text", "a job is a mapping, not text"),
        (None, "a job is a mapping, not nothing"),
        ({**raw(), "spec": 2}, "spec: canonical form 2 is unknown"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_its_place_and_what_to_do(given, fault):
    found = faults(given)

    assert any(fault in line for line in found), found


def test_all_faults_are_told_at_once():
    assert len(faults(raw(timeout=10, priority=500, shedule="x", retry={"atempts": 1}))) == 4


def test_an_unfit_step_does_not_make_the_list_seem_too_short():
    assert len(faults(agent({"name": "a", "kind": "comand"}))) == 1


def test_outputs_pass_through_steps_that_stand_between():
    job = parse_job(agent(step("a"), step("b", after="a"), step("c", after="b", stdin="{{ steps.a.file }}")))

    assert isinstance(job, AgentJob)
    assert [one.name for one in job.steps] == ["a", "b", "c"]


def test_braces_of_other_programs_are_left_alone():
    argv = ["docker", "ps", "--format", "{{.Names}} {{ lineage }} {{ json . }}", "{{ run.folder }}"]

    job = parse_job(raw(argv=argv))

    assert list(references(job.canonical())) == [Reference("run.folder")]


def test_secrets_can_stand_in_variables_and_where_notices_go():
    job = parse_job(
        raw(
            env={"TOKEN": "Bearer {{ secret.api_key }}"},
            notify=[{"webhook": "{{secret.hook}}"}, {"command": ["page", "{{ secret.me }}"]}],
        )
    )
    assert [found.secret for found in references(job.canonical())] == ["hook", "me", "api_key"]


def test_placeholders_are_filled():
    def lookup(found):
        return {"run.folder": "/runs/1"}.get(found.name, {"rows": [1, 2]} if found.output == "result" else 7)

    filled = fill({"a": ["{{ steps.x.result }}", "{{run.folder}}/{{ steps.x.text }}", "{{ other }}"]}, lookup)

    assert filled == {"a": [{"rows": [1, 2]}, "/runs/1/7", "{{ other }}"]}
    with pytest.raises(BadValue, match="cannot stand inside longer text"):
        fill("rows: {{ steps.x.result }}", lookup)


def test_expires_is_an_instant_in_the_zone_of_the_schedule():
    paris = raw(schedule={"cron": "0 0 * * *", "timezone": "Europe/Paris"}, expires="2027-01-01")
    home = raw(schedule={"every": "1h"}, expires="2027-01-01")

    assert parse_job(paris, "Asia/Kolkata").expires_ms == ms_of("2026-12-31T23:00:00Z")
    assert parse_job(home, "Asia/Kolkata").expires_ms == ms_of("2026-12-31T18:30:00Z")
    assert parse_job(raw(expires="2027-01-01T09:00+01:00")).expires_ms == ms_of("2027-01-01T08:00:00Z")
    assert parse_job(raw()).expires_ms is None


@pytest.mark.parametrize(
    ("text", "ms"),
    [("90s", 90_000), ("1h30m", 5_400_000), ("1.5h", 5_400_000), ("500ms", 500), ("2d", 172_800_000), 
     ("1w", 604_800_000), ("0", 0), ("0s", 0), ("1h 30m", 5_400_000), (" 5m ", 300_000)],
)  # fmt: skip
def test_durations(text, ms):
    assert parse_duration(text) == ms


@pytest.mark.parametrize(
    "text", ["", "5", "m", "-5m", "5 m", "30m1h", "1h1h", "0.0001s", "1e3s", "5M", "٣s", "9" * 70 + "s", "365001d"]
)
def test_what_is_no_duration(text):
    with pytest.raises(BadValue):
        parse_duration(text)


@given(st.integers(0, 2**40))
def test_durations_are_written_as_they_are_read(ms):
    assert parse_duration(duration_text(ms)) == ms


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 << 30), ("2GB", 2 * 10**9), ("512", 512), ("1.5KiB", 1536), ("7 B", 7), ("1kB", 1000)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1XB", "0.3B", "1 GiB x", "9" * 30 + "TB"])
def test_what_is_no_size(text):
    with pytest.raises(BadValue):
        parse_size(text)


def test_a_wait_that_does_not_grow_needs_no_longest():
    assert parse_job(raw(retry={"attempts": 3, "backoff": "fixed", "base": "10m"})).retry.base_ms == 600_000


TOO_MUCH = [
    {"budget": {"runs_per_day": 2**63}}, {"needs": {"tokens": 2**63}}, {"needs": {"memory": 2**63}},
    {"needs": {"cpu": 1e306}}, {"keep": {"runs": 2**63}}, {"limits": {"open_files": 2**63}},
    {"limits": {"cpu_seconds": 2**63}}, {"expects": {"file": "a", "min_bytes": 2**63}},
    {"retry": {"attempts": 2, "base": "9000000d", "max": "9000000d"}}, {"timeout": "9000000d"},
]  # fmt: skip


@pytest.mark.parametrize("fields", TOO_MUCH, ids=str)
def test_what_no_record_could_hold_and_no_clock_could_reach_is_refused(fields):
    assert len(faults(raw(**fields))) >= 1


def test_the_schema_accepts_what_the_model_accepts():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)

    for sound in FULL:
        validator.validate(sound)
        validator.validate([sound])
    for unfit in (raw(jiter="5s"), raw(priority=500), raw(timeout="ten minutes"), {"name": "a"}, "text"):
        assert not validator.is_valid(unfit)
