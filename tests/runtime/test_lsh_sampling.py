"""Which neurons a batch activates, against the NumPy reference and against probability."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import DataError
from qcompile.runtime import _core
from qcompile.runtime.reference import lsh as reference

DIMENSION, TABLES, HASHES = 20, 12, 2


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def built(neurons, bucket=64, seed=3):
    weight = normal(neurons, DIMENSION, seed=1)
    core = _core.LshTables(DIMENSION, neurons, "dwta", TABLES, HASHES, bucket, "reservoir", seed)
    core.build(weight)
    return core, weight


def sample(
    core, hidden, labels, neurons, active=10, negatives=5, seed=3, step=0, threads=1, **options
):
    labels = np.asarray(labels, np.int64)
    return _core.SparseSoftmax(
        core, hidden, labels, neurons, active, negatives, seed, step, threads, **options
    )


@settings(max_examples=30, deadline=None)
@given(
    neurons=st.integers(2, 200),
    examples=st.integers(1, 40),
    width=st.integers(1, 4),
    active=st.integers(1, 60),
    negatives=st.integers(0, 250),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 1000),
    sampling=st.sampled_from(["top-k", "vanilla", "threshold"]),
    threshold=st.integers(1, 5),
)
def test_the_reference_activates_the_same(
    neurons, examples, width, active, negatives, seed, step, sampling, threshold
):
    core, weight = built(neurons, bucket=7, seed=seed)
    hidden = np.maximum(normal(examples, DIMENSION, seed=2), 0)
    labels = np.random.default_rng(seed % 99).integers(-1, neurons, (examples, width))
    labels[:, 0] = abs(labels[:, 0])
    how = {"sampling": sampling, "threshold": threshold}
    batch = sample(core, hidden, labels, neurons, active, negatives, seed, step, threads=2, **how)
    family = (neurons, "dwta", TABLES, HASHES, seed)
    tables = reference.build(reference.keys(weight, *family), 7, "reservoir", seed, 0)
    queries = reference.keys(hidden, *family)
    everything = active >= neurons
    shared = neurons if everything else min(negatives, neurons)
    drawn = set(reference.draw(shared, neurons, seed, step))
    given = set() if everything else set(labels[labels >= 0].tolist())
    assert batch.shared.tolist() == sorted(drawn | given)
    assert batch.shared[batch.drawn == 1].tolist() == sorted(drawn - given)
    for e, own in enumerate(batch.own):
        expected = list(dict.fromkeys(label for label in labels[e].tolist() if label >= 0))
        if not everything:
            query = queries[:, e].tolist()
            expected = reference.active_neurons(
                tables, query, expected, active, seed, step, e, **how
            )
        assert own.tolist() == expected
        exact = given | set(expected)
        outside = len(drawn - exact)
        counts = (neurons - len(exact)) / outside if outside else 1
        assert batch.correction[e] == pytest.approx(np.log(counts), abs=1e-6)


def test_labels_come_first_whatever_the_cap():
    core, _ = built(50)
    labels = [[4, 9, 4, -1], [7, -1, -1, -1]]
    batch = sample(core, normal(2, DIMENSION), labels, 50, active=1)
    assert [own.tolist() for own in batch.own] == [[4, 9], [7]]


def test_candidates_are_the_nearest_by_collisions():
    core, weight = built(100)
    batch = sample(core, weight[:20], np.full((20, 1), 99), 100, active=3)
    # A neuron collides with its own weights in every table, so it is always found.
    assert all(e in own.tolist() for e, own in enumerate(batch.own))


@pytest.mark.parametrize("sampling", ["top-k", "vanilla", "threshold"])
def test_no_neuron_is_favoured_for_its_number(sampling):
    neurons, active, steps = 40, 11, 600
    core = _core.LshTables(DIMENSION, neurons, "dwta", TABLES, HASHES, 64, "fifo", 3)
    weight = np.repeat(normal(1, DIMENSION), neurons, axis=0)  # all collide in all tables
    core.build(weight)
    counts = np.zeros(neurons)
    for step in range(steps):
        batch = sample(core, weight[:1], [[0]], neurons, active, step=step, sampling=sampling)
        counts[batch.own[0][1:]] += 1
    # A run of 10 from a random place among 39 has each neuron with probability 10 / 39.
    share = (active - 1) / (neurons - 1)
    deviation = np.sqrt(steps * share * (1 - share))
    assert abs(counts[1:] - steps * share).max() < 5 * deviation
    assert counts[0] == 0  # the label is not counted twice


def test_lookups_are_counted():
    core, weight = built(100)
    batch = sample(core, weight[:7], np.arange(7)[:, None], 100, active=9)
    sizes = [len(own) for own in batch.own]
    last = core.last_lookup()
    assert last["examples"] == 7
    assert last["active"] == sum(sizes) == last["candidates"] + 7
    assert (last["least"], last["most"]) == (min(sizes), max(sizes))
    keys = core.keys(weight[:7])
    buckets = [len(core.bucket(t, int(k))) for t in range(TABLES) for k in keys[t]]
    assert last["collisions"] == sum(buckets)
    sample(core, weight[:7], np.arange(7)[:, None], 100, active=3, sampling="vanilla")
    assert 7 * 2 <= core.last_lookup()["collisions"] < sum(buckets)


def test_threads_do_not_matter_and_seeds_do():
    core, weight = built(200)
    hidden, labels = weight[:64], np.arange(64)[:, None]

    def drawn(**options):
        batch = sample(core, hidden, labels, 200, **options)
        return batch.shared.tolist(), [own.tolist() for own in batch.own]

    assert drawn(threads=1) == drawn(threads=2) == drawn(threads=5)
    assert drawn(step=0) != drawn(step=1)
    assert drawn(seed=3)[0] != drawn(seed=4)[0]


def test_shared_neurons_are_drawn_uniformly():
    hidden, labels = np.zeros((1, DIMENSION), np.float32), [[0]]
    counts = np.zeros(30)
    for step in range(3000):
        batch = sample(None, hidden, labels, 30, active=1, negatives=6, step=step)
        counts[batch.shared] += 1
    deviation = np.sqrt(3000 * 0.2 * 0.8)
    assert counts[0] == 3000  # a label is always shared
    assert abs(counts[1:] - 600).max() < 5 * deviation


@pytest.mark.parametrize("others", [[], [[7, 8, 9], [5, 11, -1], [7, -1, -1]]])
def test_the_sum_of_exponentials_is_estimated_without_bias(others):
    neurons = 60
    core, weight = built(neurons)
    labels = [[5, -1, -1], *others]
    hidden = normal(len(labels), DIMENSION, seed=9) * 0.3
    logits = (hidden @ weight.T)[0].astype(np.float64)
    estimates = []
    for step in range(3000):
        batch = sample(core, hidden, labels, neurons, active=6, negatives=8, step=step)
        log_prob = batch.forward(hidden, weight, None)[0]
        estimates.append(np.exp(logits[5] - log_prob))
    exact = np.exp(logits).sum()
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - exact) < 5 * error
    assert error < 0.02 * exact


def test_bad_arguments_are_refused():
    core, weight = built(50)
    hidden = weight[:2]
    with pytest.raises(DataError, match="label 50 of example 1"):
        sample(core, hidden, [[1], [50]], 50)
    with pytest.raises(DataError, match="example 1 has no label"):
        sample(core, hidden, [[1], [-1]], 50)
    with pytest.raises(DataError, match="shape"):
        sample(core, hidden, [[1]], 50)
    with pytest.raises(DataError, match="rows"):
        sample(core, hidden, [[1], [2]], 51)
    with pytest.raises(DataError, match="hidden"):
        sample(core, normal(2, 19), [[1], [2]], 50)
    empty = _core.LshTables(DIMENSION, 50, "dwta", 2, 2, 8, "fifo", 0)
    with pytest.raises(DataError, match="build"):
        sample(empty, hidden, [[1], [2]], 50)
    batch = sample(core, hidden, [[1], [2]], 50)
    with pytest.raises(DataError, match="weight"):
        batch.forward(hidden, weight[:49], None)
    with pytest.raises(DataError, match="bias"):
        batch.forward(hidden, weight, np.zeros(49, np.float32))
