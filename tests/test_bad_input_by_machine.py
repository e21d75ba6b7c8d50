"""The short form of tests/try_bad_input.py; docs/LOG.md has a result of the long form."""

from try_bad_input import KINDS, try_all


def test_no_bad_input_ends_in_a_traceback_or_without_a_word():
    outcomes, failures = try_all(200, list(KINDS))
    assert not failures, "\n\n".join(failures)
    assert outcomes["flags"]["refused"] >= 30  # so damage is neither rare
    assert outcomes["runs"]["accepted"] >= 5  # nor fatal to every case
