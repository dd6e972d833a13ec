"""The stories of simulations/scenarios go as they are told; and a story that goes otherwise is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.transcript import SCENARIOS, main, parse, play

STORIES = sorted(SCENARIOS.glob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_a_story_goes_as_it_is_told(path: Path) -> None:
    """`python -m simulations.transcript --rewrite` writes down what happens now; read the difference."""
    assert play(path.read_text()) == path.read_text()


def test_there_are_stories() -> None:
    assert len(STORIES) >= 40


def test_a_story_is_rewritten_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = tmp_path / "story.txt"
    story.write_text("define job\nbegin\n\nstart job\n----\nanswer: never\n")

    assert main([str(story)]) == 1
    assert "goes otherwise now" in capsys.readouterr().out
    assert "never" in story.read_text()

    assert main([str(story), "--rewrite"]) == 0
    assert main([str(story)]) == 0
    assert [told.shown.splitlines()[0] for told in parse(story.read_text())][1] == "answer: taken"


def test_a_word_that_is_no_command_is_said_to_be_none() -> None:
    with pytest.raises(ValueError, match="'dance' is no command"):
        play("dance\n")
