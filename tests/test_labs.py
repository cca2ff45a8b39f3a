"""Every lab's banks: right but unusual answers earn every point, each wrong one its own hint."""

from __future__ import annotations

import pytest
from bank import BANKS, Submission, bank, graded

from ppkit.checks import trial

pytestmark = pytest.mark.ranks

SECONDS = 60.0  # a right answer takes two on an idle machine
LABS = sorted(path.name for path in BANKS.iterdir() if path.is_dir())
RIGHT = {f"{lab}-{name}": one for lab in LABS for name, one in bank(lab, "right").items()}
WRONG = {f"{lab}-{name}": one for lab in LABS for name, one in bank(lab, "wrong").items()}


@pytest.mark.parametrize("submission", RIGHT.values(), ids=RIGHT)
def test_unusual_answer_earns_every_point(submission: Submission) -> None:
    report, seconds = graded(submission)
    assert report.passed, str(report)
    assert report == report.out_of
    assert (report.hints, report.mistake) == ((), None)
    assert seconds < SECONDS


@pytest.mark.parametrize("submission", WRONG.values(), ids=WRONG)
def test_wrong_answer_gets_its_own_hint(submission: Submission, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TIME_LIMIT", 3.0)
    report, seconds = graded(submission)
    text = str(report)
    assert report == submission.points, text
    assert report.done, text
    assert report.mistake == submission.code, text
    assert [word for word in submission.words if word not in text] == [], text
    assert len(report.hints) == 3, text
    assert seconds < SECONDS
    assert "Traceback" not in text
    assert "ppkit/checks" not in text
