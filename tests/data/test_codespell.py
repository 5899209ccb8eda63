"""The codespell task: its sizes, its split and the encoding of words."""

import hashlib
from importlib import resources

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.data import codespell
from qcompile.errors import DataError


@pytest.fixture(scope="module")
def task():
    pytest.importorskip("codespell_lib")
    return codespell.load(seed=0)


def test_sizes_and_padding(task):
    assert task.test_ids.shape == (5_000, codespell.WIDTH)
    assert len(task.train_ids) == len(task.train_labels) == len(task.train_words) > 59_000
    assert len(task.labels) > 18_000
    for ids in (task.train_ids, task.test_ids):
        assert ids.dtype == np.int64
        assert ids.min() == 0
        assert ids.max() < codespell.FEATURES
        assert (np.diff((ids > 0).astype(int), axis=1) <= 0).all()
    for labels in (task.train_labels, task.test_labels):
        assert labels.max() < len(task.labels)
        assert (labels[:, 0] >= 0).all()
        assert (np.diff((labels >= 0).astype(int), axis=1) <= 0).all()


def test_every_test_label_was_trained_and_no_word_is_in_both(task):
    trained = set(task.train_labels.ravel().tolist())
    assert set(task.test_labels.ravel().tolist()) <= trained | {-1}
    assert trained - {-1} == set(range(len(task.labels)))
    assert not set(task.train_words) & set(task.test_words)


def test_corrections_are_those_of_the_dictionary(task):
    row = (task.train_words + task.test_words).index("teh")
    labels = np.concatenate([task.train_labels, task.test_labels])[row]
    assert [task.labels[i] for i in labels[labels >= 0]] == ["the"]
    both = dict(zip(task.train_words, task.train_labels, strict=True))
    word = next(w for w, labels in both.items() if (labels >= 0).sum() == 3)
    lines = resources.files("codespell_lib").joinpath("data/dictionary.txt").read_text("utf-8")
    line = next(line for line in lines.splitlines() if line.startswith(f"{word}->"))
    assert all(task.labels[i] in line for i in both[word] if i >= 0)


def test_the_seed_chooses_the_split(task):
    again, other = codespell.load(0), codespell.load(1)
    assert again.test_words == task.test_words != other.test_words
    assert np.array_equal(again.train_ids, task.train_ids)
    assert np.array_equal(task.test_ids, codespell.encode(task.test_words))


def test_the_task_as_sparse_datasets(task):
    train, test = codespell.datasets(seed=0)
    assert (len(train), len(test)) == (len(task.train_ids), 5_000)
    assert train.num_features == test.num_features == codespell.FEATURES
    assert train.num_labels == test.num_labels == len(task.labels)
    rows = np.arange(50)
    batch = test.batch(rows)
    for row, ids, labels in zip(rows, task.test_ids, task.test_labels, strict=False):
        found, counts = np.unique(ids[ids > 0], return_counts=True)
        assert batch.features[row].indices.tolist() == found.tolist()
        assert batch.features[row].data == pytest.approx(counts / np.linalg.norm(counts))
        assert sorted(batch.labels[row][batch.labels[row] >= 0]) == sorted(labels[labels >= 0])
    typed = codespell.encode_sparse(task.test_words[:50])
    assert np.array_equal(typed.toarray(), batch.features.toarray())
    assert codespell.encode_sparse([]).shape == (0, codespell.FEATURES)


def grams(word):
    marked = f"\x02{word.strip().lower()}\x03"
    return [marked[i : i + n] for n in (2, 3, 4) for i in range(len(marked) - n + 1)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=0, max_size=20), min_size=1, max_size=6))
def test_equal_grams_get_equal_ids(words):
    ids = codespell.encode(words)
    assert ids.shape == (len(words), codespell.WIDTH)
    known = {}
    for word, row in zip(words, ids.tolist(), strict=True):
        expected = grams(word)[: codespell.WIDTH]
        assert all(row[: len(expected)])
        assert not any(row[len(expected) :])
        for gram, feature in zip(expected, row, strict=False):
            assert known.setdefault(gram, feature) == feature
    # A word's ids do not depend on what else is encoded with it.
    assert np.array_equal(ids[:1], codespell.encode(words[:1]))


def test_the_encoding_is_fixed_for_ever():
    # Trained models depend on these ids.
    assert codespell.encode(["teh"])[0, :9].tolist() == [
        8692, 28727, 26026, 27177, 32354, 1571, 33264, 775, 7679,
    ]  # fmt: skip
    digest = hashlib.sha256(codespell.encode(["recieve", "naïve", "x" * 90]).tobytes())
    assert digest.hexdigest()[:16] == "029cf5aee749e4f2"


def test_case_blanks_and_length():
    ids = codespell.encode(["  Recieve ", "recieve", "", "x" * 500])
    assert np.array_equal(ids[0], ids[1])
    assert (ids[2] > 0).sum() == 1
    assert (ids[3] > 0).all()
    assert codespell.encode([]).shape == (0, codespell.WIDTH)


@pytest.mark.parametrize("wrong", ["word", [1, 2], [None], [b"word"]])
def test_other_things_than_words_are_refused(wrong):
    with pytest.raises(DataError, match="list of strings"):
        codespell.encode(wrong)


def test_a_missing_package_names_the_remedy(monkeypatch, tmp_path):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(codespell.resources, "files", missing)
    with pytest.raises(DataError, match="pip install"):
        codespell.load()
    monkeypatch.setattr(codespell.resources, "files", lambda name: tmp_path)
    with pytest.raises(DataError, match="missing"):
        codespell.load()


@pytest.mark.parametrize(
    ("text", "message"),
    [("wrong->right\nbroken line\n", "line 2"), ("a->\n", "line 1"), ("a->b\n", "1 words only")],
)
def test_a_damaged_dictionary_is_refused(monkeypatch, tmp_path, text, message):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dictionary.txt").write_text(text)
    monkeypatch.setattr(codespell.resources, "files", lambda name: tmp_path)
    with pytest.raises(DataError, match=message):
        codespell.load()
