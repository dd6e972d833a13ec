"""Notices that have not been delivered: which wait, which were given up, and those tried again."""

from __future__ import annotations

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.runs import ask, say
from state.views import notices


def listing(call: Call) -> None:
    told = notices(call.reading.graph)
    if call.json:
        show.json(told)
        return
    rows = [*told["waiting"], *told["given_up"]]
    if not rows:
        print("Everybody has been told of everything.")
        return
    show.table(
        ("NOTICE", "ABOUT", "BY", "STATE", "TRIED", "NEXT", "WHY NOT YET"),
        [
            (
                row["notice"],
                show.moment(row["at"], call.zone),
                row["by"],
                "given up" if row["state"] == "given_up" else "waits",
                row["attempts"],
                show.moment(row["next_at"], call.zone) if row["next_at"] else "-",
                row["error"],
            )
            for row in rows
        ],
    )
    if told["waiting_in_all"] > len(told["waiting"]):
        print(f"{told['waiting_in_all']} wait in all.")


def retry(call: Call, notice: str, *, reason: str) -> None:
    call.home.check(write=False)
    answer = ask(call, "renotify", {"notice": notice, "reason": reason}, leave=True)
    if "left" in answer:
        say(call, answer, f"No daemon is running: the next one will try {notice} again ({answer['left']}).")
    else:
        say(call, answer, f"{notice} is tried again." if not answer.get("already") else f"{notice} waits already.")
