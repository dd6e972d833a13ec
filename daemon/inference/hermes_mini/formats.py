"""How loggers write a line: each format puts a message, with or without its severity, into the shape of one of them."""

# ruff: noqa: E501  one format, one line
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from daemon.inference.hermes_mini.slots import MONTHS, SLOTS, clock, day, domain, hexadecimal, ip, word

SEVERITIES = ("debug", "info", "warning", "error", "critical")

_host, _user = SLOTS["host"], SLOTS["user"]


@dataclass(frozen=True, slots=True)
class Entry:
    severity: str
    text: str
    program: str


Format = Callable[[Random, Entry], str]


def _stamp(rng: Random) -> str:
    return f"{rng.choice(MONTHS)} {rng.randint(1, 28):2} {clock(rng)}"


def _level(rng: Random, severity: str, *choices: str) -> str:
    """The logger's word: `choices` are alternatives for debug, info, warning, error, critical, separated by |."""
    return rng.choice(choices[SEVERITIES.index(severity)].split("|"))


def _word_of(rng: Random, severity: str) -> str:
    word = _level(rng, severity, "debug|trace|verbose", "info|info|info|notice", "warning|warn", "error|error|err", "critical|fatal|crit|emerg|alert|panic")
    return word.upper() if rng.random() < 0.5 else word


def _tag(rng: Random, entry: Entry) -> str:
    return f"{entry.program}{rng.choice((f'[{rng.randint(1, 99999)}]', f'[{rng.randint(1, 99999)}]', ''))}:"


def _logger(rng: Random) -> str:
    return rng.choice((f"{word(rng)}.{word(rng)}", word(rng), "__main__", "root", f"app.{word(rng)}", "uvicorn.error", "django.request"))


def _java_class(rng: Random) -> str:
    return f"{rng.choice(('com', 'org', 'o.s', 'c'))}.{word(rng)}.{word(rng).capitalize()}{rng.choice(('Service', 'Controller', 'Client', 'Manager', ''))}"


def _json(rng: Random, pairs: list[tuple[str, object]]) -> str:
    return json.dumps(dict(pairs), separators=rng.choice(((",", ":"), (", ", ": "))), ensure_ascii=False)


def _millis(rng: Random) -> str:
    return f"{clock(rng)}{rng.choice('.,')}{rng.randint(0, 999):03}"


_J = ("debug|trace", "info", "warn|warning", "error", "fatal|critical")
_JU = ("DEBUG|TRACE", "INFO", "WARN|WARNING", "ERROR", "FATAL|CRITICAL")


def _access(rng: Random, entry: Entry) -> str:
    method, path, status = entry.text.split(" ")
    size = rng.randint(0, 90000)
    agent = rng.choice(("Mozilla/5.0 (X11; Linux x86_64)", "curl/7.88.1", "Mozilla/5.0 (compatible; Googlebot/2.1)", "kube-probe/1.27", "-", "python-requests/2.31"))
    zone = rng.choice(("+0000", "+0100", "-0500"))
    when = f"[{rng.randint(1, 28):02}/{rng.choice(MONTHS)}/{rng.randint(2018, 2029)}:{clock(rng)} {zone}]"
    user = rng.choice(("-", "-", "-", "alice"))
    return rng.choice((
        f'{ip(rng)} - {user} {when} "{method} {path} HTTP/1.1" {status} {size} "-" "{agent}"',
        f'{ip(rng)} - {user} {when} "{method} {path} HTTP/2.0" {status} {size} "https://{domain(rng)}/" "{agent}"',
        f'{ip(rng)} - - {when} "{method} {path} HTTP/1.1" {status} {size}',
        f'{domain(rng)}:443 {ip(rng)} - - {when} "{method} {path} HTTP/1.1" {status} {size} "-" "{agent}"',
        f'INFO:     {ip(rng)}:{rng.randint(1024, 65000)} - "{method} {path} HTTP/1.1" {status}' if status[0] in "23" else f'{ip(rng)} {when} {method} {path} {status} {rng.randint(1, 999)}ms',
    ))


