"""The settings of the data, and the addresses of the guide's data sets. No torch here."""

from dataclasses import dataclass

from mot.model.settings import MixtureSettings
from mot.runtime.flags import check_ranges, setting

COLUMNS = ("prompt", "completion", "messages", "text", "key")
TOO_LONG = ("cut", "skip", "refuse")


@dataclass
class DataSettings(MixtureSettings):
    """The files to train on and to evaluate on."""

    train_file: str | None = setting(
        None,
        "text, or rows as .jsonl, JSON, CSV or Parquet: a file, a directory, a pattern, an address, or - for a pipe",
        group="data",
    )
    eval_file: str | None = setting(
        None, "held-out data of the same kind; default: 10 %% of train_file, of rows chosen by prompt", group="data"
    )
    columns: str | None = setting(
        None,
        "which columns of rows to read, as prompt=NAME,completion=NAME,key=NAME or messages=NAME or text=NAME",
        group="data",
    )
    as_text: bool = setting(False, "read the files as plain text, even if they look like rows", group="data")
    too_long: str = setting(
        "cut", "rows longer than seq_length: cut their completions, skip them, or refuse the file", group="data"
    )
    num_workers: int = setting(0, "processes that prepare batches", group="data", low=0, high=1024)

    def validate(self) -> None:
        super().validate()
        if self.too_long not in TOO_LONG:
            raise ValueError(f"--too_long {self.too_long}: unknown; there is {', '.join(TOO_LONG)}")
        if self.columns is not None and self.as_text:
            raise ValueError(f"--columns {self.columns}: plain text has no columns; leave it or --as_text out")
        self.column_names()

    def column_names(self) -> dict[str, str]:
        """Our names of columns and the file's: {"prompt": "question", ...}. Raises ValueError."""
        names = {}
        for pair in (self.columns or "").split(",") if self.columns is not None else []:
            ours, _, theirs = (part.strip() for part in pair.partition("="))
            if ours not in COLUMNS or not theirs or ours in names:
                raise ValueError(
                    f"--columns {self.columns}: {pair!r} is not understood; give NAME=COLUMN for each of "
                    f"{', '.join(COLUMNS)}, each once, e.g. --columns prompt=question,completion=answer"
                )
            names[ours] = theirs
        if len({"prompt" if name == "completion" else name for name in names} - {"key"}) > 1:
            raise ValueError(f"--columns {self.columns}: give prompt and completion, or messages, or text")
        return names


@dataclass
class TokenizerSettings(DataSettings):
    """The tokenizer of the data."""

    vocab_size: int = setting(
        50257,
        "below 257: one token per character; else byte-level BPE trained on the file",
        "tokens without thoughts",
        "data",
        low=2,
        high=2_000_000,  # the trainer of the tokenizer reserves 71 bytes for each entry asked for
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
