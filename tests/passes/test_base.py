import pytest

from qcompile.errors import PassError
from qcompile.passes import Pass, PassManager, PassResult
from qcompile.report import Entry, Report


class Increment(Pass[list[int]]):
    """Adds one to every number below a limit."""

    def __init__(self, limit=3, honest=True):
        self.limit, self.honest = limit, honest

    def requires(self, model):
        if not model:
            raise PassError("Increment: the list is empty.")

    def call(self, model):
        report = Report()
        for index, number in enumerate(model):
            status = "rewritten" if number < self.limit else "skipped"
            report.entries.append(Entry(self.name, str(index), "int", status, status))
        new = [n + 1 if n < self.limit else n for n in model]
        return PassResult(new, report.modified and self.honest, report)

    def ensures(self, result):
        if max(result.model) > 100:
            raise PassError("Increment: a number is too large.")


def test_a_pass_checks_before_and_after():
    with pytest.raises(PassError, match="empty"):
        Increment()([])
    with pytest.raises(PassError, match="too large"):
        Increment()([1, 200])


def test_a_manager_joins_reports_and_nests():
    inner = PassManager([Increment(1), Increment(2)])
    result = PassManager([inner, Increment(3)])([0, 5])
    assert result.model == [3, 5]
    assert result.modified
    assert [entry.status for entry in result.report.entries] == ["rewritten", "skipped"] * 3


def test_a_manager_that_changes_nothing_says_so():
    result = PassManager([Increment(1), Increment(2)])([5])
    assert not result.modified
    assert result.report.summary() == "0 rewritten: skipped (2)"


def test_a_pass_that_denies_its_changes_is_caught():
    with pytest.raises(PassError, match=r"modified=False but reports 1 rewritten"):
        Increment(honest=False)([0])


def test_a_pass_must_return_a_result():
    class Wrong(Pass[int]):
        def call(self, model):
            return model

    with pytest.raises(PassError, match="returned int"):
        Wrong()(1)
