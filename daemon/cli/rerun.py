"""`hermesd rerun` and `hermesd generations`: answers asked for again, and their bytes compared."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from daemon.cli import show
from daemon.cli.call import Call
from daemon.cli.exits import Exit
from daemon.cli.failure import Failure
from daemon.gateway.kept import kept_in

if TYPE_CHECKING:
    from daemon.inference.rerun import Verdict
    from daemon.reading import Reading
    from state.graph import Run

Json = Any

_GENERATION = re.compile(r"(?:chatcmpl-|cmpl-)?([0-9a-f]{26})", re.ASCII)


def rerun(call: Call, name: str, *, verify: bool) -> int:
    again, errors = _again()
    match = _GENERATION.fullmatch(name)
    try:
        verdict = again.generation(_kept(call, match[1])) if match else _rerun_run(call, again, name)
    except errors as error:
        raise Failure(Exit.UNAVAILABLE, f"{name} cannot be asked again: {error}") from error
    finally:
        again.close()
    if call.json:
        show.json({"of": name} | verdict.as_json())
    else:
        print(f"{name}: {_words(verdict)}")
    return _exit(verdict) if verify else Exit.FINE


def listing(call: Call, *, limit: int) -> None:
    call.home.check(write=False)
    kept = list(kept_in(call.home.path / "generations"))[-limit:]
    rows = [
        {
            "generation": one["id"],
            "model": one["model"],
            "class": one.get("facts", {}).get("determinism", ""),
            "finish": ",".join(one.get("finish", [])),
            "bytes": sum(len(text.encode()) for text in one["texts"]),
        }
        for one in reversed(kept)
    ]
    if call.json:
        show.json({"generations": rows})
    elif rows:
        show.table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        print("No generation is kept here (gateway.keep_text).")


def audit(call: Call, sample: str) -> int:
    """Ask a sample again. Models are loaded one after another, each once."""
    from daemon.inference.rerun import drawn

    again, errors = _again()
    call.home.check(write=False)
    share = _share(sample)
    kept = list(kept_in(call.home.path / "generations"))
    chosen = [one for one in kept if drawn(one["id"], share)] or kept[-1:]
    chosen.sort(key=lambda one: orjson.dumps(one["spec"], option=orjson.OPT_SORT_KEYS))
    told: list[Json] = []
    try:
        for one in chosen:
            try:
                told.append({"generation": one["id"], "model": one["model"]} | again.generation(one).as_json())
            except errors as error:
                told.append(
                    {"generation": one["id"], "model": one["model"], "verdict": "impossible", "why": str(error)}
                )
    finally:
        again.close()
    counts = dict.fromkeys(("verified", "differs", "unpromised", "impossible"), 0)
    for row in told:
        counts[row["verdict"]] += 1
    if call.json:
        show.json({"kept": len(kept), "sampled": len(told), "counts": counts, "generations": told})
    else:
        _print(kept, told, counts)
    if counts["differs"]:
        return Exit.NO
    return Exit.FINE if counts["verified"] or not kept else Exit.UNAVAILABLE


def _print(kept: list[Json], told: list[Json], counts: Mapping[str, int]) -> None:
    print(f"{show.count(len(kept), 'generation')} kept, {len(told)} asked again.")
    for row in told:
        if row["verdict"] != "verified":
            came = "" if row["verdict"] == "impossible" else ", the bytes are the same" if row["same"] else ", others"
            print(f"{row['generation']}  {row['model']}  {row['verdict']}{came}: {row['why'] or row.get('at', '')}")
    print("  ".join(f"{name} {number}" for name, number in counts.items()))


def _share(sample: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", sample.strip())
    if match is None or not 0 < float(match[1]) <= 100:
        raise Failure(Exit.BAD_INPUT, f"{sample!r} is no share", do="write a percentage, such as --sample 1%")
    return float(match[1]) / 100


def _again() -> tuple[Any, type[Exception]]:
    try:
        from daemon.inference.rerun import Again, CannotRerun
    except ModuleNotFoundError as error:
        do = "pip install 'hermesd[inference]'"
        raise Failure(Exit.UNAVAILABLE, f"{error.name} is not installed", do=do) from error
    return Again(), CannotRerun


def _kept(call: Call, id: str) -> Json:
    call.home.check(write=False)
    found = next((one for one in kept_in(call.home.path / "generations") if one["id"] == id), None)
    if found is None:
        do = "its time may be over, or gateway.keep_text is none; `hermesd generations list` has those that are kept"
        raise Failure(Exit.UNKNOWN, f"the text of generation {id} is not kept here", do=do)
    return found


def _rerun_run(call: Call, again: Any, name: str) -> Verdict:
    from dataclasses import asdict

    from daemon.cli.runs import find
    from daemon.order import task_of
    from daemon.serve import surroundings

    reading = call.reading
    run = find(reading, name)
    spec = _spec_of(reading, run)
    if spec.get("kind") != "inference":
        raise Failure(
            Exit.BAD_INPUT, f"{run.name} is no inference run, but {spec.get('kind')}: only those can be rerun"
        )
    around = surroundings(call.home, call.settings.in_force())
    path = around.folder(run.name, run.attempt) / "result.json"
    try:
        result = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        do = "it may have been redacted, or not have ended well: see `hermesd runs show`"
        raise Failure(Exit.UNKNOWN, f"{run.name} has no result", where=str(path), do=do) from error
    task, _, _ = task_of(around, reading.graph, run.name, run.attempt, spec, run.parent, run.file, reveal=True)
    verdict: Verdict = again.run(asdict(task), result)
    return verdict


def _spec_of(reading: Reading, run: Run) -> Mapping[str, Json]:
    """The spec that a run began with: the graph lets go of it when the run is over, the ledger does not."""
    if run.spec:
        return run.spec
    for spec in _specs(reading, run.job, run.revision):
        step: Json = next((each for each in spec.get("steps", []) if each.get("name") == run.step), None)
        found: Mapping[str, Json] = step if run.step and step is not None else spec
        return found
    raise Failure(Exit.UNKNOWN, f"the ledger does not say how {run.job} was at revision {run.revision}")


def _specs(reading: Reading, job: str, revision: int) -> Iterator[Json]:
    from ledger.index import Wanted

    types = ("job.defined", "job.changed")
    about = Wanted(type=lambda it: it in types, subject=lambda it: it == f"job/{job}")
    for record, _ in reading.search(about):
        data = record.data
        if record.type in types and data["job"] == job and data["revision"] == revision:
            yield data["spec"]


def _words(verdict: Verdict) -> str:
    match verdict.verdict:
        case "verified":
            return f"verified: the same bytes again (sha256 {verdict.now_sha256[:16]}...)"
        case "differs":
            return f"differs, though the same was promised: {verdict.at}"
    came = "the bytes are the same" if verdict.same else f"the bytes differ ({verdict.at})"
    return f"{came}; that verifies nothing, since {verdict.why}"


def _exit(verdict: Verdict) -> int:
    return {"verified": Exit.FINE, "differs": Exit.NO}.get(verdict.verdict, Exit.UNAVAILABLE)
