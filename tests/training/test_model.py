"""The network, its hidden layers over sparse features, and what is served."""

import numpy as np
import pytest
import torch
from scipy import sparse

from qcompile.config import FORMS
from qcompile.errors import ConfigurationError
from qcompile.nn.quadratic import FORMULAS
from qcompile.nn.quadratic.formulas import Term
from qcompile.training import ExtremeClassifier, SparseQuadratic
from qcompile.training.serving import ServedClassifier, padded

USABLE = [form for form in FORMS if not FORMULAS[form].has_bilinear]


def batch(rows=5, features=37, seed=0):
    matrix = sparse.random(rows, features, 0.3, "csr", np.float32, np.random.default_rng(seed))
    matrix.data -= 0.4
    matrix.sort_indices()
    return matrix


def reference(layer, features):
    """Evaluate the formula in float64, branch by branch, from the dense batch."""
    x = features.toarray().astype(np.float64)
    values = {}
    for term, part, source in (
        (Term.FIRST_ORDER, layer.linear, x),
        (Term.SQUARED_INPUT, layer.squared, x * x),
    ):
        for place, letter in enumerate(layer.letters(term)):
            columns = slice(place * layer.out_features, (place + 1) * layer.out_features)
            weight = part.weight.detach().double().numpy()[:, columns]
            values[letter] = source @ weight + part.bias.detach().double().numpy()[columns]
    a, b, c = (values.get(letter) for letter in "abc")
    return {
        "T2": lambda: a,
        "T3": lambda: a * a,
        "T4": lambda: a * b,
        "T2_4": lambda: a * b + c,
        "Quadra": lambda: a * b + c,
    }[layer.form]()


@pytest.mark.parametrize("form", USABLE)
def test_a_quadratic_layer_computes_its_formula(form):
    layer = SparseQuadratic(37, 7, form)
    with torch.no_grad():
        for part in (layer.linear, layer.squared):
            if part is not None:
                part.bias.normal_()
    features = batch()
    expected = reference(layer, features)
    np.testing.assert_allclose(layer(features).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", USABLE)
def test_a_quadratic_layer_has_the_gradients_of_its_formula(form):
    layer = SparseQuadratic(37, 3, form)
    for part in (layer.linear, layer.squared):
        if part is not None:
            part.sparse_grad = False
    features = batch()
    x = torch.from_numpy(features.toarray())
    dense = {
        "linear": lambda: x @ layer.linear.weight + layer.linear.bias,
        "squared": lambda: (x * x) @ layer.squared.weight + layer.squared.bias,
    }
    upstream = torch.randn(5, 3)
    parts = {name: make() for name, make in dense.items() if getattr(layer, name) is not None}
    wanted = torch.autograd.grad(
        layer.combine(parts.get("linear"), parts.get("squared")), list(layer.parameters()), upstream
    )
    found = torch.autograd.grad(layer(features), list(layer.parameters()), upstream)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["T1", "T1L", "T1_2"])
def test_a_matrix_per_neuron_is_refused_with_a_way_out(form):
    with pytest.raises(ConfigurationError, match=r"n by n.*T2_4"):
        SparseQuadratic(1000, 8, form)


@pytest.mark.parametrize("form", [None, *USABLE])
def test_fresh_weights_give_outputs_of_one_scale_whatever_the_values(form):
    model = ExtremeClassifier(400, 50, (64,), form)
    features = batch(300, 400)
    powers = []
    for scale in (0.01, 1.0, 30.0):
        scaled = features * np.float32(scale)
        square = float((scaled.data.astype(float) ** 2).sum()) / 300
        fourth = float((scaled.data.astype(float) ** 4).sum()) / 300
        model.draw(torch.Generator().manual_seed(1), square, fourth)
        powers.append(float(model.input(scaled).detach().square().mean()))
    assert powers == pytest.approx([powers[0]] * 3, rel=1e-3)
    assert 1e-3 < powers[0] < 1
    if form is None:
        assert powers[0] == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("storage", ["fp32", "bf16"])
@pytest.mark.parametrize("form", [None, *USABLE])
def test_what_is_served_computes_what_the_network_does(form, storage):
    model = ExtremeClassifier(37, 23, (16, 8), form, storage=storage).eval()
    features = batch()
    served = ServedClassifier(model).eval()
    answer = served(*padded(features))
    expected = model.encode(features) @ model.output.weight.float().t() + model.output.bias.float()
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


def test_padding_keeps_features_and_empty_rows():
    features = sparse.csr_matrix(np.array([[0, 2, 0, 3], [0, 0, 0, 0], [1, 0, 0, 0]], np.float32))
    ids, values = padded(features)
    assert ids.tolist() == [[1, 3], [0, 0], [0, 0]]
    assert values.tolist() == [[2, 3], [0, 0], [1, 0]]
    ids, values = padded(features[1:2])
    assert ids.shape == values.shape == (1, 1)
