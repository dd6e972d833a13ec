"""The home on a real folder: found, made, refused, and its settings read."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.home import Home, HomeError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.make()
    return home


def test_the_option_wins_over_the_variable_and_that_over_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    monkeypatch.setenv("HERMESD_HOME", "/from/variable")
    monkeypatch.chdir(tmp_path)
    assert Home.find("~/there").path == Path("/users/me/there")
    assert Home.find("there").path == tmp_path / "there"
    assert Home.find(None).path == Path("/from/variable")
    monkeypatch.setenv("HERMESD_HOME", "")
    assert Home.find(None).path == Path("/users/me/.hermesd")


def test_a_home_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    earlier = os.umask(0)
    try:
        home = Home(tmp_path / "deep" / "home")
        home.make()
    finally:
        os.umask(earlier)
    names = {"jobs", "policies", "ledger", "state", "leases", "inbox", "runs", "artifacts", "models", "secrets"}
    assert {path.name for path in home.path.iterdir()} == names | {"hermesd.yaml"}
    for path in (home.path, *home.path.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_making_a_home_again_changes_nothing(home: Home) -> None:
    home.settings_file.write_text("timezone: Asia/Kolkata\n")
    (home.jobs / "a.yaml").write_text("mine")
    home.make()
    assert home.settings().timezone == "Asia/Kolkata"
    assert (home.jobs / "a.yaml").read_text() == "mine"


def test_the_written_settings_are_all_comments_and_become_valid_without_their_marks(home: Home) -> None:
    plain = home.settings()
    text = home.settings_file.read_text()
    settings = ("# timezone", "# models", "#   ", "# env", "# gateway")
    lines = [line[2:] if ":" in line and line.startswith(settings) else line for line in text.splitlines()]
    home.settings_file.write_text("\n".join(lines))
    told = home.settings()
    assert told.environment == plain.environment
    assert told.timezone == "Europe/Paris"
    assert list(told.models) == ["big"]
    assert told.gateway is not None
    assert told.gateway.tcp == "127.0.0.1:8710"


def test_settings_without_a_file_are_the_defaults(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/Santiago")
    home.settings_file.unlink()
    settings = home.settings()
    assert settings.timezone == "America/Santiago"
    assert settings.models == {}


def test_a_relative_model_folder_starts_in_the_homes_models(home: Home) -> None:
    home.settings_file.write_text("models: {big: qwen, far: /srv/x, mine: ~/m}\n")
    models = home.settings().models
    assert models == {"big": home.models / "qwen", "far": Path("/srv/x"), "mine": Path.home() / "m"}


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("timezone: Europe/Pariss\n", ":1:11: timezone:", "Did you mean 'Europe/Paris'?"),
        ("models:\n  big: 7\n", ":2:8: models.big:", ""),
        ("\nenvironment: PATH\n", ":2:14: environment:", "list"),
        ("environment: [PATH, 'A=1']\n", ":1:14: environment:", "Write names only"),
        ("environment:\n  - PATH\n  - 7\n", ":3:5: environment[1]:", "string"),
        ("timezon: UTC\n", ":1:10: timezon: there is no such setting", "Did you mean 'timezone'?"),
        ("quux: 1\n", ":1:7: quux:", "Known are timezone, models,"),
        ("timezone: UTC\ntimezone: UTC\n", ":2:1: timezone is written twice", "Keep one"),
        ("models: [\n", ":2:1: this is not YAML", ""),
        ("- a\n", ":1: settings are written as", ""),
        ("models: !!python/name:os.system x\n", ":1:9: this is not YAML", "python/name"),
        ("timezone: \x07\n", ": this is not YAML", ""),
    ],
)
def test_wrong_settings_are_located(home: Home, text: str, where: str, what: str) -> None:
    home.settings_file.write_text(text)
    with pytest.raises(HomeError) as error:
        home.settings()
    assert f"{home.settings_file}{where}" in str(error.value)
    assert what in str(error.value)


def test_every_wrong_setting_is_named_at_once(home: Home) -> None:
    home.settings_file.write_text("timezone: 7\nenvironment: 7\n")
    with pytest.raises(HomeError) as error:
        home.settings()
    assert len(str(error.value).splitlines()) == 2


def test_settings_that_are_not_text_are_refused(home: Home) -> None:
    home.settings_file.write_bytes(b"timezone: \xff\n")
    with pytest.raises(HomeError, match="byte 10 is not UTF-8"):
        home.settings()
    home.settings_file.write_bytes(b"#" * (1 << 21))
    with pytest.raises(HomeError, match="no settings file"):
        home.settings()
    home.settings_file.unlink()
    home.settings_file.mkdir()
    with pytest.raises(HomeError, match="cannot read"):
        home.settings()


def test_a_home_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="hermesd init"):
        Home(tmp_path / "nowhere").check(write=False)


def test_a_file_in_the_homes_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("mine")
    with pytest.raises(HomeError, match="is a file, not a folder"):
        Home(tmp_path / "home").make()
    with pytest.raises(HomeError, match="cannot make the home"):
        Home(tmp_path / "home" / "deeper").make()
    assert (tmp_path / "home").read_text() == "mine"


def test_a_file_where_a_folder_must_be_is_named(home: Home) -> None:
    home.inbox.rmdir()
    home.inbox.write_text("mine")
    with pytest.raises(HomeError, match="inbox is a file where a folder must be"):
        home.make()


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o722])
def test_a_home_open_to_others_is_refused_with_the_command_that_closes_it(home: Home, mode: int) -> None:
    home.path.chmod(mode)
    with pytest.raises(HomeError, match=f"chmod 700 '{home.path}'"):
        home.check(write=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_home_is_refused(home: Home) -> None:
    os.chown(home.path, 65534, 65534)
    with pytest.raises(HomeError, match="belongs to user 65534"):
        home.check(write=False)


def test_a_read_only_home_can_be_read_but_not_run(outside: Path) -> None:
    home = Home(outside / "home")
    home.make()
    program = (
        "import os, sys; from pathlib import Path; from daemon.home import Home, HomeError\n"
        "if os.geteuid() == 0: os.setuid(65534)  # root may write anywhere\n"
        "home = Home(Path(sys.argv[1])); home.check(write=False); home.settings_file.read_bytes()\n"
        "try: home.check(write=True)\n"
        "except HomeError as error: print(error)\n"
    )
    if os.geteuid() == 0:
        for path in (home.path, home.settings_file):
            os.chown(path, 65534, 65534)
    home.path.chmod(0o500)
    done = subprocess.run(
        [sys.executable, "-c", program, str(home.path)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    home.path.chmod(0o700)
    assert "is read-only. Make it writable" in done.stdout, done.stderr


def test_a_folder_that_is_no_home_is_not_read_as_an_empty_one(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir(mode=0o700)
    with pytest.raises(HomeError, match="there is no home at .* neither hermesd.yaml nor jobs/ nor ledger/"):
        Home(folder).check(write=False)
    Home(folder).make()
    Home(folder).check(write=True)


def test_nobody_is_told_to_close_a_folder_that_is_no_home(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    for look in (lambda: Home(shared).check(write=False), Home(shared).make):
        with pytest.raises(HomeError, match="is no home, and a folder that others can get into") as told:
            look()
        assert "chmod" not in str(told.value)
    assert list(shared.iterdir()) == []


@pytest.mark.parametrize("zone", ["EST5EDT4", "UTC-3", "Nowhere/City", "../x"])
def test_a_zone_of_this_machine_that_is_none_is_named_where_it_is_needed(
    home: Home, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    with pytest.raises(HomeError, match=f"TZ={zone} names no zone. Write a name such as"):
        home.settings()
    home.settings_file.write_text("timezone: Asia/Kolkata\n")
    assert home.settings().timezone == "Asia/Kolkata"
