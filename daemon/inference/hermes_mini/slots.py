"""What may stand in a slot of a template: names, numbers, paths, addresses, all invented."""

# ruff: noqa: E501, SIM905  one slot, one line; a list of words reads best as words
from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

_SYLLABLES = "ba be bo ca co da de di do fa fi fo ga go ka ki ko la le li lo ma me mi mo na ne ni no pa pe po ra re ri"
_SYLLABLES += " ro sa se si so ta te ti to va ve vi vo wa xe ya ze zo bri cla dra fle gro kra plu sto tri vor zen qui"
_ENDINGS = ("", "n", "r", "x", "s", "l", "d", "k", "th")
_REAL_WORDS = (
    "orders billing users catalog search invoice report session worker queue events metrics gateway frontend backend"
    " payments inventory media images static public config main data test prod staging dev alpha beta default common"
    " shop blog wiki mail chat video audio photo music books cloud edge core base node site store stage tools build"
    " scripts daily nightly weekly export import sync archive cache proxy web api admin portal client vendor plugins"
    " sensor camera garden kitchen office lab campus north south east west red green blue silver falcon otter heron"
).split()
_PACKAGES = (
    "libssl3 openssl libc6 libc-bin nginx curl wget vim python3 python3-pip bash coreutils systemd libsystemd0 git gcc"
    " g++ make perl tzdata ca-certificates linux-image-amd64 linux-headers-6.1 firefox chromium libreoffice docker-ce"
    " postgresql-15 mysql-server redis-server nodejs npm ruby rustc golang lodash react express webpack typescript"
    " requests numpy pandas django flask torch urllib3 setuptools wheel pytest serde tokio rails rake json-c zlib1g"
    " libxml2 libpng16-16 fonts-dejavu gnome-shell grub-pc initramfs-tools udev dbus man-db mime-support sed gzip"
).split()
_PROGRAMS = (
    "nginx postgres java python3 node chrome firefox mysqld redis-server dockerd containerd kubelet sshd cron rsync"
    " bash systemd apache2 php-fpm ruby perl snapd gnome-shell Xorg qemu-system-x86 stress ffmpeg gunicorn celery make"
).split()
_UNITS = (
    "nginx docker ssh cron postgresql mysql redis-server apache2 NetworkManager snapd apt-daily fstrim logrotate"
    " bluetooth cups user@1000 getty@tty1 systemd-udevd rsyslog man-db backup e2scrub_all ModemManager"
).split()


def _invented(rng: Random) -> str:
    return "".join(rng.choices(_SYLLABLES.split(), k=rng.randint(2, 3))) + rng.choice(_ENDINGS)


def word(rng: Random) -> str:
    return rng.choice(_REAL_WORDS) if rng.random() < 0.4 else _invented(rng)


def hexadecimal(rng: Random, low: int = 4, high: int = 16) -> str:
    return "".join(rng.choices("0123456789abcdef", k=rng.randint(low, high)))


def _number(rng: Random) -> str:
    return str(rng.choice((rng.randint(0, 9), rng.randint(10, 99), rng.randint(100, 999))))


def _version(rng: Random) -> str:
    text = ".".join(str(rng.randint(0, 40)) for _ in range(rng.randint(2, 3)))
    return text + rng.choice(("", "", "", f"-{rng.randint(1, 9)}", f"+deb12u{rng.randint(1, 9)}", f"-{rng.randint(0, 9)}ubuntu1"))


def _path(rng: Random) -> str:
    root = rng.choice(("/var/lib", "/srv", "/opt", "/home", "/etc", "/usr/share", "/data", "/tmp", "/var/log", "/app"))
    return "/".join((root, *(word(rng) for _ in range(rng.randint(1, 3)))))


def domain(rng: Random) -> str:
    return f"{rng.choice(('www.', 'api.', 'mail.', '', '', 'cdn.'))}{word(rng)}.{rng.choice(('com', 'org', 'net', 'io', 'local', 'example.com', 'de'))}"


def _duration(rng: Random) -> str:
    return rng.choice((f"{rng.randint(1, 900)}ms", f"{rng.randint(1, 90)}.{rng.randint(0, 999)}s", f"{rng.randint(1, 59)}s", f"{rng.randint(1, 9)}m{rng.randint(0, 59)}s"))


