"""Writing text: `LanguageModel.generate` against a loop over `nn.LSTM`, one step at a time.

    python tests/benchmarks/generation.py

Both have the same weights and take the most probable token; that they write the same text is checked before anything
is timed. CPU time of one thread, batch 1, the contenders interleaved, medians of `--rounds`. The output layer is a
plain `nn.Linear` in both: with a large vocabulary it is most of the work, and the ratio is smaller for that.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from machine import described
from torch import Tensor, nn

from rnn_blocks import LSTM, LanguageModel

SIZES = [(512, 1, 50), (512, 2, 50), (512, 1, 1000), (512, 1, 10000), (1024, 1, 50)]  # hidden, layers, vocabulary


class Loop(nn.Module):
    """The usual way: torch's module at T=1, its state handed from call to call."""

    def __init__(self, model: LanguageModel, lstm: nn.LSTM) -> None:
        super().__init__()
        self.embedding, self.lstm, self.output = model.embedding, lstm, model.output

    @torch.no_grad()
    def generate(self, first: int, max_tokens: int) -> list[int]:
        ids, state = [first], None
        token = torch.tensor([[first]])
        for _ in range(max_tokens):
            hidden, state = self.lstm(self.embedding(token), state)
            token = self.output(hidden[:, -1]).argmax(-1, keepdim=True)
            ids.append(int(token))
        return ids


def microseconds(write: Callable[[], object], max_tokens: int) -> float:
    """Of one token."""
    began = time.process_time()
    write()
    return 1e6 * (time.process_time() - began) / max_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(described())
    print(f"{'hidden layers vocabulary':26}{'nn.LSTM loop':>14}{'generate':>10}{'tokens/s':>10}{'ratio':>8}")
    for hidden, layers, vocabulary in SIZES:
        torch_lstm = nn.LSTM(hidden, hidden, num_layers=layers, batch_first=True)
        model = LanguageModel(LSTM.from_torch(torch_lstm), vocabulary)
        for weight in (model.embedding.weight, model.output.weight):
            nn.init.normal_(weight)  # so that the most probable token is so by far
        loop = Loop(model, torch_lstm)

        def ours(model: LanguageModel = model) -> list[int]:
            written: Tensor = model.generate([1], options.tokens, temperature=0)
            return written[0].tolist()

        def theirs(loop: Loop = loop) -> list[int]:
            return loop.generate(1, options.tokens)

        if ours() != theirs():
            raise SystemExit("the two write different texts: one of them is wrong")
        times = [
            [microseconds(theirs, options.tokens), microseconds(ours, options.tokens)] for _ in range(options.rounds)
        ]
        slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(a / b for a, b in times)
        print(
            f"{f'{hidden:6}{layers:7}{vocabulary:11}':26}{slow:11.0f} µs{fast:7.0f} µs{1e6 / fast:10.0f}{ratio:7.1f}×"
        )


if __name__ == "__main__":
    main()
