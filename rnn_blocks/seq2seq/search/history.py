"""What a search chose at each step, kept as pointers back and read once at its end."""

import torch
from torch import Tensor

from rnn_blocks.seq2seq.search.step import Hypothesis


class History:
    """The tree of all candidates that were ever chosen.

    A step's candidates are told by the hypothesis that each came from and by its token; the hypotheses of the next step
    by the candidates that they are. Nothing is copied when hypotheses are reordered.

    Args:
        batch: how many sentences the search began with.
        eos: the id that ends a hypothesis.
    """

    def __init__(self, batch: int, eos: int) -> None:
        self.batch, self.eos = batch, eos
        self.sentences = list(range(batch))  # of the search that are still in the batch
        self._owners: list[Tensor] = []  # per step, (candidates,): the sentence of each
        self._rows: list[Tensor] = []  # (candidates,): the hypothesis that it continues
        self._tokens: list[Tensor] = []
        self._log_probs: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._picked: list[Tensor] = []  # (hypotheses of the next step,): the candidate that each is
        self._attention: list[Tensor] = []  # (hypotheses, source)

    def record(
        self, rows: Tensor, tokens: Tensor, log_probs: Tensor, scores: Tensor, attention: Tensor | None = None
    ) -> None:
        """Keep a step.

        Args:
            rows: place of the hypothesis continued in the flattened batch and beam of the step, ``(batch, …)``.
            tokens: chosen, of the same shape.
            log_probs: of the whole hypothesis.
            scores: where it ends with this token, else minus infinity.
            attention: ``(batch, beam, source)``, if it is wanted at the end.
        """
        owners = torch.tensor(self.sentences, device="cpu").repeat_interleave(rows.numel() // len(rows))
        self._owners.append(owners)
        self._rows.append(rows.flatten())
        self._tokens.append(tokens.flatten())
        self._log_probs.append(log_probs.flatten())
        self._scores.append(scores.flatten())
        if attention is not None:
            self._attention.append(attention.flatten(0, 1))

    def go_on(self, picked: Tensor, sentences: list[int]) -> None:
        """Keep which candidates are the next step's hypotheses, ``(batch, beam)``, and whose."""
        self._picked.append(picked.flatten())
        self.sentences = sentences

    def hypotheses(
        self, n_best: int, *, distinct: bool = False, source_lengths: Tensor | None = None
    ) -> list[list[Hypothesis]]:
        """The best of each sentence, finished ones first, then by score.

        Args:
            n_best: the most for a sentence.
            distinct: whether one with the tokens of a better one is left out.
            source_lengths: where each attention map is cut, ``(batch,)``.
        """
        if not self._rows:
            return [[] for _ in range(self.batch)]
        parents, rows = self._parents()
        tokens: list[int] = torch.cat(self._tokens).tolist()
        scores: list[float] = torch.cat(self._scores).tolist()
        log_probs: list[float] = torch.cat(self._log_probs).tolist()
        owners: list[int] = torch.cat(self._owners).tolist()
        ended: list[list[tuple[bool, float, int]]] = [[] for _ in range(self.batch)]
        for node, score in enumerate(scores):
            if score != -torch.inf:
                ended[owners[node]].append((tokens[node] != self.eos, -score, node))
        found: list[list[Hypothesis]] = []
        paths: list[list[int]] = []
        for sentence in ended:
            kept: dict[tuple[int, ...], Hypothesis] = {}
            for unfinished, negative, node in sorted(sentence):
                path = _path(parents, node)
                spelled = [tokens[place] for place in path]
                key = tuple(spelled) if distinct else (len(kept),)
                if key in kept:
                    continue
                words = spelled if unfinished else spelled[:-1]
                kept[key] = Hypothesis(words, -negative, log_probs[node], not unfinished, None)
                paths.append(path)
                if len(kept) == n_best:
                    break
            found.append(list(kept.values()))
        if self._attention:
            maps = self._maps([rows[node] for path in paths for node in path])
            lengths = None if source_lengths is None else source_lengths.tolist()
            found = _with_attention(found, maps, [len(path) for path in paths], lengths)
        return found

    def _parents(self) -> tuple[list[int], list[int]]:
        """The candidate before each, -1 at the first step; and the row of each among those of all steps' attention."""
        sizes = [len(rows) for rows in self._rows]
        all_rows = torch.cat(self._rows).cpu().split(sizes)
        live = torch.cat(self._picked).cpu().split([len(picked) for picked in self._picked]) if self._picked else ()
        parents, places = [torch.full_like(all_rows[0], -1)], [all_rows[0]]
        offset = 0  # of the step before among all candidates
        widths = [len(attention) for attention in self._attention]
        for step, (rows, picked) in enumerate(zip(all_rows[1:], live, strict=True), start=1):
            parents.append(offset + picked[rows])
            places.append(rows + sum(widths[:step]))
            offset += sizes[step - 1]
        parent_list: list[int] = torch.cat(parents).tolist()
        place_list: list[int] = torch.cat(places).tolist()
        return parent_list, place_list

    def _maps(self, places: list[int]) -> Tensor:
        """The attention of ``places``, on the CPU."""
        attention = torch.cat(self._attention)
        return attention.index_select(0, torch.tensor(places, dtype=torch.long, device=attention.device)).cpu()


def _path(parents: list[int], node: int) -> list[int]:
    """The candidates from the first step to ``node``."""
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


def _with_attention(
    found: list[list[Hypothesis]], maps: Tensor, targets: list[int], sources: list[int] | None
) -> list[list[Hypothesis]]:
    each = iter(maps.split(targets))
    return [
        [
            hypothesis._replace(attention=next(each)[:, : None if sources is None else sources[sentence]])
            for hypothesis in hypotheses
        ]
        for sentence, hypotheses in enumerate(found)
    ]
