"""The text of `translation_race.py`: lowercased, cut into the same pieces for both sides.

The pieces of a line, joined and with ▁ for a space, are the line again; so BLEU needs no detokenizer.
"""

import gzip
import random
from collections.abc import Sequence
from pathlib import Path

SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]
LANGUAGES = ("en", "de")


def read_lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [" ".join(line.lower().split()) for line in file]


def joint_bpe(lines: list[str], size: int):
    """Words and punctuation apart, merges within them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation()]
    )
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def write_text(data: Path, folder: Path, size: int = 8000) -> None:
    """Write `train` and `val` in pieces, `val` as plain text, and the vocabulary without the special pieces."""
    if (folder / "vocabulary.txt").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    text = {
        (split, language): read_lines(data / f"{split}.{language}.gz")
        for split in ("train", "val")
        for language in LANGUAGES
    }
    tokenizer = joint_bpe(text["train", "en"] + text["train", "de"], size)
    for (split, language), lines in text.items():
        encoded = [" ".join(encoding.tokens) for encoding in tokenizer.encode_batch(lines)]
        (folder / f"{split}.{language}").write_text("\n".join(encoded) + "\n")
        (folder / f"{split}.plain.{language}").write_text("\n".join(lines) + "\n")
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    (folder / "vocabulary.txt").write_text("\n".join(vocabulary[len(SPECIALS) :]) + "\n")


def read_vocabulary(folder: Path) -> list[str]:
    return SPECIALS + (folder / "vocabulary.txt").read_text().splitlines()


def read_ids(folder: Path, split: str, language: str) -> list[list[int]]:
    """Ids with `<eos>` at the end: 0 to 3 are the special pieces."""
    ids = {piece: number for number, piece in enumerate(read_vocabulary(folder))}
    unknown, end = ids["<unk>"], ids["<eos>"]
    lines = (folder / f"{split}.{language}").read_text().splitlines()
    return [[ids.get(piece, unknown) for piece in line.split()] + [end] for line in lines]


def random_batches(sentences: int, batch_size: int) -> list[list[int]]:
    """Line numbers, shuffled and cut."""
    order = list(range(sentences))
    random.Random(42).shuffle(order)
    return [order[start : start + batch_size] for start in range(0, sentences, batch_size)]


def bucketed_batches(targets: Sequence[Sequence[int]], sources: Sequence[Sequence[int]], mean: int) -> list[list[int]]:
    """Line numbers of like lengths, each batch of as many padded target tokens as `mean` sentences have on average."""
    budget = mean * sum(map(len, targets)) / len(targets)
    shuffled = random.Random(42)
    order = sorted(range(len(targets)), key=lambda line: (len(targets[line]), len(sources[line]), shuffled.random()))
    batches, batch = [], []
    for line in order:  # from short to long: the last is the longest
        if (len(batch) + 1) * len(targets[line]) > budget and batch:
            batches.append(batch)
            batch = []
        batch.append(line)
    batches.append(batch)
    shuffled.shuffle(batches)
    return batches


def bleu(hypotheses: list[str], references: list[str]) -> float:
    """BLEU of lines of pieces against plain lines, 13a: sacreBLEU's, or the port of it that torchmetrics has."""
    plain = [line.replace(" ", "").replace("▁", " ").strip() for line in hypotheses]
    try:
        import sacrebleu
    except ImportError:
        from torchmetrics.functional.text import sacre_bleu_score

        return 100 * sacre_bleu_score(plain, [[line] for line in references], tokenize="13a").item()
    return sacrebleu.corpus_bleu(plain, [references]).score


def read_references(folder: Path) -> list[str]:
    return (folder / "val.plain.de").read_text().splitlines()
