"""The detector: prior boxes, shapes, gradients, loss, answers, and ONNX."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F  # noqa: N812

from qcompile.errors import ConfigurationError, DataError
from qcompile.models.boxes import encode
from qcompile.models.multibox import Targets, detect, multibox_loss, targets_of
from qcompile.models.ssd import SEVEN, SSD, Boxes, Raw, qssd7, ssd7, ssd13
from qcompile.models.vgg import POOL
from qcompile.nn import QuadraticBlock


def small(form="Quadra", side=45, **options):
    torch.manual_seed(0)
    return qssd7(3, form=form, scale=0.06, side=side, **options)


def test_sizes_are_those_that_are_told():
    for build, millions in ((ssd7, 7.85), (qssd7, 19.40), (ssd13, 13.16)):
        size = sum(p.numel() for p in build(20).parameters()) / 1e6
        assert size == pytest.approx(millions, abs=0.005)


def test_maps_halve_down_to_one_and_prior_boxes_follow():
    model = small(side=45, scales=(0.2, 0.8), ratios=(4.0,))
    # 45 → 22 → 11 → 5 after three poolings, 2 after the fourth, then 1.
    assert len(model.priors) == 4 * (25 + 4 + 1)
    first = model.priors[:4].double()
    mean = math.sqrt(0.2 * 0.5)
    wanted = [[0.1, 0.1, *sides] for sides in [(0.2, 0.2), (mean, mean), (0.4, 0.1), (0.1, 0.4)]]
    np.testing.assert_allclose(first, wanted, rtol=1e-6)
    # The second place is to the right of the first; the last map has one place and scale 0.8.
    np.testing.assert_allclose(model.priors[4, :2], [0.3, 0.1], rtol=1e-6)
    np.testing.assert_allclose(model.priors[-4], [0.5, 0.5, 0.8, 0.8], rtol=1e-6)
    assert model.priors[-2].tolist() == pytest.approx([0.5, 0.5, 1.0, 0.4])  # 1.6 is cut off


@pytest.mark.parametrize("side", [33, 64])
@pytest.mark.parametrize("build", [ssd7, qssd7, ssd13])
def test_each_prior_box_has_offsets_and_scores(build, side):
    model = build(5, scale=0.05, side=side, channels=2, ratios=(2.0, 3.0))
    found = model(torch.randn(2, 2, side, side))
    assert found.offsets.shape == (2, len(model.priors), 4)
    assert found.scores.shape == (2, len(model.priors), 6)


def test_a_prior_box_is_answered_by_its_own_place():
    """With heads that copy a map, the scores of a place are the map's features at that place."""
    model = SSD((1, POOL, 1), 1, side=8, ratios=()).eval()
    for head in model.scores:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        head.weight.data[:, 0, 1, 1] = 1
    image = torch.rand(1, 3, 8, 8)
    first = model.stages[0](image)
    scores = model(image).scores.reshape(-1, 2, 2)  # places, shapes, classes
    torch.testing.assert_close(scores[:64, 0, 0], first.flatten())
    place = 3 * 8 + 5
    np.testing.assert_allclose(model.priors[2 * place, :2], [5.5 / 8, 3.5 / 8])
    assert scores[place, 1, 1] == first[0, 0, 3, 5]


@pytest.mark.parametrize("form", ["T2", "T3", "T4", "T2_4", "Quadra", None])
def test_every_parameter_gets_a_gradient(form):
    model = small(form)
    blocks = [m for m in model.modules() if isinstance(m, QuadraticBlock)]
    assert len(blocks) == (0 if form is None else 7 + 2)
    targets = targets_of(
        [torch.tensor([[0.1, 0.2, 0.6, 0.9]])] * 2, [torch.tensor([1])] * 2, model.priors
    )
    multibox_loss(model(torch.randn(2, 3, 45, 45)), targets).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    "options",
    [
        {"classes": 0},
        {"classes": 2, "side": 15},
        {"classes": 2, "channels": 0},
        {"classes": 2, "scales": (0.5, 0.5)},
        {"classes": 2, "scales": (0.5, 1.5)},
        {"classes": 2, "ratios": (0.0,)},
        {"classes": 2, "scale": -1.0},
        {"classes": 2, "widths": (4, 4)},
        {"classes": 2, "widths": (4, POOL, POOL, 4)},
        {"classes": 2, "widths": (4, POOL)},
    ],
)
def test_what_cannot_be_built_is_refused(options):
    with pytest.raises(ConfigurationError):
        SSD(**{"widths": SEVEN, **options})


def reference_loss(raw, targets, negatives) -> float:
    """From equation 1, prior box by prior box."""
    total, matched = 0.0, 0
    for offsets, scores, wanted, labels in zip(*raw, *targets, strict=True):
        losses = [
            float(-F.log_softmax(s, 0)[label]) for s, label in zip(scores, labels, strict=True)
        ]
        positive = [i for i, label in enumerate(labels) if label > 0]
        matched += len(positive)
        for i in positive:
            total += losses[i]
            for difference in (offsets[i] - wanted[i]).abs().tolist():
                total += 0.5 * difference**2 if difference < 1 else difference - 0.5
        rest = sorted((losses[i] for i, label in enumerate(labels) if label == 0), reverse=True)
        total += sum(rest[: int(negatives * len(positive))])
    return total / max(matched, 1)


