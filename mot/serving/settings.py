"""What the server is told. No torch here."""

from dataclasses import dataclass

from mot.runtime.flags import check_ranges, setting


@dataclass
class ServeSettings:
    """Everything `serve_mot.py` can be told."""

    model: str | None = setting(None, "a directory that train_mot.py wrote, or any causal language model", group="what")
    host: str = setting("127.0.0.1", "address to listen at; 0.0.0.0: every one of this machine", group="what")
    port: int = setting(8000, "port to listen at; 0: any that is free", group="what", low=0, high=65535)
    api_key_file: str | None = setting(
        None, "keys that open the API, one a line; else MOT_API_KEY; without any it is open", group="what"
    )
    log_prompts: bool = setting(False, "write the prompts into the log, too", group="what")
    engine: str = setting("transformers", "what computes: transformers, here, or a vllm server", group="what")
    vllm_url: str | None = setting(None, "where that vLLM is; its key is in VLLM_API_KEY", group="what")

    max_thoughts: int = setting(64, "K: most texts from one prompt", "texts", "limits of a request", low=1)
    max_tokens: int = setting(1024, "longest text", "tokens", "limits of a request", low=1)
    max_request_tokens: int = setting(
        16384, "prompts x K x max_tokens of one request", "tokens", "limits of a request", low=1
    )
    max_prompt_tokens: int | None = setting(
        None, "longest prompt; default: what the model's context has room for", "tokens", "limits of a request", low=1
    )
    max_body_bytes: int = setting(2**20, "largest body of a request", "bytes", "limits of a request", low=1024)

    max_batch: int = setting(128, "texts that are generated at the same time", "texts", "limits of the server", low=1)
    max_cached_tokens: int = setting(
        131072, "room in the KV cache for all running texts, prompts included", "tokens", "limits of the server", low=1
    )
    max_queue: int = setting(
        128, "prompts that wait; beyond them a request is told to come back", "prompts", "limits of the server", low=1
    )
    drain_seconds: float = setting(
        30.0, "time to finish what runs after SIGTERM", "seconds", "limits of the server", low=0
    )

    def validate(self) -> None:
        """Raise ValueError with one line that names the flag, the value and the way out."""
        check_ranges(self)
        if self.model is None:
            raise ValueError("--model: missing; e.g. --model outputs/run")
        if self.engine not in ("transformers", "vllm"):
            raise ValueError(f"--engine {self.engine}: there are transformers and vllm")
        if self.engine == "vllm" and self.vllm_url is None:
            raise ValueError("--vllm_url: missing with --engine vllm; e.g. --vllm_url http://127.0.0.1:8001")
        if self.engine != "vllm" and self.vllm_url is not None:
            raise ValueError(f"--vllm_url {self.vllm_url}: goes with --engine vllm; add that, or leave it out")
        if self.max_thoughts > self.max_batch:
            raise ValueError(
                f"--max_thoughts {self.max_thoughts}: more than --max_batch {self.max_batch}, the texts that are generated at the "
                "same time; lower the first or raise the second"
            )
