"""What every test needs before it imports anything."""

from types import ModuleType

import pytest
import torch

# The tests share few cores with each other; more threads only get in each other's way.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Give each test the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision, which timm and transformers import too, beside any build of torch.

    Built for CUDA it does not find the operators of its own library beside a CPU torch; the
    models need none of them, so two declarations are enough.
    """
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision._operators = library  # the declarations live as long as this object
    return torchvision