def example(seed=0, images=3, count=17, classes=3):
    rng = np.random.default_rng(seed)
    raw = Raw(
        *(torch.from_numpy(rng.normal(size=(images, count, n)) * 2) for n in (4, classes + 1))
    )
    labels = rng.integers(1, classes + 1, (images, count)) * (rng.random((images, count)) < 0.2)
    labels[0] = 0  # an image without objects
    labels[2, :12] = 1  # more positives than a third of the prior boxes
    return raw, Targets(
        torch.from_numpy(rng.normal(size=(images, count, 4))), torch.from_numpy(labels)
    )


@pytest.mark.parametrize("negatives", [3.0, 1.0, 0.0])
def test_the_loss_is_that_of_the_paper(negatives):
    raw, targets = example()
    assert float(multibox_loss(raw, targets, negatives)) == pytest.approx(
        reference_loss(raw, targets, negatives), rel=1e-12
    )


def test_the_loss_has_the_right_gradient():
    raw, targets = example(1)
    assert gradcheck(
        lambda offsets, scores: multibox_loss(Raw(offsets, scores), targets),
        (raw.offsets.requires_grad_(), raw.scores.requires_grad_()),
    )


def test_without_an_object_the_loss_is_zero():
    raw, targets = example()
    none = Targets(targets.offsets, torch.zeros_like(targets.labels))
    raw = Raw(raw.offsets.requires_grad_(), raw.scores.requires_grad_())
    loss = multibox_loss(raw, none)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not raw.scores.grad.any()


def test_targets_are_codes_of_the_matched_objects():
    model = small()
    boxes = torch.tensor([[0.1, 0.1, 0.3, 0.35], [0.4, 0.3, 0.95, 0.9]])
    found = targets_of(
        [boxes, boxes[:0]],
        [torch.tensor([2, 0]), torch.tensor([], dtype=torch.int64)],
        model.priors,
    )
    assert set(found.labels[0].tolist()) == {0, 1, 3}
    assert not found.labels[1].any()
    for label, box in ((3, boxes[0]), (1, boxes[1])):
        for place in (found.labels[0] == label).nonzero()[:, 0]:
            torch.testing.assert_close(found.offsets[0, place], encode(box, model.priors[place]))
    with pytest.raises(DataError, match="prior boxes"):
        targets_of([boxes], [torch.tensor([0, 1])], model.priors[:1])


def test_what_was_learnt_by_heart_is_found_again():
    """Scores and offsets that say exactly what is there give the objects, each once."""
    model = small()
    boxes = torch.tensor([[0.1, 0.1, 0.3, 0.35], [0.4, 0.3, 0.95, 0.9]])
    targets = targets_of([boxes], [torch.tensor([2, 0])], model.priors)
    scores = F.one_hot(targets.labels, 4).float() * 12
    (found,) = detect(Raw(targets.offsets, scores), model.priors, least=0.5)
    assert found.labels.tolist() == [2, 0] or found.labels.tolist() == [0, 2]
    order = found.labels.argsort(descending=True)
    torch.testing.assert_close(found.boxes[order], boxes, atol=1e-5, rtol=1e-5)
    assert (found.scores > 0.99).all()


def test_the_best_are_kept_by_falling_score():
    torch.manual_seed(0)
    model = small()
    count = len(model.priors)
    raw = Raw(torch.randn(2, count, 4), torch.randn(2, count, 4) * 3)
    for own in detect(raw, model.priors, least=0.3, most=11):
        assert len(own.scores) <= 11
        assert (own.scores.diff() <= 0).all()
        assert (own.scores > 0.3).all()
        assert ((own.boxes >= 0) & (own.boxes <= 1)).all()
        assert own.labels.max() < 3
    few = detect(raw, model.priors, candidates=1)
    assert all(sorted(own.labels.tolist()) == [0, 1, 2] for own in few)
    assert [len(own.scores) for own in detect(raw, model.priors, least=1.0)] == [0, 0]


def test_onnxruntime_answers_with_the_same_boxes(tmp_path):
    model = Boxes(small()).eval()
    path = tmp_path / "detector.onnx"
    batch = {0: torch.export.Dim("batch")}
    names = {"input_names": ["images"], "output_names": ["boxes", "probabilities"]}
    torch.onnx.export(
        model, (torch.randn(3, 3, 45, 45),), path, dynamic_shapes=(batch,), verbose=False, **names
    )
    assert {node.domain for node in onnx.load(path).graph.node} == {""}, "only standard operators"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (1, 2):
        images = torch.randn(size, 3, 45, 45)
        boxes, probabilities = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            wanted = model(images)
            raw = model.detector(images)
        np.testing.assert_allclose(boxes, wanted[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(probabilities, wanted[1], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(wanted[1], raw.scores.softmax(2)[..., 1:])
