"""Without running them (`scripts/test planted`): each planted bug still has its place in the policy."""

from __future__ import annotations

import pytest

from tests.policy.test_planted_bugs import BUGS, ROOT, Bug


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_has_one_place(bug: Bug) -> None:
    for file, text in bug.planted(ROOT):
        assert text != file.read_text()
