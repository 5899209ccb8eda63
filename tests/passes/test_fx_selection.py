import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qcompile.errors import ConfigurationError
from qcompile.passes.fx.selection import NOT_SELECTED, Selection

LINEAR, CONV = nn.Linear(2, 2), nn.Conv2d(2, 2, 1)


@pytest.mark.parametrize(
    ("where", "linear", "conv"),
    [
        (None, True, True),
        ("head.fc", True, False),
        ("*.fc", True, False),
        ("head*", True, False),
        ("*", True, True),
        (nn.Conv2d, False, True),
        (nn.Module, True, True),
        (lambda name, module: "fc" in name, True, False),
        (["*.fc", nn.Conv2d], True, True),
        ([], False, False),
        (iter(["stem"]), False, True),
    ],
)
def test_where(where, linear, conv):
    selection = Selection(where)
    assert (selection.refuses(["head.fc"], LINEAR) is None) == linear
    assert (selection.refuses(["stem"], CONV) is None) == conv


def test_exclude_wins_and_is_named():
    selection = Selection("*", exclude=["stem*", nn.Conv2d])
    assert selection.refuses(["stem"], CONV) == "excluded by 'stem*'"
    assert selection.refuses(["body"], CONV) == "excluded by Conv2d"
    assert selection.refuses(["fc"], LINEAR) is None
    assert Selection("fc").refuses(["stem"], CONV) == NOT_SELECTED


def test_every_name_of_a_shared_module_counts():
    assert Selection("alias").refuses(["fc", "alias"], LINEAR) is None


def test_selectors_that_match_nothing_are_reported():
    root = nn.Sequential(nn.Sequential(LINEAR))
    selection = Selection(["0.0", "1.*", "0"], exclude=nn.Conv3d)
    selection.refuses(["0.0"], LINEAR)
    assert selection.unmatched(dict(root.named_modules())) == [
        "where='1.*' matches no layer.",
        "where='0' matches no layer: it names a Sequential; for the layers inside use '0.*'.",
        "exclude=Conv3d matches no layer.",
    ]
    assert Selection([]).unmatched({}) == ["where= is empty, which selects nothing."]


@pytest.mark.parametrize("wrong", [3, LINEAR, ["fc", LINEAR]])
def test_other_selectors_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="takes globs over qualified names"):
        Selection(exclude=wrong)


def test_a_failing_predicate_is_named():
    def has_groups(name, module):
        return module.groups > 1

    with pytest.raises(ConfigurationError, match=r"has_groups failed on 'fc' \(Linear\)") as caught:
        Selection(has_groups).refuses(["fc"], LINEAR)
    assert isinstance(caught.value.__cause__, AttributeError)


@given(st.lists(st.sampled_from("abc"), max_size=3), st.lists(st.sampled_from("abc"), max_size=3))
def test_exactly_the_selected_and_not_excluded_are_taken(where, exclude):
    selection = Selection(where, exclude)
    taken = {name for name in "abc" if selection.refuses([name], LINEAR) is None}
    assert taken == set(where) - set(exclude)
