"""The settings of the data, and the addresses of the guide's data sets. No torch here."""

from dataclasses import dataclass

from mot.model.settings import MixtureSettings
from mot.runtime.flags import check_ranges, setting


@dataclass
class DataSettings(MixtureSettings):
    """The files to train on and to evaluate on."""

    train_file: str | None = setting(
        None, "plain text, or .jsonl rows with `prompt` and `completion` or with chat `messages`", group="data"
    )
    eval_file: str | None = setting(
        None, "held-out data of the same kind; default: the last 10 %% of train_file", group="data"
    )
    num_workers: int = setting(0, "processes that prepare batches", group="data", low=0)


@dataclass
class TokenizerSettings(DataSettings):
    """The tokenizer of the data."""

    vocab_size: int = setting(
        50257,
        "below 257: one token per character; else byte-level BPE trained on the file",
        "tokens without thoughts",
        "data",
        low=2,
    )
    tokenizer: str | None = setting(
        None, "an existing tokenizer (path or hub id) instead of training one on the file", group="data"
    )


DATASETS = {  # (address, what follows each row): a row of wikitext is a line, a row of openwebtext a document
    "shakespeare": ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt", ""),
    "wikitext103": ("hf://datasets/Salesforce/wikitext/wikitext-103-raw-v1/train-*.parquet", "\n"),
    "openwebtext": ("hf://datasets/Skylion007/openwebtext@refs/convert/parquet/plain_text/*train/*.parquet", "\n\n"),
}


@dataclass
class DownloadSettings:
    """All settings of `mot data`."""

    name: str | None = setting(
        None, "shakespeare (1 MB), wikitext103 (540 MB) or openwebtext (40 GB)", group="data", positional=True
    )
    output: str | None = setting(None, "file to write; default data/NAME.txt", group="data")
    max_megabytes: float = setting(
        1000.0, "most text to write; inf: all of it", "MB of 10^6 bytes", "data", above=0, endless=True
    )

    def validate(self) -> None:
        check_ranges(self)
        if self.name not in DATASETS:
            given = "no NAME given" if self.name is None else f"{self.name}: unknown"
            raise ValueError(f"mot data: {given}; there is {', '.join(DATASETS)}")
        if self.output and "://" in self.output:
            raise ValueError(f"--output {self.output}: must be a local file; copy it to the bucket afterwards")