FORMATS: dict[str, Format] = {
    "raw": lambda r, e: e.text,
    "rfc3164": lambda r, e: f"{_stamp(r)} {_host(r)} {_tag(r, e)} {e.text}",
    "priority": lambda r, e: f"<{r.randint(0, 191)}>{_stamp(r)} {_host(r)} {_tag(r, e)} {e.text}",
    "journal": lambda r, e: f"{day(r)}T{clock(r)}+0000 {_host(r)} {_tag(r, e)} {e.text}",
    "rsyslog": lambda r, e: f"{day(r)}T{clock(r)}.{r.randint(0, 999999):06}+{r.randint(0, 9):02}:00 {_host(r)} {_tag(r, e)} {e.text}",
    "rfc5424": lambda r, e: f"<{r.randint(0, 191)}>1 {day(r)}T{clock(r)}.{r.randint(0, 999):03}Z {_host(r)} {e.program} {r.randint(1, 99999)} - - {e.text}",
    "dmesg": lambda r, e: f"[{r.randint(0, 99999):5}.{r.randint(0, 999999):06}] {e.text}",
    "dmesg-T": lambda r, e: f"[{r.choice(('Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun'))} {_stamp(r)} {r.randint(2018, 2029)}] {e.text}",
    "kernel-syslog": lambda r, e: f"{_stamp(r)} {_host(r)} kernel: [{r.randint(0, 99999):5}.{r.randint(0, 999999):06}] {e.text}",
    "kernel-journal": lambda r, e: f"{_stamp(r)} {_host(r)} kernel: {e.text}",
    "dpkg": lambda r, e: f"{day(r)} {clock(r)} {e.text}",
    "plain-stamp": lambda r, e: f"{day(r)} {clock(r)} {e.text}",
    "compose": lambda r, e: f"{word(r)}-{r.randint(1, 3)}  | {e.text}",
    "pacman": lambda r, e: f"[{day(r)}T{clock(r)}+0000] {e.text}" if e.text.startswith("[") else e.text,
    "access": _access,
    "audit": lambda r, e: f"type={e.text.split(' ')[0]} msg=audit({r.randint(10**9, 2 * 10**9)}.{r.randint(0, 999):03}:{r.randint(1, 9999)}): {e.text.partition(' ')[2]}",
    "fail2ban": lambda r, e: f"{day(r)} {clock(r)},{r.randint(0, 999):03} fail2ban.{r.choice(('actions', 'filter', 'server', 'jail'))} [{r.randint(1, 9999)}]: {_level(r, e.severity, 'DEBUG', 'INFO|NOTICE', 'WARNING', 'ERROR', 'CRITICAL')}  {e.text}",
    "nginx": lambda r, e: f"{day(r).replace('-', '/')} {clock(r)} [{_level(r, e.severity, 'debug', 'notice|info', 'warn', 'error', 'crit|alert|emerg')}] {r.randint(1, 9999)}#{r.randint(1, 9999)}: *{r.randint(1, 9999)} {e.text}",
    "apache": lambda r, e: f"[{r.choice(('Mon', 'Tue', 'Wed', 'Thu', 'Fri'))} {_stamp(r)}.{r.randint(0, 999999):06} {r.randint(2018, 2029)}] [{r.choice(('core', 'php', 'ssl', 'mpm_event', 'proxy', 'authz_core'))}:{_level(r, e.severity, 'debug|trace1', 'notice|info', 'warn', 'error', 'crit|alert|emerg')}] [pid {r.randint(1, 99999)}] {r.choice((f'[client {ip(r)}:{r.randint(1024, 65000)}] ', ''))}{e.text}",
    "logfmt": lambda r, e: f'time="{day(r)}T{clock(r)}Z" level={_level(r, e.severity, *_J)} msg="{e.text}"' + r.choice(("", f" {word(r)}={word(r)}", f" error={word(r)}")),
    "logfmt-bare": lambda r, e: f'ts={day(r)}T{clock(r)}.{r.randint(0, 999):03}Z caller={word(r)}.go:{r.randint(1, 999)} level={_level(r, e.severity, *_J)} component={word(r)} msg="{e.text}"',
    "slog": lambda r, e: f'{day(r)}T{clock(r)}Z level={_level(r, e.severity, *_JU)} source={word(r)}.go:{r.randint(1, 999)} msg="{e.text}"',
    "gostd": lambda r, e: f"{day(r).replace('-', '/')} {clock(r)} {_level(r, e.severity, 'DEBUG|[DEBUG]|[D]', 'INFO|[INFO]|[I]', 'WARN|[WARN]|[W]', 'ERROR|[ERROR]|[E]|ERR', 'FATAL|[FATAL]|CRITICAL|[CRIT]')}{r.choice(('', ':'))} {e.text}",
    "pino": lambda r, e: _json(r, [("level", {"debug": 20, "info": 30, "warning": 40, "error": 50, "critical": 60}[e.severity]), ("time", r.randint(15 * 10**11, 19 * 10**11)), ("pid", r.randint(1, 9999)), ("hostname", word(r)), ("msg", e.text)]),
    "winston": lambda r, e: _json(r, [("level", _level(r, e.severity, *_J)), ("message", e.text), ("service", word(r)), ("timestamp", f"{day(r)}T{clock(r)}Z")]),
    "json-time": lambda r, e: _json(r, [("timestamp", f"{day(r)}T{clock(r)}Z"), (r.choice(("level", "severity", "loglevel", "lvl")), _word_of(r, e.severity)), ("logger", _logger(r)), (r.choice(("message", "msg", "event")), e.text)]),
    "zap": lambda r, e: _json(r, [("level", _level(r, e.severity, "debug", "info", "warn", "error", "fatal|panic|dpanic")), ("ts", f"{day(r)}T{clock(r)}.{r.randint(0, 999):03}Z"), ("caller", f"{word(r)}/{word(r)}.go:{r.randint(1, 999)}"), ("msg", e.text)]),
    "mongodb": lambda r, e: _json(r, [("t", {"$date": f"{day(r)}T{clock(r)}.000+00:00"}), ("s", _level(r, e.severity, "D1|D2", "I", "W", "E", "F")), ("c", r.choice(("NETWORK", "STORAGE", "CONTROL", "COMMAND", "ACCESS", "INDEX"))), ("id", r.randint(1000, 99999999)), ("ctx", r.choice(("conn12", "initandlisten", "listener"))), ("msg", e.text)]),
    "klog": lambda r, e: f"{_level(r, e.severity, 'I', 'I', 'W', 'E', 'F')}{r.randint(1, 12):02}{r.randint(1, 28):02} {clock(r)}.{r.randint(0, 999999):06} {r.randint(1, 99999):7} {word(r)}.go:{r.randint(1, 999)}] {e.text}",
    "python": lambda r, e: f"{day(r)} {clock(r)},{r.randint(0, 999):03} - {_logger(r)} - {_level(r, e.severity, 'DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL|FATAL')} - {e.text}",
    "python-basic": lambda r, e: f"{_level(r, e.severity, 'DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')}:{_logger(r)}:{e.text}",
    "python2": lambda r, e: f"{day(r)} {clock(r)},{r.randint(0, 999):03} {_level(r, e.severity, 'DEBUG', 'INFO', 'WARNING|WARN', 'ERROR|ERR', 'CRITICAL|CRIT')} {e.text}",
    "flask": lambda r, e: f"[{day(r)} {clock(r)},{r.randint(0, 999):03}] {_level(r, e.severity, 'DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')} in {word(r)}: {e.text}",
    "gunicorn": lambda r, e: f"[{day(r)} {clock(r)} +0000] [{r.randint(1, 99999)}] [{_level(r, e.severity, 'DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')}] {e.text}",
    "loguru": lambda r, e: f"{day(r)} {clock(r)}.{r.randint(0, 999):03} | {_level(r, e.severity, 'DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL'):8} | {word(r)}.{word(r)}:{word(r)}:{r.randint(1, 999)} - {e.text}",
    "log4j": lambda r, e: f"{day(r)} {_millis(r)} {_level(r, e.severity, 'DEBUG|TRACE', 'INFO', 'WARN', 'ERROR', 'FATAL'):5} [{r.choice(('main', 'http-nio-8080-exec-1', 'pool-1-thread-3', word(r)))}] {_java_class(r)}{r.choice((' - ', ': '))}{e.text}",
    "logback": lambda r, e: f"{_millis(r)} [{r.choice(('main', 'pool-2-thread-1', word(r)))}] {_level(r, e.severity, 'DEBUG|TRACE', 'INFO', 'WARN', 'ERROR', 'FATAL'):5} {_java_class(r)} - {e.text}",
    "spring": lambda r, e: f"{day(r)}T{_millis(r)}Z {_level(r, e.severity, 'DEBUG|TRACE', 'INFO', 'WARN', 'ERROR', 'FATAL'):>5} {r.randint(1, 99999)} --- [{r.choice(('           main', 'nio-8080-exec-1', 'scheduling-1'))}] {_java_class(r)} : {e.text}",
    "kafka": lambda r, e: f"[{day(r)} {clock(r)},{r.randint(0, 999):03}] {_level(r, e.severity, 'DEBUG|TRACE', 'INFO', 'WARN', 'ERROR', 'FATAL')} {e.text} ({_java_class(r)})",
    "postgres": lambda r, e: f"{day(r)} {clock(r)}.{r.randint(0, 999):03} UTC [{r.randint(1, 99999)}] {r.choice(('', _user(r) + '@' + word(r) + ' '))}{_level(r, e.severity, 'DEBUG|DEBUG1', 'LOG|LOG|NOTICE|INFO', 'WARNING', 'ERROR', 'FATAL|FATAL|PANIC')}:  {e.text}",
    "mysql": lambda r, e: f"{day(r)}T{clock(r)}.{r.randint(0, 999999):06}Z {r.randint(0, 99)} [{_level(r, e.severity, 'Debug', 'System|Note', 'Warning', 'ERROR', 'FATAL')}] [MY-{r.randint(10000, 19999):06}] [{r.choice(('Server', 'InnoDB', 'Repl'))}] {e.text}",
    "redis": lambda r, e: f"{r.randint(1, 99999)}:{r.choice('MSCX')} {r.randint(1, 28):02} {r.choice(MONTHS)} {r.randint(2018, 2029)} {clock(r)}.{r.randint(0, 999):03} {_level(r, e.severity, '.', '*|-', '#', '#', '#')} {e.text}",
    "samba": lambda r, e: f"[{day(r).replace('-', '/')} {clock(r)}.{r.randint(0, 999999):06},  {r.randint(0, 3)}] ../../source3/smbd/{word(r)}.c:{r.randint(1, 999)}({word(r)}) {e.text}",
    "nm": lambda r, e: f"{_stamp(r)} {_host(r)} NetworkManager[{r.randint(1, 9999)}]: <{_level(r, e.severity, 'debug|trace', 'info', 'warn', 'error', 'error')}>  [{r.randint(10**9, 2 * 10**9)}.{r.randint(0, 9999):04}] {e.text}",
    "cups": lambda r, e: f"{_level(r, e.severity, 'D|d', 'I|N', 'W', 'E', 'X|A|C')} [{r.randint(1, 28):02}/{r.choice(MONTHS)}/{r.randint(2018, 2029)}:{clock(r)} +0000] {e.text}",
    "bind": lambda r, e: f"{r.randint(1, 28):02}-{r.choice(MONTHS)}-{r.randint(2018, 2029)} {clock(r)}.{r.randint(0, 999):03} {r.choice(('queries', 'general', 'security', 'resolver', 'xfer-in'))}: {_level(r, e.severity, 'debug 1', 'info|notice', 'warning', 'error', 'critical')}: {e.text}",
    "xorg": lambda r, e: f"[{r.randint(1, 9999):6}.{r.randint(0, 999):03}] {e.text}",
    "windows": lambda r, e: r.choice((
        f"{_level(r, e.severity, 'Verbose', 'Information', 'Warning', 'Error', 'Critical')},{r.randint(1, 12)}/{r.randint(1, 28)}/{r.randint(2018, 2029)} {r.randint(1, 12)}:{r.randint(0, 59):02}:{r.randint(0, 59):02} {r.choice(('AM', 'PM'))},{word(r).capitalize()},{r.randint(1, 9999)},None,{e.text}",
        f"{day(r)} {clock(r)} {_host(r).upper()} EventID={r.randint(1, 9999)} Level={_level(r, e.severity, 'Verbose', 'Information', 'Warning', 'Error', 'Critical')} Message={e.text}",
    )),
    "macos": lambda r, e: r.choice((
        f"{day(r)} {clock(r)}.{r.randint(0, 999999):06}+0100 0x{hexadecimal(r, 4, 6)} {_level(r, e.severity, 'Debug', 'Default|Info', 'Default', 'Error', 'Fault')} 0x0 {r.randint(1, 9999)} 0 {e.program}: {e.text}",
        f"{_stamp(r)} {_host(r)} {_tag(r, e)} {e.text}",
    )),
    "hclog": lambda r, e: f"{day(r)}T{clock(r)}.{r.randint(0, 999):03}Z [{_level(r, e.severity, 'DEBUG|TRACE', 'INFO', 'WARN', 'ERROR', 'ERROR')}]  {e.text}",
    "prefixed": lambda r, e: f"{_word_of(r, e.severity)}{r.choice((': ', ' - ', ' '))}{e.text}",
    "bracketed": lambda r, e: f"[{_word_of(r, e.severity)}] {e.text}",
    "stamp-bracketed": lambda r, e: f"{day(r)} {clock(r)} [{_word_of(r, e.severity)}] {r.choice(('', word(r) + ': '))}{e.text}",
    "stamp-word": lambda r, e: f"{day(r)}T{clock(r)}Z {_word_of(r, e.severity)} {r.choice(('', word(r) + ': ', f'[{word(r)}] '))}{e.text}",
    "syslog-word": lambda r, e: f"{_stamp(r)} {_host(r)} {_tag(r, e)} {_word_of(r, e.severity)}: {e.text}",
    "elixir": lambda r, e: f"{day(r)} {clock(r)}.{r.randint(0, 999999):06}+00:00 [{_level(r, e.severity, 'debug', 'info|notice', 'warning', 'error', 'critical')}] <0.{r.randint(1, 999)}.0> {e.text}",
    "radius": lambda r, e: f"{r.choice(('Mon', 'Tue', 'Sun'))} {_stamp(r)} {r.randint(2018, 2029)} : {'Auth' if 'Login' in e.text else _level(r, e.severity, 'Debug', 'Info', 'Warning', 'Error', 'Error')}: {e.text}",
    "celery": lambda r, e: f"[{day(r)} {clock(r)},{r.randint(0, 999):03}: {_level(r, e.severity, 'DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')}/{r.choice(('MainProcess', 'ForkPoolWorker-2'))}] {e.text}",
    "elastic": lambda r, e: f"[{day(r)}T{clock(r)},{r.randint(0, 999):03}][{_level(r, e.severity, 'DEBUG|TRACE', 'INFO', 'WARN', 'ERROR', 'FATAL'):5}][o.e.{word(r)}.{word(r).capitalize()}] [{word(r)}] {e.text}",
    "logcat": lambda r, e: f"{r.randint(1, 12):02}-{r.randint(1, 28):02} {clock(r)}.{r.randint(0, 999):03} {r.randint(1, 9999):5} {r.randint(1, 9999):5} {_level(r, e.severity, 'D|V', 'I', 'W', 'E', 'F')} {word(r).capitalize()}: {e.text}",
    "ruby": lambda r, e: f"{e.severity[0].upper() if e.severity != 'critical' else 'F'}, [{day(r)}T{clock(r)}.{r.randint(0, 999999):06} #{r.randint(1, 99999)}] {_level(r, e.severity, 'DEBUG', ' INFO', ' WARN', 'ERROR', 'FATAL')} -- : {e.text}",
    "rust": lambda r, e: r.choice((
        f"[{day(r)}T{clock(r)}Z {_level(r, e.severity, 'DEBUG|TRACE', 'INFO', 'WARN', 'ERROR', 'ERROR'):5} {word(r)}::{word(r)}] {e.text}",
        f"{day(r)}T{clock(r)}.{r.randint(0, 999999):06}Z {_level(r, e.severity, 'DEBUG|TRACE', 'INFO', 'WARN', 'ERROR', 'ERROR'):>5} {word(r)}::{word(r)}: {e.text}",
    )),
}

