import os
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from qcompile.distributed import Partition, after_first, agree
from qcompile.errors import ConfigurationError


def collectives(group, counts):
    own = counts[group.rank]
    rows = torch.arange(own * 3.0).view(own, 3) + 100 * group.rank
    before = dict(group.sent)
    result = {"gather": group.gather(rows, counts)}
    everything = torch.arange(sum(counts) * 2.0).view(-1, 2) * (group.rank + 1)
    result["sum_rows"] = group.sum_rows(everything, counts)
    result["sum"] = group.sum_(torch.full((5,), float(group.rank + 1)))
    result["max"] = group.max_(torch.tensor([group.rank, -group.rank]))
    result["table"] = group.table(group.rank, 7)
    sent = {kind: n - before.get(kind, 0) for kind, n in group.sent.items()}
    return result, sent


@pytest.mark.parametrize("counts", [[4], [2, 2], [3, 0], [1, 4, 2]])
def test_collectives_compute_what_they_say_and_count_their_bytes(spawn, counts):
    size = len(counts)
    results = spawn(size, collectives, counts)
    rows = [torch.arange(n * 3.0).view(n, 3) + 100 * r for r, n in enumerate(counts)]
    total = sum(range(1, size + 1))
    owned = (torch.arange(sum(counts) * 2.0).view(-1, 2) * total).split(counts)
    for rank, (result, sent) in enumerate(results):
        torch.testing.assert_close(result["gather"], torch.cat(rows), rtol=0, atol=0)
        torch.testing.assert_close(result["sum_rows"], owned[rank], rtol=0, atol=0)
        assert result["sum"].tolist() == [total] * 5
        assert result["max"].tolist() == [size - 1, 0]
        assert result["table"] == [[r, 7] for r in range(size)]
        if size == 1:
            assert not sent
            continue
        assert sent["all-gather"] == (size - 1) * (max(counts) * 3 * 4 + 3 * 8)
        assert sent["all-to-all"] == (sum(counts) - counts[rank]) * 2 * 4
        assert sent["all-reduce"] == 2 * 20 * (size - 1) // size + 2 * 16 * (size - 1) // size


def sums(group):
    torch.manual_seed(group.rank)
    return group.sum_(torch.randn(1001)), group.sum_rows(torch.randn(group.size * 7, 13), [7] * 3)


def test_sums_have_the_same_bits_on_every_rank_and_in_every_run(spawn):
    first, second = spawn(3, sums), spawn(3, sums)
    for (total, own), (again, own_again) in zip(first, second, strict=True):
        assert torch.equal(total, first[0][0]) and torch.equal(total, again)
        assert torch.equal(own, own_again)


def agreement(group, facts):
    agree(group, facts[group.rank])


def test_ranks_that_agree_go_on(spawn):
    spawn(2, agreement, [{"lr": 0.1, "seed": 3}, {"seed": 3, "lr": 0.1}])


@pytest.mark.parametrize(
    ("other", "named"),
    [({"lr": 0.2, "seed": 3}, "lr"), ({"lr": 0.1, "seed": 3, "k": 1}, "options")],
)
def test_ranks_that_differ_are_told_in_what(spawn, other, named):
    outcomes = spawn.outcomes(2, agreement, [{"lr": 0.1, "seed": 3}, other])
    for fine, message in outcomes:
        assert not fine
        assert f"ranks 0 and 1 differ in {named}" in message


def caching(group, path, fail):
    def build():
        if group.rank == 0 and fail:
            raise ValueError("line 3 is cut")
        with Path(path).open("a") as file:
            file.write(str(group.rank))
        return group.rank

    return after_first(group, build)


def test_one_rank_of_a_machine_builds_before_the_others(spawn, tmp_path):
    assert spawn(3, caching, str(tmp_path / "order"), False) == [0, 1, 2]
    assert (tmp_path / "order").read_text()[0] == "0"


def test_the_others_learn_that_the_first_failed(spawn, tmp_path):
    first, *others = spawn.outcomes(3, caching, str(tmp_path / "order"), True)
    assert first[1].startswith("ValueError")
    for fine, message in others:
        assert not fine
        assert "The first error was on rank 0: ValueError: line 3 is cut" in message


def leaving(group, how):
    group.sum_(torch.ones(3))
    if group.rank == 1:
        if how == "dies":
            os._exit(9)
        raise ValueError("features[7] is NaN")
    group.sum_(torch.ones(100_000))


@pytest.mark.parametrize("how", ["dies", "raises"])
def test_a_rank_that_leaves_brings_the_others_down(spawn, how):
    first, second, third = spawn.outcomes(3, leaving, how)
    assert not second[0]
    for fine, message in (first, third):
        assert not fine
        assert message.startswith("DistributedError: rank")
        if how == "raises":
            assert "rank 1: ValueError: features[7] is NaN" in message


def hanging(group):
    if group.rank == 1:
        time.sleep(4)
    group.sum_(torch.ones(3))


def test_a_rank_that_hangs_costs_the_others_no_more_than_the_timeout(spawn):
    first, _ = spawn.outcomes(2, hanging, timeout=1.0)
    assert not first[0]
    assert "ended, hung or could not be reached" in first[1]


def test_a_partition_is_balanced_and_complete():
    for total, parts in [(7, 3), (3, 3), (100, 7), (670_091, 64)]:
        partition = Partition.of_classes(total, parts)
        ranges = partition.ranges
        assert ranges[0][0] == 0 and ranges[-1][1] == total
        assert all(a[1] == b[0] for a, b in pairwise(ranges))
        assert max(partition.sizes) - min(partition.sizes) <= 1


def test_more_ranks_than_classes_is_an_error():
    with pytest.raises(ConfigurationError, match="5 ranks cannot share 4 classes"):
        Partition.of_classes(4, 5)
