"""Ways to train the same network, 128 ReLU units between sparse features and all labels."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from extreme.problems import Problem
from qcompile import LSH
from qcompile.data.sparse_dataset import SparseBatch, SparseDataset
from qcompile.distributed import Group
from qcompile.optim import Adam, SparseAdam
from qcompile.training import TrainConfig
from qcompile.training.build import build_model

__all__ = ["HIDDEN", "Network", "make"]

HIDDEN = 128


class Network(Protocol):
    """What all ways have in common."""

    def step(self, batch: SparseBatch) -> float:
        """Train on a batch; return the loss."""

    def hidden(self, batch: SparseBatch) -> Tensor:
        """Return the hidden activations, float32 [B, 128]."""

    def output(self) -> tuple[Tensor, Tensor]:
        """Return weight [N, 128] and bias [N] as they are after the steps so far."""


class Ours:
    """qcompile, its large layers updated within the backward pass; lazy as torch's, or not."""

    def __init__(
        self,
        problem: Problem,
        train: SparseDataset,
        storage: str,
        lazy: bool = False,
        **lsh: Any,
    ) -> None:
        config = TrainConfig(
            hidden=(HIDDEN,),
            sparse_output=LSH(**lsh),
            storage=storage,
            batch=problem.batch,
        )
        self.model = build_model(config, train, Group())
        layers = (self.model.input, self.model.output)
        groups = [
            {"params": layer.parameters(), "lr": lr}
            for layer, lr in zip(layers, problem.lr, strict=True)
        ]
        self.optimizer = SparseAdam(groups) if lazy else Adam(groups)
        self.optimizer.step_in_backward(*layers)
        self.model.train()

    def step(self, batch: SparseBatch) -> float:
        loss = self.model(batch.features, torch.from_numpy(batch.labels)).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def hidden(self, batch: SparseBatch) -> Tensor:
        return self.model.encode(batch.features)

    def output(self) -> tuple[Tensor, Tensor]:
        self.optimizer.flush()
        head = self.model.output
        return head.weight.detach().float(), head.bias.detach().float()


class _Torch:
    """The parts that the torch networks share: an embedding bag with lazy Adam."""

    optimizer: torch.optim.Optimizer

    def __init__(self, problem: Problem, train: SparseDataset) -> None:
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(train.num_features, HIDDEN, mode="sum", sparse=True)
        bound = 1 / math.sqrt(HIDDEN)
        nn.init.uniform_(self.bag.weight, -bound, bound)
        self.offset = nn.Parameter(torch.zeros(HIDDEN))
        first, self.lr = problem.lr
        self.bag_optimizer = torch.optim.SparseAdam(self.bag.parameters(), lr=first)
        self.offset_optimizer = torch.optim.Adam([self.offset], lr=first)

    def hidden(self, batch: SparseBatch) -> Tensor:
        features = batch.features
        rows = self.bag(
            torch.from_numpy(features.indices),
            torch.from_numpy(features.indptr[:-1]),
            per_sample_weights=torch.from_numpy(features.data),
        )
        return F.relu(rows + self.offset)

    def _update(self, loss: Tensor) -> float:
        optimizers = (self.bag_optimizer, self.offset_optimizer, self.optimizer)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return float(loss.detach())


class Dense(_Torch):
    """torch's full softmax: all logits, fused Adam; products in bfloat16 or float32."""

    def __init__(self, problem: Problem, train: SparseDataset, storage: str) -> None:
        super().__init__(problem, train)
        self.head = nn.Linear(HIDDEN, train.num_labels)
        self.reduced = storage == "bf16"
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=self.lr, fused=True)

    def step(self, batch: SparseBatch) -> float:
        hidden = self.hidden(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.reduced):
            logits = self.head(hidden)
        labels = torch.from_numpy(batch.labels)
        real = labels >= 0
        # One pass over the logits forward and one backward, which cross_entropy does not manage.
        wanted = (logits.gather(1, labels.clamp(min=0)).float() * real).sum(1) / real.sum(1)
        loss = (logits.logsumexp(1).float() - wanted).mean()
        return self._update(loss)

    def output(self) -> tuple[Tensor, Tensor]:
        return self.head.weight.detach(), self.head.bias.detach()


class Sampled(_Torch):
    """torch's sampled softmax: shared uniform negatives, logQ correction, lazy Adam."""

    def __init__(self, problem: Problem, train: SparseDataset, negatives: int) -> None:
        super().__init__(problem, train)
        self.negatives, self.labels = negatives, train.num_labels
        linear = nn.Linear(HIDDEN, train.num_labels)
        self.weight = nn.Embedding(train.num_labels, HIDDEN, sparse=True)
        self.bias = nn.Embedding(train.num_labels, 1, sparse=True)
        self.weight.weight.data = linear.weight.data
        self.bias.weight.data = linear.bias.data[:, None]
        self.optimizer = torch.optim.SparseAdam([self.weight.weight, self.bias.weight], lr=self.lr)

    def step(self, batch: SparseBatch) -> float:
        hidden = self.hidden(batch)
        labels = torch.from_numpy(batch.labels)
        real = labels >= 0
        drawn = torch.randint(self.labels, (self.negatives,))
        rows = torch.cat([labels.clamp(min=0).flatten(), drawn])
        weight, bias = self.weight(rows), self.bias(rows)[:, 0]
        count = labels.numel()
        own = (weight[:count].view(*labels.shape, -1) * hidden[:, None]).sum(-1)
        own = (own + bias[:count].view_as(labels)).masked_fill(~real, -torch.inf)
        shared = hidden @ weight[count:].T + bias[count:]
        shared = shared + math.log(self.labels / self.negatives)
        hits = (labels[:, :, None] == drawn).any(1)
        shared = shared.masked_fill(hits, -torch.inf)
        wanted = own.masked_fill(~real, 0).sum(1) / real.sum(1)
        loss = (torch.cat([own, shared], 1).logsumexp(1) - wanted).mean()
        return self._update(loss)

    def output(self) -> tuple[Tensor, Tensor]:
        return self.weight.weight.detach(), self.bias.weight.detach()[:, 0]


def make(kind: str, problem: Problem, train: SparseDataset, options: dict[str, Any]) -> Network:
    """Return a fresh network."""
    return {"ours": Ours, "dense": Dense, "sampled": Sampled}[kind](problem, train, **options)