GROUPS: dict[str, tuple[str, ...]] = {
    "syslog": ("rfc3164", "rfc3164", "journal", "rsyslog", "rfc5424", "priority"),
    "kernel": ("dmesg", "dmesg", "dmesg-T", "kernel-syslog", "kernel-journal"),
    "python": ("python", "python-basic", "python2", "flask", "gunicorn", "loguru"),
    "java": ("log4j", "logback", "spring", "kafka"),
    "node": ("pino", "winston", "json-time", "bracketed"),
    "go": ("logfmt", "logfmt-bare", "slog", "gostd", "zap"),
    "logfmt-go": ("logfmt", "logfmt-bare", "slog"),
    "json": ("json-time", "zap", "winston"),
    "raw": ("raw", "raw", "plain-stamp", "compose"),
}
"""Names that families use for several formats at once."""

UNLEVELLED = frozenset({
    "raw", "rfc3164", "priority", "journal", "rsyslog", "rfc5424", "dmesg", "dmesg-T", "kernel-syslog",
    "kernel-journal", "dpkg", "plain-stamp", "compose", "pacman", "access", "audit", "samba", "xorg", "redis", "radius",
    "macos",
})
LEVELLED = frozenset(FORMATS) - UNLEVELLED
_OWN = frozenset({"dpkg", "pacman", "access", "audit", "xorg", "radius"})
KEPT_FROM_TRAINING = frozenset({"elixir", "radius", "celery", "elastic", "logcat", "ruby", "rust"})
IN_TRAINING = tuple(name for name in FORMATS if name not in _OWN | KEPT_FROM_TRAINING | {"redis", "macos"})
LEVELLED_IN_TRAINING = tuple(name for name in IN_TRAINING if name in LEVELLED)

FLATTENED = {
    ("critical", "nm"): "error", ("critical", "hclog"): "error", ("critical", "rust"): "error",
    ("debug", "klog"): "info",
}
"""Loggers that have no word for a severity write the next one, and what they write counts."""
