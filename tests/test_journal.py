"""Records that survive a kill: what was appended is there, a torn last line is not."""

import json

import pytest

from tinymusician_core.journal import Journal

RECORDS = [{"index": number, "prompt": "a jig — “lively”", "values": [0.1 * number, None]} for number in range(3)]


@pytest.fixture
def path(tmp_path):
    journal = Journal(tmp_path / "clips.jsonl")
    for record in RECORDS:
        journal.append(record)
    return journal.path


def test_what_was_appended_is_read_again(path):
    assert Journal(path).records == RECORDS
    assert [json.loads(line) for line in path.read_text().splitlines()] == RECORDS


def test_a_kill_at_any_byte_leaves_the_whole_lines_and_goes_on_to_the_same_file(path):
    complete = path.read_bytes()
    for length in range(len(complete)):
        path.write_bytes(complete[:length])
        journal = Journal(path)
        kept = complete[:length].count(b"\n")
        assert journal.records == RECORDS[:kept]
        assert path.read_bytes() == b"".join(complete.splitlines(keepends=True)[:kept])
        for record in RECORDS[kept:]:
            journal.append(record)
        assert path.read_bytes() == complete


def test_a_damaged_line_in_the_middle_is_no_torn_end(path):
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:9] + b"\n" + third)
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        Journal(path)


def test_what_is_no_number_is_refused(path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        Journal(path).append({"value": float("nan")})
    assert Journal(path).records == RECORDS
