"""One attempt to deliver a notice, as a process of its own: `deliver` a webhook, or become the command.

It is told everything by its environment, with secrets by name alone: only here are they read. What it says of a failure
names the host and nothing else of an address, since an address may be a secret.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from daemon.secret import NoSecret, Secrets
from policies.fault import BadValue
from policies.template import Reference, fill

Json = Any

TIMEOUT_S = 10
"""For a connection, and for each part of an answer."""
WHOLE_S = 30
"""For all of it. The kernel ends the process then, whatever it is doing, also a command that it has become."""
ANSWER_BYTES_MAX = 65_536
_HEADER = re.compile(r"[\x20-\x7e]+")


class Undelivered(Exception):
    """The message says why, and holds no secret."""


def deliver(address: str, notice: str, body: bytes, *, timeout_s: float = TIMEOUT_S) -> None:
    """POST `body` to `address`. Nothing but an answer of 2xx is a delivery; nothing is followed. Undelivered."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise Undelivered("the address of the webhook cannot be read") from None
    if parts.scheme not in ("http", "https") or not host or not _HEADER.fullmatch(address) or " " in address:
        raise Undelivered("the address of the webhook is not one that begins with http:// or https:// and a host")
    if parts.username is not None:
        raise Undelivered(f"the address of the webhook at {host} holds a user's name, which is not sent: remove it")
    headers = {"Content-Type": "application/json", "User-Agent": "hermesd", "Idempotency-Key": notice}
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    connection: http.client.HTTPConnection = (
        http.client.HTTPSConnection(host, port, timeout=timeout_s, context=secure)
        if secure is not None
        else http.client.HTTPConnection(host, port, timeout=timeout_s)
    )
    try:
        connection.request("POST", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), body, headers)
        answer = connection.getresponse()
        answer.read(ANSWER_BYTES_MAX)
    except TimeoutError:
        raise Undelivered(f"{host} did not answer within {timeout_s:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise Undelivered(f"the certificate of {host} is not valid: {error.verify_message}") from None
    except (socket.gaierror, UnicodeError):  # The latter where a part of it is empty or too long.
        raise Undelivered(f"there is no host {host}") from None
    except http.client.HTTPException as error:
        raise Undelivered(f"{host} gave no whole answer: {type(error).__name__}") from None
    except OSError as error:
        raise Undelivered(f"{host}: {error.strerror or type(error).__name__}") from None
    finally:
        connection.close()
    if 300 <= answer.status < 400:
        raise Undelivered(f"{host} answered {answer.status}, another address, which is not followed: use that one")
    if not 200 <= answer.status < 300:
        raise Undelivered(f"{host} answered {answer.status} {http.client.responses.get(answer.status, '')}".rstrip())


def main(environ: Mapping[str, str] = os.environ) -> None:
    """Exit status 0: delivered. Else why not is in `why.txt`, in the attempt's folder; a command has its own status."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(WHOLE_S)
    to: Json = orjson.loads(environ["HERMESD_NOTICE_TO"])
    secrets = Secrets(Path(environ["HERMESD_HOME"]) / "secrets")
    notice, body = environ["HERMESD_NOTICE"], environ["HERMESD_NOTICE_JSON"]

    def look_up(found: Reference) -> str:
        if not found.secret:
            raise BadValue(f"{{{{ {found.name} }}}} is not filled in a notice")
        return secrets.value(found.secret)

    try:
        if "webhook" in to:
            deliver(fill(to["webhook"], look_up).strip(), notice, body.encode())
            return
        argv = [str(word) for word in fill(to["command"], look_up)]
        given = {name: value for name, value in environ.items() if name not in ("HERMESD_NOTICE_TO", "HERMESD_RUN")}
        try:
            os.execvpe(argv[0], argv, given)
        except OSError as error:
            # The program's name alone: its arguments may be secret.
            raise Undelivered(f"the command could not be started: {to['command'][0]}: {error.strerror}") from None
    except (Undelivered, NoSecret, BadValue) as error:
        Path(environ["HERMESD_FOLDER"], "why.txt").write_text(str(error), encoding="utf-8")
        sys.exit(1)
