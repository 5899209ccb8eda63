"""Overlap, codes, matching and suppression of boxes, against loops written from the definitions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from qcompile.errors import DataError
from qcompile.models.boxes import corners, decode, encode, intersection_over_union, match, nms

numbers = st.integers(0, 12).map(lambda n: n / 4)


@st.composite
def boxes(draw, least=0, most=9):
    found = []
    for _ in range(draw(st.integers(least, most))):
        x, y = sorted((draw(numbers), draw(numbers))), sorted((draw(numbers), draw(numbers)))
        found.append((x[0], y[0], x[1], y[1]))
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 4)


def overlap(one, other) -> float:
    """Of two boxes, in plain Python."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(wide, 0) * max(high, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0


@given(first=boxes(), second=boxes())
@settings(deadline=None)
def test_overlap_is_that_of_the_definition(first, second):
    found = intersection_over_union(first, second)
    wanted = [[overlap(a, b) for b in second.tolist()] for a in first.tolist()]
    wanted = torch.tensor(wanted, dtype=torch.float64).reshape(len(first), len(second))
    torch.testing.assert_close(found, wanted)
    assert ((found >= 0) & (found <= 1)).all()


@given(found=boxes(least=1), factor=st.sampled_from([0.5, 3.0]), shift=st.sampled_from([-2.0, 7.0]))
@settings(deadline=None)
def test_overlap_is_symmetric_one_with_itself_and_the_same_at_any_scale(found, factor, shift):
    own = intersection_over_union(found, found)
    torch.testing.assert_close(own, own.T)
    solid = (found[:, 2:] > found[:, :2]).all(1)
    assert (own.diagonal()[solid] == 1).all()
    assert (own.diagonal()[~solid] == 0).all()
    moved = found * factor + shift
    torch.testing.assert_close(intersection_over_union(moved, moved), own)


def some(count, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator, dtype=dtype)
    return torch.cat([low, low + 0.05 + torch.rand(count, 2, generator=generator, dtype=dtype)], 1)


def priors(count, seed=1):
    found = some(count, seed)
    return torch.cat([(found[:, :2] + found[:, 2:]) / 2, found[:, 2:] - found[:, :2]], 1)


def test_codes_by_hand():
    prior = torch.tensor([[0.5, 0.5, 0.2, 0.4]], dtype=torch.float64)
    # Centre (0.6, 0.4), sides 0.4 and 0.4: twice as wide.
    found = encode(torch.tensor([[0.4, 0.2, 0.8, 0.6]], dtype=torch.float64), prior)
    wanted = [[0.1 / (0.1 * 0.2), -0.1 / (0.1 * 0.4), np.log(2) / 0.2, 0.0]]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_decoding_undoes_encoding_and_both_have_the_right_gradients():
    found, around = some(7), priors(7)
    torch.testing.assert_close(decode(encode(found, around), around), found)
    offsets = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: decode(x, around[:3]), offsets)
    assert gradcheck(lambda x: encode(x, around[:3]), some(3).requires_grad_())


def test_overlap_has_the_right_gradient():
    assert gradcheck(
        intersection_over_union, (some(3).requires_grad_(), some(4, 5).requires_grad_())
    )


@given(seed=st.integers(0, 1000), objects=st.integers(0, 5), threshold=st.sampled_from([0.3, 0.5]))
@settings(deadline=None)
def test_every_object_gets_a_prior_box_and_others_what_they_overlap_most(seed, objects, threshold):
    wanted, around = some(objects, seed), priors(11, seed + 1)
    found = match(wanted, around, threshold).tolist()
    table = [[overlap(a, b) for b in corners(around).tolist()] for a in wanted.tolist()]
    forced, left = {}, {(o, p) for o in range(objects) for p in range(11)}
    while left and len(forced) < objects:
        best = max(left, key=lambda pair: (table[pair[0]][pair[1]], -pair[0], -pair[1]))
        forced[best[1]] = best[0]
        left = {(o, p) for o, p in left if o != best[0] and p != best[1]}
    for prior in range(11):
        column = [row[prior] for row in table]
        if prior in forced:
            assert found[prior] == forced[prior]
        elif column and max(column) >= threshold:
            assert column[found[prior]] == max(column)
        else:
            assert found[prior] == -1
    assert set(range(objects)) <= set(found)


def test_more_objects_than_prior_boxes_are_refused():
    with pytest.raises(DataError, match="3 objects for 2"):
        match(some(3), priors(2))


def suppressed(found, scores, threshold, groups) -> list[int]:
    """Greedily, as in the papers, in plain Python."""
    left = sorted(range(len(found)), key=lambda i: -scores[i])
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [
            i
            for i in left
            if groups[i] != groups[best] or overlap(found[best], found[i]) <= threshold
        ]
    return kept


@given(found=boxes(most=12), data=st.data(), threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@settings(deadline=None)
def test_suppression_keeps_what_the_greedy_loop_keeps(found, data, threshold):
    count = len(found)
    scores = data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    groups = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    kept = nms(found, torch.tensor(scores).double(), threshold, groups=torch.tensor(groups))
    assert kept.tolist() == suppressed(found.tolist(), scores, threshold, groups)
    alone = nms(found, torch.tensor(scores).double(), threshold)
    assert alone.tolist() == suppressed(found.tolist(), scores, threshold, [0] * count)
    overlaps = intersection_over_union(found[alone], found[alone])
    assert all(overlaps[i, j] <= threshold for i, j in itertools.combinations(range(len(alone)), 2))
