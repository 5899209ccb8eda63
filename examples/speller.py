"""The network, the training loop and the data of the quickstart: misspelled words in, words out."""

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn

import qcompile
from qcompile.data.codespell import FEATURES, Codespell
from qcompile.data.metrics import precision_at_k

BATCH = 256
console = Console(highlight=False)


class Speller(nn.Module):
    """Character n-grams [batch, n] to the scores of all corrections [batch, corrections]."""

    def __init__(self, corrections: int, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(FEATURES, width, padding_idx=0, sparse=True)
        self.hidden = nn.Linear(width, width)
        self.activation: nn.Module = nn.ReLU()
        self.output = nn.Linear(width, corrections)
        with torch.no_grad():  # a word is a sum of some twenty n-grams: begin small
            self.embedding.weight.mul_(0.1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(ids).sum(dim=1)
        return self.output(self.activation(self.hidden(embedded)))


def full_softmax(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over every output; the labels of an example share its mass."""
    real = labels >= 0
    chosen = (scores.gather(1, labels.clamp(min=0)) * real).sum(dim=1) / real.sum(dim=1)
    return (scores.logsumexp(dim=1) - chosen).mean()


def train(name: str, model: nn.Module, data: Codespell, epochs: int, sparse: bool) -> None:
    """Train in an ordinary torch loop and print P@1 and P@5 after every epoch."""
    optimizer = qcompile.optim.Adam(model.parameters(), lr=4e-3)
    train_ids, train_labels = torch.from_numpy(data.train_ids), torch.from_numpy(data.train_labels)
    steps = epochs * -(-len(train_ids) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    lengths = (train_ids != 0).sum(dim=1)
    for epoch in range(1, epochs + 1):
        model.train()
        batches = torch.randperm(len(train_ids)).split(BATCH)
        for batch in track(
            batches, f"{name}, epoch {epoch}", console=console, disable=not console.is_terminal
        ):
            ids, labels = train_ids[batch, : int(lengths[batch].max())], train_labels[batch]
            loss = model(ids, target=labels).loss if sparse else full_softmax(model(ids), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        p1, p5 = evaluate(model, data)
        console.print(f"{name}, epoch {epoch}: P@1 {p1:.3f}, P@5 {p5:.3f}")


@torch.no_grad()
def evaluate(model: nn.Module, data: Codespell) -> tuple[float, float]:
    """Return P@1 and P@5 over the test words, every output scored."""
    model.eval()
    parts = torch.from_numpy(data.test_ids).split(1000)
    best = np.concatenate([model(ids).topk(5).indices.numpy() for ids in parts])
    return precision_at_k(best, data.test_labels, 1), precision_at_k(best, data.test_labels, 5)
