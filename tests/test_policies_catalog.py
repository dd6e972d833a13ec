import itertools

from hypothesis import given
from hypothesis import strategies as st

from policies.catalog import check, depth, waits_for
from policies.dependency import depths, loops
from policies.job import parse_job


def jobs(**after):
    return {
        name: parse_job(
            {
                "name": name,
                "kind": "command",
                "argv": ["true"],
                "schedule": {"after": list(others)} if others else "manual",
            }
        )
        for name, others in after.items()
    }


def told(found):
    return [(problem.job, problem.fault.field, problem.fault.message) for problem in found]


def test_a_diamond_is_no_problem():
    catalog = jobs(a="", b="a", c="a", d="bc")

    assert check(catalog) == []
    assert depth(catalog) == {"a": 0, "b": 1, "c": 1, "d": 2}
    assert waits_for(catalog["d"]) == ("b", "c")


def test_the_depth_is_that_of_the_longest_chain():
    assert depth(jobs(a="", b="a", c="b", d="ac")) == {"a": 0, "b": 1, "c": 2, "d": 3}


def test_a_job_that_waits_for_a_name_nobody_has():
    found = check(jobs(export="", compress=["exprot"]))

    assert told(found) == [("compress", "schedule.after", "there is no job 'exprot'")]
    assert found[0].fault.advice == "Did you mean 'export'?"
    assert check(jobs(compress=["broken"]), also_known=["broken"]) == []


def test_a_cycle_is_told_to_each_job_on_it_and_to_no_other():
    catalog = jobs(a="c", b="a", c="b", behind="a", free="")

    assert told(check(catalog)) == [
        ("a", "schedule.after", "the jobs wait for each other: a -> c -> b -> a"),
        ("b", "schedule.after", "the jobs wait for each other: b -> a -> c -> b"),
        ("c", "schedule.after", "the jobs wait for each other: c -> b -> a -> c"),
    ]
    assert depth(catalog) == {"free": 0}


def test_a_job_that_waits_for_itself():
    assert told(check(jobs(a="a"))) == [("a", "schedule.after", "the job waits for itself")]


def test_two_cycles_that_share_a_job():
    assert loops({"a": "b", "b": "ac", "c": "b"}) == {
        "a": ["a", "b", "a"],
        "b": ["b", "a", "b"],
        "c": ["c", "b", "c"],
    }


def test_a_chain_of_ten_thousand_jobs_needs_no_deep_stack():
    before = {str(n): [str(n - 1)] if n else [] for n in range(10_000)}

    assert depths(before)["9999"] == 9999
    assert loops(before) == {}


names = st.sampled_from("abcdef")


@given(st.dictionaries(names, st.sets(names)))
def test_every_name_has_a_depth_unless_it_is_on_or_behind_a_cycle(before):
    shallow, looped = depths(before), loops(before)

    for name, path in looped.items():
        assert path[0] == path[-1] == name
        assert all(later in before[earlier] for earlier, later in itertools.pairwise(path))
    for name, others in before.items():
        known = [other for other in others if other in before]
        assert (name in shallow) == all(other in shallow for other in known)
        if name in shallow:
            assert shallow[name] == max((shallow[other] + 1 for other in known), default=0)
            assert name not in looped
    assert bool(looped) == (len(shallow) < len(before))
