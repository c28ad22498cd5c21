"""Writing text with a model that is trained, or in training."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from rnn_blocks.checks import whole
from rnn_blocks.engine import State
from rnn_blocks.layers import Layer
from rnn_blocks.modules.generation import check_sampling, random_generator, sample_token, stream_tokens
from rnn_blocks.modules.output_layer import OutputLayer, word_logits
from rnn_blocks.modules.token_module import TokenModule, evaluating


class Writing(TokenModule):
    """A module that predicts the next token: what :class:`~rnn_blocks.LanguageModel` can do besides learning."""

    layer: Layer
    embedding: nn.Embedding
    output: OutputLayer

    @abstractmethod
    def hidden(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """What the output layer reads at each input."""

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor | Sequence[int],
        max_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Continue a prompt.

        The prompt runs through the layer once; from there on each token is one step of the state.

        Args:
            prompt: ids, ``(batch, time)``, or one list of ids; at least one.
            max_tokens: how many tokens are drawn.
            temperature: divides the logits; 0 takes the most probable token.
            top_k: only the k most probable tokens are drawn from.
            top_p: only the most probable tokens that together reach this probability are drawn from.
            seed: makes the draw repeatable.

        Returns:
            Prompt and continuation, ``(batch, time + max_tokens)``.

        Raises:
            ValueError: for an empty prompt, an id outside the vocabulary, or an option out of its range.
        """
        max_tokens = whole("max_tokens", max_tokens)
        prompt = torch.as_tensor(prompt, dtype=torch.int64, device=self.device)
        prompt = prompt if prompt.dim() == 2 else prompt.view(1, -1)
        stream = self.stream(prompt, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        return torch.cat([prompt, *(next(stream)[:, None] for _ in range(max_tokens))], dim=1)

    @torch.no_grad()  # as a decorator: a `with` around a yield would switch the caller's gradients off, too
    def stream(
        self,
        prompt: Tensor,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[Tensor]:
        """The tokens that :meth:`generate` would append, one by one without end, ``(batch,)`` each.

        Its arguments are those of :meth:`generate`; ``prompt`` is ``(batch, time)``.
        """
        check_sampling(temperature, top_k, top_p, seed)
        if prompt.shape[1] == 0:
            raise ValueError("the prompt is empty: give at least one token to start from")
        low, high = int(prompt.min()), int(prompt.max())
        if low < 0 or high >= self.embedding.num_embeddings:
            bad = low if low < 0 else high
            raise ValueError(f"the prompt holds token {bad}, the vocabulary has {self.embedding.num_embeddings}")
        generator = random_generator(self.device, seed)
        parts = list(self.modules())  # found once: to look for them takes as long as a small model's step

        def step(ids: Tensor, state: State) -> tuple[Tensor, State]:
            with evaluating(parts):
                hidden, state = self.layer.step(self.embedding(ids), state)
                return word_logits(self.output, hidden), state

        def draw(logits: Tensor) -> Tensor:
            return sample_token(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)

        with self.evaluating():
            hidden, state = self.hidden(prompt)
            logits = word_logits(self.output, hidden[-1])
        yield from stream_tokens(step, logits, state, draw)
