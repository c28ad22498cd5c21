"""A table of ratings of low rank, by embeddings that start small."""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adagrad, Adam, Optimizer, SparseAdam

from trainings.training import Batch, Supervised

USERS, ITEMS, RANK = 400, 300, 8


class Ratings(Supervised):
    """Embeddings of N(0, 0.01) for a table of rank 8 with noise of 0.3, a third of whose entries are seen, Adam."""

    short, rates = 600, (0.001, 0.01, 0.05, 0.25)
    thresholds = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    trivial_loss = 1.3
    sparse = False

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        truth = torch.Generator().manual_seed(-1)
        users, items = (torch.randn(n, RANK, generator=truth) for n in (USERS, ITEMS))
        self.table = users @ items.T / RANK**0.5 + 0.3 * torch.randn(USERS, ITEMS, generator=truth)
        order = torch.randperm(USERS * ITEMS, generator=truth)
        self.seen, self.unseen = order[: USERS * ITEMS // 3], order[-10_000:]
        self.users, self.items = (nn.Embedding(n, 16, sparse=self.sparse) for n in (USERS, ITEMS))
        for embedding in (self.users, self.items):
            nn.init.normal_(embedding.weight, std=0.01)

    def batch(self) -> Batch:
        return (self.seen[torch.randint(len(self.seen), (1024,), generator=self.generator)],)

    def held_out(self) -> list[Batch]:
        return [(self.unseen,)]

    def loss(self, batch: Batch) -> Tensor:
        users, items = batch[0] // ITEMS, batch[0] % ITEMS
        return mse_loss((self.users(users) * self.items(items)).sum(1), self.table[users, items])

    def make_optimizer(self) -> Optimizer:
        return Adam(self.parameters(), lr=self.rate)


class RatingsSparseAdam(Ratings):
    """The same with sparse gradients, SparseAdam."""

    sparse = True

    def make_optimizer(self) -> Optimizer:
        return SparseAdam(self.parameters(), lr=self.rate)


class RatingsAdagrad(Ratings):
    """The same, Adagrad."""

    rates = (0.02, 0.1, 0.5, 2.0)

    def make_optimizer(self) -> Optimizer:
        return Adagrad(self.parameters(), lr=self.rate)


class RatingsSGD(Ratings):
    """The same, plain SGD."""

    rates, chosen_on = (3.0, 12.0, 50.0, 200.0), True

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)
