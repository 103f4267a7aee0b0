"""Tokenizers with thought tokens: characters, byte-level BPE, or one that exists already.

tokenizer = build_tokenizer(text, vocab_size=100, num_thoughts=8)     # characters, because 100 < 257
thought_ids(tokenizer, 8)                                             # [66, 67, ...]
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

END, PAD, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|unknown|>"
SMALLEST_BPE = 257  # 256 bytes and one merge: a smaller vocabulary can only mean characters


def thought_token(k: int) -> str:
    return f"<|thought_{k}|>"


def build_tokenizer(texts: Iterable[str], vocab_size: int, num_thoughts: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer: one token per character below a `vocab_size` of 257, else byte-level BPE of at most that size.

    End, padding and the `num_thoughts` thought tokens come on top of `vocab_size`. Raises ValueError if the text has
    more distinct characters than `vocab_size` below 257.
    """
    if vocab_size < SMALLEST_BPE:
        characters = sorted(set().union(*texts))
        if len(characters) > vocab_size:
            raise ValueError(
                f"--vocab_size {vocab_size}: the text has {len(characters)} distinct characters; "
                f"give --vocab_size {len(characters)} or more, or {SMALLEST_BPE} or more for byte-level BPE"
            )
        engine = Tokenizer(models.WordLevel({c: i for i, c in enumerate([*characters, UNKNOWN])}, unk_token=UNKNOWN))
        engine.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        engine.decoder = decoders.Fuse()
    else:
        engine = Tokenizer(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        engine.train_from_iterator(
            texts,
            trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, show_progress=False),
        )
    unknown = {"unk_token": UNKNOWN} if vocab_size < SMALLEST_BPE else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=engine,
        eos_token=END,
        bos_token=END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **unknown,
    )
    return add_thoughts(tokenizer, num_thoughts)


def load_tokenizer(name: str, num_thoughts: int) -> PreTrainedTokenizerBase:
    """A tokenizer by path or hub id, with padding and thought tokens added. Raises ValueError where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as e:
        raise ValueError(
            f"--tokenizer {name}: cannot be loaded ({' '.join(str(e).split())[:120]}); give a directory or a hub id"
        ) from None
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": END})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.padding_side = "left"
    return add_thoughts(tokenizer, num_thoughts)


def add_thoughts(tokenizer: PreTrainedTokenizerBase, num_thoughts: int) -> PreTrainedTokenizerBase:
    """Add the thought tokens; none for one thought, which is a plain language model."""
    if num_thoughts > 1:
        names = [thought_token(k) for k in range(num_thoughts)]
        tokenizer.add_special_tokens({"additional_special_tokens": names})
    return tokenizer


def thought_ids(tokenizer: PreTrainedTokenizerBase, num_thoughts: int) -> list[int]:
    """Token ids of the N thoughts; empty for N = 1."""
    return [] if num_thoughts == 1 else tokenizer.convert_tokens_to_ids([thought_token(k) for k in range(num_thoughts)])


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], where: str) -> list[list[int]]:
    """Texts as they are, to ids: special tokens spelt out in a text stay text.

    Raises ValueError naming `where` if a text has a character that a character tokenizer does not know.
    """
    if not texts:
        return []
    known = tokenizer.get_vocab() if tokenizer.unk_token == UNKNOWN else None
    rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    for text, ids in zip(texts, rows, strict=True):
        if known is not None and tokenizer.unk_token_id in ids:
            character = next(c for c in text if c not in known)
            raise ValueError(f"{where}: has the character {character!r}, which the model has never seen; leave it out")
    return rows
