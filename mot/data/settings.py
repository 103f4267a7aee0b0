"""What data are read, and where the data sets of the guide live. No torch here."""

from dataclasses import dataclass

from mot.model.settings import MixtureSettings
from mot.runtime.flags import check_ranges, setting


@dataclass
class DataSettings(MixtureSettings):
    """The training data and what is held out of it."""

    train_file: str | None = setting(
        None, "text, or .jsonl rows with `prompt` and `completion`, or with chat `messages`", group="data"
    )
    eval_file: str | None = setting(
        None, "held-out data of the same kind; else the last 10 %% of train_file", group="data"
    )
    task: str | None = setting(
        None,
        "a built-in task with known answers instead of a file: forks, chains, circle, siblings or countdown",
        group="data",
    )
    num_workers: int = setting(0, "processes that prepare batches", group="data", low=0)


@dataclass
class TokenizerSettings(DataSettings):
    """Which tokenizer the data get."""

    vocab_size: int = setting(
        50257, "below 257: characters; else byte-level BPE trained on the file", "tokens, thoughts apart", "data", low=2
    )
    tokenizer: str | None = setting(
        None, "an existing tokenizer (path or hub id) instead of one trained on the file", group="data"
    )


DATASETS = {  # where they live today, and what stands behind each row: rows of wikitext are lines, of openwebtext documents
    "shakespeare": ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt", ""),
    "wikitext103": ("hf://datasets/Salesforce/wikitext/wikitext-103-raw-v1/train-*.parquet", "\n"),
    "openwebtext": ("hf://datasets/Skylion007/openwebtext@refs/convert/parquet/plain_text/*train/*.parquet", "\n\n"),
}


@dataclass
class DownloadSettings:
    """Everything `mot data` can be told."""

    name: str | None = setting(
        None, "shakespeare (1 MB), wikitext103 (540 MB) or openwebtext (40 GB)", group="data", positional=True
    )
    output: str | None = setting(None, "file to write; default data/NAME.txt", group="data")
    max_megabytes: float = setting(
        1000.0, "stop after so much text; inf: all of it", "MB of 10^6 bytes", "data", above=0, endless=True
    )

    def validate(self) -> None:
        check_ranges(self)
        if self.name not in DATASETS:
            given = "no NAME given" if self.name is None else f"{self.name}: unknown"
            raise ValueError(f"mot data: {given}; there is {', '.join(DATASETS)}")
        if self.output and "://" in self.output:
            raise ValueError(f"--output {self.output}: must be a local file; copy it to the bucket afterwards")
