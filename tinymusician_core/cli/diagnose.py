"""`tinymusician doctor`: whether this machine and this installation have what TinyMusician needs."""

from __future__ import annotations

import argparse

from ..doctor import examine
from . import show


def add_commands(commands) -> None:
    """Add `doctor` to the sub-commands."""
    parser = commands.add_parser("doctor", help="look over packages, hardware, disk and the models that come along")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.set_defaults(run=run_doctor)


def run_doctor(options: argparse.Namespace) -> int:
    """Examine everything and report; 1 when something does not work."""
    with show.bar() as bar:
        checks = examine(lambda name, done, total: bar.show(f"looking at {name}", done, total))
    good = all(check.status != "fail" for check in checks)
    if options.json:
        show.emit_json({"ok": good, "checks": [check.as_dict() for check in checks]})
    else:
        show.print_checks([(check.status, check.name, check.found, check.hint) for check in checks])
    return 0 if good else 1
