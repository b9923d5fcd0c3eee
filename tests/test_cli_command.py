"""The command that a report names."""

import pytest

from tinymusician_core.cli.command import command_line


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["evaluate", "-o", "/home/me/report"], "evaluate -o DIR"),
        (["evaluate", "-o/home/me/report", "--json"], "evaluate -oDIR"),
        (["bench", "--json", "--output=here", "--threads", "1"], "bench --output=DIR --threads 1"),
        (["bench", "--out", "here", "--js", "--rows", "ours fp32"], "bench --out DIR --rows 'ours fp32'"),
        (["evaluate", "--prompts", "out-of-domain"], "evaluate --prompts out-of-domain"),
    ],
)
def test_it_is_what_was_typed_but_for_the_folder_and_what_is_printed(argv, said):
    assert command_line(argv, {}) == f"tinymusician {said}"


def test_settings_of_openmp_stand_before_it():
    environment = {"OMP_WAIT_POLICY": "ACTIVE", "HOME": "/home/me", "OMP_NUM_THREADS": "1"}
    assert command_line(["bench"], environment) == "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=ACTIVE tinymusician bench"
    assert command_line(["bench"], {"OMP_NUM_THREADS": ""}) == "tinymusician bench"


def test_this_process_is_looked_at_where_nothing_is_given(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert command_line(["bench"]) == "OMP_NUM_THREADS=3 tinymusician bench"
