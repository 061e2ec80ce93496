"""Help is pinned, and light commands cost little: no torch, less than half a second of processor time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from segtune.cli import COMMANDS
from tests.cli.conftest import Command

SNAPSHOTS = Path(__file__).parent / "snapshots"
PAGES = {"segtune": [], **{name: [name] for name in COMMANDS}, "data-check": ["data", "check"]}
BUDGET = 0.5
"""Seconds of processor time, of the user and the system together."""

LIGHT: dict[str, tuple[list[str], int]] = {
    "help": (["--help"], 0),
    "version": (["--version"], 0),
    "help of fit": (["fit", "--help"], 0),
    "list": (["list", "models"], 0),
    "recipes": (["recipes"], 0),
    "list with settings": (["list", "methods", "--settings", "--json"], 0),
    "no command": (["fitt"], 2),
    "wrong setting": (["fit", "{data}", "--model", "unet", "--method", "lora", "--set", "method.rnk=3"], 2),
    "wrong name": (["fit", "{data}", "--model", "unett", "--method", "lora"], 2),
    "wrong path": (["fit", "nowhere", "--model", "unet", "--method", "lora"], 2),
    "folder in use": (["fit", "{data}", "--model", "unet", "--method", "lora", "--out", "{run}"], 2),
    "missing weights": (
        ["fit", "{data}", "--model", "unet", "--method", "lora", "--set", "model.weights=no.pth"],
        1,
    ),
    "no run": (["evaluate", "nowhere"], 2),
    "no such recipe": (["fit", "{data}", "--config", "recipe:nothing"], 2),
    "no such image": (["predict", "{run}", "nowhere.png", "--out", "o"], 2),
    "attention of no run": (["attention", "nowhere", "nowhere.png", "--out", "o"], 2),
    "wrong setting of a run": (["evaluate", "{run}", "--set", "data.widnow=3"], 2),
    "no data": (["data", "check", "nowhere"], 2),
    "no classes": (["inspect", "--model", "unet", "--method", "lora"], 2),
    "folder exists": (["export", "{run}", "--to", "peft", "--out", "{run}"], 2),
    "no folder to import": (["import", "nowhere", "--out", "o"], 2),
    "file exists": (["merge", "{run}", "--out", "{run}/result.json"], 2),
}


@pytest.mark.parametrize("page", PAGES)
def test_help_is_what_it_was(segtune: Command, page: str) -> None:
    shown = segtune(*PAGES[page], "--help")
    assert shown.code == 0
    assert shown.err == ""
    file = SNAPSHOTS / f"{page}.txt"
    if os.environ.get("SEGTUNE_WRITE_SNAPSHOTS"):
        file.write_text(shown.out, encoding="utf-8")
    assert shown.out == file.read_text(encoding="utf-8"), (
        "help has changed; where it is meant: SEGTUNE_WRITE_SNAPSHOTS=1 pytest tests/cli/test_help.py"
    )


def test_every_snapshot_has_a_page() -> None:
    assert {file.stem for file in SNAPSHOTS.iterdir()} == PAGES.keys()


@pytest.mark.parametrize("case", LIGHT)
def test_light_commands_are_cheap(case: str, data: Path, finished: Path, tmp_path: Path) -> None:
    arguments, code = LIGHT[case]
    typed = [word.format(data=data, run=finished) for word in arguments]
    # the list of imported modules tells what was loaded; the child's usage what it has cost
    report = tmp_path / "modules"
    program = (
        "import atexit, sys, pathlib;"
        f"atexit.register(lambda: pathlib.Path({str(report)!r}).write_text(' '.join(sys.modules)));"
        "sys.argv[0] = 'segtune'; import segtune.cli; segtune.cli.main()"
    )
    command = [sys.executable, "-c", program, *typed]
    seconds = _processor_seconds(command, code, tmp_path)
    if seconds >= BUDGET:  # the first one reads files from the disk
        seconds = _processor_seconds(command, code, tmp_path)
    modules = set(report.read_text().split())
    assert not {"torch", "torchvision", "lightning_fabric"} & modules
    assert seconds < BUDGET


def _processor_seconds(command: list[str], code: int, folder: Path) -> float:
    process = os.posix_spawn(
        command[0],
        command,
        {**os.environ, "OMP_NUM_THREADS": "1"},
        file_actions=[
            (
                os.POSIX_SPAWN_OPEN,
                descriptor,
                str(folder / name),
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
                0o600,
            )
            for descriptor, name in ((1, "out"), (2, "err"))
        ],
    )
    _, status, usage = os.wait4(process, 0)
    error = (folder / "err").read_text()
    assert os.waitstatus_to_exitcode(status) == code, error
    assert "Traceback" not in error
    return usage.ru_utime + usage.ru_stime
