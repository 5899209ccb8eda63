"""One way to train a classifier, the same for every network that is compared."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, LRScheduler

from accuracy.keeping import Keeper
from accuracy.tasks import Task
from qcompile.flops import measure
from qcompile.optim import quadratic_groups
from qcompile.training import ExtremeValues, clip_gradients

__all__ = ["Recipe", "Row", "accuracy", "learn", "parameters", "train"]

# Of the widths here bfloat16 takes 0.8 of float32's time where convolutions have it.
_BFLOAT16 = torch.backends.cpu.get_cpu_capability() == "AVX512"


@dataclass(frozen=True)
class Recipe:
    """How networks are trained: SGD with a momentum of 0.9, a warm-up, a cosine, clipped gradients.

    The defaults are QuadraLib's (Xu et al., MLSys 2022), but for the warm-up and the batch.

    Args:
        epochs: passes over the examples.
        rate: the highest learning rate, reached after a tenth of the steps.
        scale: that of quadratic terms is so many times as high.
        decay: weight decay.
        clip: largest norm of the gradients.
        batch: examples of a step.
    """

    epochs: int
    rate: float = 0.1
    scale: float = 1.0
    decay: float = 5e-4
    clip: float = 0.5
    batch: int = 128


@dataclass(frozen=True)
class Row:
    """One network, trained once.

    Args:
        part: of the benchmark.
        network: its name there.
        seed: of weights and order.
        parameters: all of them, those of batch norms and of the classifier included.
        flops: of one image, two for a multiplication with an addition.
        accuracy: on the test images.
        seconds: of CPU time to train.
    """

    part: str
    network: str
    seed: int
    parameters: int
    flops: int
    accuracy: float
    seconds: float


def train(
    part: str,
    network: str,
    seed: int,
    make: Callable[[], nn.Module],
    task: Task,
    recipe: Recipe,
    keep: Keeper,
) -> Row:
    """Train a network that ``make`` returns and describe it, unless that was done before."""
    run = f"{part}-{network}-{seed}"

    def now() -> dict[str, object]:
        model = make()
        seconds = learn(model, task, recipe, seed, keep, run)
        example = (task.test_inputs[:1],)
        flops = measure(nn.Sequential(model.eval()), example, {}).flops[""]
        found = accuracy(model, task)
        return asdict(Row(part, network, seed, parameters(model), flops, found, round(seconds, 1)))

    return Row(**keep.finished(run, now))


def parameters(model: nn.Module) -> int:
    """Count the parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def learn(model: nn.Module, task: Task, recipe: Recipe, seed: int, keep: Keeper, run: str) -> float:
    """Train a network in place, from its checkpoint if there is one; return CPU seconds.

    The seed fixes the order of examples. Convolutions run channels last and, where the processor
    has AVX-512, in bfloat16 by autocast; the parameters are float32.

    Raises:
        TrainingError: the network diverges.
    """
    model.to(memory_format=torch.channels_last)
    steps = recipe.epochs * -(-len(task.labels) // recipe.batch)
    optimizer, schedule = _optimizer(model, recipe, steps)
    state = keep.load(run)
    first, seconds = 0, 0.0
    if state is not None:
        for part, name in ((model, "model"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(state[name])
        first, seconds = state["epochs"], state["seconds"]
    for epoch in range(first, recipe.epochs):
        began = time.process_time()
        loss = _epoch(model, task, recipe, optimizer, schedule, 1000 * seed + epoch)
        seconds += time.process_time() - began
        print(f"{run}: epoch {epoch + 1}, loss {loss:.4f}, {seconds:.0f} s", file=sys.stderr)
        keep.save(
            run,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "epochs": epoch + 1,
                "seconds": seconds,
            },
        )
    return seconds


def _optimizer(
    model: nn.Module, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    groups = quadratic_groups(model, recipe.rate, scale=recipe.scale, weight_decay=recipe.decay)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    warm_up = LinearLR(optimizer, 0.01, total_iters=max(1, steps // 10))
    return optimizer, ChainedScheduler([warm_up, CosineAnnealingLR(optimizer, steps)])


def _epoch(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    seed: int,
) -> float:
    """Train for an epoch and return the mean loss."""
    order = torch.randperm(len(task.labels), generator=torch.Generator().manual_seed(seed))
    losses = []
    model.train()
    with ExtremeValues(model, every=50):
        for batch in order.split(recipe.batch):
            loss = F.cross_entropy(_scores(model, task.inputs[batch]), task.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            clip_gradients(model, recipe.clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def _scores(model: nn.Module, inputs: Tensor) -> Tensor:
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=_BFLOAT16):
        scores: Tensor = model(inputs)
    return scores.float()


@torch.no_grad()
def accuracy(model: nn.Module, task: Task) -> float:
    """Return the share of test examples that a model classifies rightly, in evaluation mode."""
    model.eval()
    parts = [_scores(model, part).argmax(1) for part in task.test_inputs.split(500)]
    return float((torch.cat(parts) == task.test_labels).float().mean())
