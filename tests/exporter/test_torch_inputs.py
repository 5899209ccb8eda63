"""Inputs of many rows, in the forms in which people have them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from qcompile.errors import DataError, ExportError
from qcompile.exporter.torch_inputs import joined

ONE, TWO = np.arange(12.0, dtype=np.float32).reshape(6, 2), np.arange(6)


def halves(*arrays):
    return [tuple(array[part] for array in arrays) for part in (slice(4), slice(4, 6))]


@pytest.mark.parametrize(
    "inputs",
    [
        ONE,
        torch.tensor(ONE),
        (ONE,),
        {"x": ONE},
        [ONE],
        [ONE[:4], ONE[4:]],
        [torch.tensor(ONE[:1]), torch.tensor(ONE[1:2]), torch.tensor(ONE[2:])],
        halves(ONE),
        iter(halves(ONE)),
        [{"x": ONE[:5]}, {"x": ONE[5:]}],
        DataLoader(TensorDataset(torch.tensor(ONE)), batch_size=4),
    ],
)
def test_one_input(inputs):
    found = joined(nn.Identity(), inputs, ["x"], "calibration")
    assert found.keys() == {"x"}
    np.testing.assert_array_equal(found["x"], ONE)


@pytest.mark.parametrize(
    "inputs",
    [
        (ONE, TWO),
        [torch.tensor(ONE), torch.tensor(TWO)],
        halves(ONE, TWO),
        DataLoader(TensorDataset(torch.tensor(ONE), torch.tensor(TWO)), batch_size=5),
    ],
)
def test_two_inputs(inputs):
    found = joined(nn.Identity(), inputs, ["x", "y"], "calibration")
    np.testing.assert_array_equal(found["x"], ONE)
    np.testing.assert_array_equal(found["y"], TWO)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (7, "calibration must be a tuple"),
        ("inputs", "calibration must be a tuple"),
        ([], "calibration hold no batch"),
        (ONE[:0], "calibration hold no tensor"),
        ([ONE, ONE[:, :1]], "batches of calibration do not fit"),
    ],
)
def test_what_is_no_input_is_refused(inputs, message):
    with pytest.raises(DataError, match=message):
        joined(nn.Identity(), inputs, ["x"], "calibration")


def test_labels_are_not_taken_for_inputs():
    with pytest.raises(ExportError, match=r"reads 1 tensors \(x\), but calibration hold 2"):
        joined(nn.Identity(), halves(ONE, TWO), ["x"], "calibration")