def _size(rng: Random) -> str:
    return f"{rng.randint(1, 999)}{rng.choice(('', f'.{rng.randint(0, 9)}'))}{rng.choice((' ', ''))}{rng.choice(('kB', 'MB', 'GB', 'MiB', 'GiB', 'M', 'G', 'TB'))}"


MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def clock(rng: Random) -> str:
    return f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}"


def day(rng: Random) -> str:
    return f"{rng.randint(2015, 2030)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def ip(rng: Random) -> str:
    if rng.random() < 0.06:
        return f"2001:db8:{hexadecimal(rng, 2, 4)}:{hexadecimal(rng, 2, 4)}::{hexadecimal(rng, 1, 4)}"
    return ".".join(str(rng.randint(1, 254)) for _ in range(4))


SLOTS: dict[str, Callable[[Random], str]] = {
    "b64": lambda r: "".join(r.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", k=r.choice((8, 16, 43)))),
    "dev": lambda r: r.choice(("sda", "sdb", "sdc", "sdf", "nvme0n1", "vda", "xvdf", "hda", "nvme1n1", "md0", "dm-0")),
    "domain": domain,
    "DOMAIN": lambda r: domain(r).upper(),
    "dur": _duration,
    "email": lambda r: f"{SLOTS['user'](r)}@{domain(r)}",
    "hex": hexadecimal,
    "host": lambda r: r.choice((f"{word(r)}-{r.randint(1, 40):02}", word(r), f"{word(r)}.local", f"ip-10-0-{r.randint(0, 99)}-{r.randint(0, 99)}", "localhost")),
    "iface": lambda r: r.choice(("eth0", "eth1", "ens3", "enp3s0", "wlan0", "wlp2s0", "eno1", "br0", "bond0", "tun0", "veth1a2b", "lo")),
    "img": lambda r: f"{r.choice(('docker.io/library/', 'registry.k8s.io/', 'ghcr.io/', ''))}{word(r)}:{r.choice(('latest', _version(r)))}",
    "ip": ip,
    "iso": lambda r: f"{day(r)}T{clock(r)}",
    "iso2": lambda r: f"{day(r)}  {clock(r)}" if r.random() < 0.5 else f"{day(r)} {clock(r)}",
    "mac": lambda r: ":".join(hexadecimal(r, 2, 2) for _ in range(6)),
    "mount": lambda r: r.choice(("/", "/var", "/home", "/boot", "/srv", "/data", "/var/lib/docker", "/mnt/backup", f"/mnt/{word(r)}", "/tmp")),
    "n": _number,
    "N": lambda r: str(r.randint(1000, 99999999)),
    "path": _path,
    "pct": lambda r: str(r.randint(80, 99)),
    "pid": lambda r: str(r.randint(100, 4000000)),
    "pkg": lambda r: r.choice(_PACKAGES) if r.random() < 0.6 else r.choice(("", "lib", "python3-", "golang-", "@")) + _invented(r),
    "port": lambda r: str(r.choice((80, 443, 8080, 3000, 5432, 6379, 9090, r.randint(1024, 65535)))),
    "prog": lambda r: r.choice(_PROGRAMS) if r.random() < 0.4 else _invented(r) + r.choice(("", "d", "-agent", "ctl")),
    "size": _size,
    "table": lambda r: r.choice(("users", "orders", "events", "sessions", "products", word(r))),
    "unit": lambda r: r.choice(_UNITS) if r.random() < 0.6 else _invented(r),
    "url": lambda r: f"http{r.choice(('', 's'))}://{domain(r)}/{word(r)}",
    "urlpath": lambda r: "/" + "/".join(word(r) for _ in range(r.randint(0, 3))) + r.choice(("", "", ".html", ".js", ".png", f"?id={r.randint(1, 999)}", f"/{r.randint(1, 9999)}")),
    "user": lambda r: r.choice(("root", "admin", "alice", "bob", "deploy", "ubuntu", "postgres", "guest", "git", "www-data", "oracle", _invented(r), _invented(r))),
    "uuid": lambda r: "-".join(hexadecimal(r, k, k) for k in (8, 4, 4, 4, 12)),
    "ver": _version,
    "word": word,
    "Word": lambda r: word(r).capitalize(),
    "WORD": lambda r: word(r).upper(),
}


def filled(rng: Random, template: str) -> str:
    """The template with each {name} of a slot filled in; other braces are the message's own."""
    return re.sub(r"\{(\w+)\}", lambda match: SLOTS[match.group(1)](rng) if match.group(1) in SLOTS else match.group(0), template)
