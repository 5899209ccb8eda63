"""Tables that follow the weights: incremental, spread and renewed re-hashes, and their report."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from qcompile import LSH
from qcompile.errors import DataError
from qcompile.nn import LSHLinear
from qcompile.nn.hash_tables import HashTables
from qcompile.optim import Adam

D, N = 14, 80
SMALL = {
    "tables": 6,
    "hashes": 2,
    "bucket": 9,
    "active": 10,
    "negatives": 15,
    "rehash": 4,
    "rehash_decay": 0.2,
}
WAYS = [
    {"incremental": True},
    {"spread": 3},
    {"incremental": True, "spread": 9},
    {"renew": 2},
    {"incremental": True, "spread": 2, "renew": 1, "family": "doph", "sampling": "vanilla"},
]


def config(**changes):
    return LSH(**{**SMALL, "incremental": False, **changes})


def layer(**changes):
    torch.manual_seed(1)
    return LSHLinear(D, N, config=config(**changes))


def contents(tables):
    core = tables._core
    buckets = range(1 << core.key_bits)
    return [[core.bucket(t, key).tolist() for key in buckets] for t in range(SMALL["tables"])]


@pytest.mark.parametrize("optimiser", ["Adam", "SGD", "dense AdamW", "data"])
def test_incremental_training_equals_full_rehashes(train, optimiser):
    runs = []
    for incremental in (False, True):
        module = layer(incremental=incremental)
        if optimiser == "Adam":
            losses, _ = train(module, 25)
        else:
            module.sparse_grad = "dense" not in optimiser
            kind = {"SGD": torch.optim.SGD}.get(optimiser, torch.optim.AdamW)
            if optimiser == "data":  # an update that no counter of torch's sees
                kind, module.sparse_grad = Written, False
            losses, _ = train(module, 25, optimizer=kind(module.parameters(), lr=0.05))
        runs.append((losses, contents(module._tables)))
    assert runs[0] == runs[1]


class Written(torch.optim.Optimizer):
    """Writes through ``.data``."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.data -= self.defaults["lr"] * parameter.grad


def test_an_incremental_rehash_hashes_the_rows_that_changed():
    module = layer(incremental=True, negatives=3, rehash=2, rehash_decay=0)
    hidden, target = torch.randn(2, D), torch.tensor([3, 5])
    module(hidden, target)
    assert module.occupancy().hashed == N
    with torch.no_grad():
        module.weight[[7, 9, 70]] += 1
    module(hidden, target)
    assert module.occupancy().hashed == N  # not due yet
    module(hidden, target)
    assert module.occupancy().hashed == 3
    module.state_dict()  # makes the tables due, but no key changes by that
    module(hidden, target)
    assert module.occupancy().hashed == 0


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
@pytest.mark.parametrize("steps", [5, 10])
def test_a_resumed_run_equals_the_one_that_went_on(train, way, how, steps):
    module = layer(**way)
    _, optimizer = train(module, steps)
    optimizer.flush()  # so that the copy and its origin start from the same weights
    if how == "state_dict":
        resumed = layer(**way)
        resumed.load_state_dict(module.state_dict())
    else:
        copied = pickle.loads(pickle.dumps(module)) if how == "pickle" else copy.deepcopy(module)
        resumed = copied
    other = Adam(resumed.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    losses, _ = train(module, 14, start=steps, optimizer=optimizer)
    assert losses == train(resumed, 14, start=steps, optimizer=other)[0]
    assert contents(module._tables) == contents(resumed._tables)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_threads_do_not_matter(train, way):
    runs = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            runs.append(train(layer(**way), 15)[0])
        finally:
            torch.set_num_threads(1)
    assert runs[0] == runs[1]


def test_a_spread_rehash_takes_its_steps_and_ends_before_the_next():
    weight = torch.randn(N, D)
    tables = HashTables(config(spread=3, rehash=5, rehash_decay=0), D, N)
    busy = []
    for _ in range(16):
        busy.append(tables.current(weight).building)
        tables.advance()
    # Begun at steps 5, 10 and 15, ended in the third step from there on.
    assert [step for step, building in enumerate(busy) if building] == [5, 6, 10, 11, 15]
    assert tables.rehashes == 3
    short = HashTables(config(spread=1000, rehash=4, rehash_decay=0), D, N)
    for step in range(20):
        core = short.current(weight)
        assert core.building == (step >= 4 and step % 4 != 3)
        short.advance()
    assert short.report().builds == 5  # the first, and one for each of the four that ended or began


def test_functions_are_drawn_anew_on_their_own_schedule():
    weight = torch.randn(N, D)
    tables = HashTables(config(renew=2, rehash=1, rehash_decay=0), D, N)
    keys = []
    for _ in range(7):
        keys.append(tables.current(weight).keys(weight.numpy()).tolist())
        tables.advance()
    drawn = [keys.index(key) for key in keys]
    # Re-hash i takes place at step i; the second, fourth and sixth have new functions.
    assert drawn == [0, 0, 2, 2, 4, 4, 6]


def test_a_repeated_forward_sees_the_tables_of_the_first():
    losses = []
    for again in (False, True):
        module = layer(rehash=1, rehash_decay=0)
        scale = nn.Parameter(torch.ones(D))
        optimizer = Adam([*module.parameters(), scale], lr=0.05)
        for step in range(5):
            generator = torch.Generator().manual_seed(step)
            hidden = torch.randn(7, D, generator=generator).relu()
            target = torch.randint(N, (7,), generator=generator)

            def forward(rows, target=target, module=module, scale=scale):
                return module(rows * scale, target).loss

            optimizer.zero_grad()
            loss = checkpoint(forward, hidden, use_reentrant=False) if again else forward(hidden)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert module.steps == 5
    assert losses[:5] == losses[5:]


def test_no_tables_where_nothing_is_looked_up():
    for changes in ({"mode": "sampled"}, {"mode": "full"}, {"active": 1}, {"active": N}):
        tables = HashTables(config(**changes), D, N)
        assert tables.current(torch.randn(N, D)) is None
        with pytest.raises(DataError, match="none to describe"):
            tables.report()


def test_the_report_describes_tables_and_lookups(train):
    module = layer()
    with pytest.raises(DataError, match="none to describe"):
        module.occupancy()
    train(module, 6)
    report = module.occupancy()
    sizes = [len(bucket) for table in contents(module._tables) for bucket in table]
    used = sorted(size for size in sizes if size)
    assert (report.buckets, report.used) == (len(sizes), len(used))
    assert report.mean == pytest.approx(sum(used) / len(used))
    assert report.largest == used[-1]
    assert used[(len(used) - 1) // 2] <= report.median <= used[len(used) // 2]
    assert report.dropped == SMALL["tables"] * N - sum(sizes)
    assert (report.builds, report.rehashes) == (2, 1)
    assert report.build_seconds > 0
    assert report.hashed == N
    assert report.examples == 11
    assert 1 <= report.active_least <= report.active <= report.active_most <= 10
    assert report.collisions > 0
    text = str(report)
    assert f"{report.used:,} of {report.buckets:,}" in text
    assert "an example" in text


@pytest.mark.parametrize(
    "state",
    [torch.zeros(3, dtype=torch.int64), torch.zeros(4), torch.tensor([1, -1, 2, 3]), None],
)
def test_a_damaged_state_is_refused(state):
    with pytest.raises(DataError, match="extra state"):
        layer().set_extra_state(state)
