"""The settings of the server. No torch here."""

from dataclasses import dataclass

from mot.runtime.flags import check_ranges, setting


@dataclass
class ServeSettings:
    """All settings of `serve_mot.py`."""

    model: str | None = setting(None, "a directory that train_mot.py wrote, or any causal language model", group="what")
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0: all addresses of this machine", group="what")
    port: int = setting(8000, "port to listen on; 0: any free port", group="what", low=0, high=65535)
    api_key_file: str | None = setting(
        None, "file of API keys, one per line; else MOT_API_KEY; without keys the API is open", group="what"
    )
    log_prompts: bool = setting(False, "write prompts into the log", group="what")
    engine: str = setting("transformers", "transformers, in this process, or vllm, a server", group="what")
    vllm_url: str | None = setting(None, "address of the vLLM server; its key is in VLLM_API_KEY", group="what")

    max_thoughts: int = setting(64, "largest K, texts from one prompt", "texts", "limits of a request", low=1)
    max_tokens: int = setting(1024, "longest text", "tokens", "limits of a request", low=1)
    max_request_tokens: int = setting(
        16384, "largest prompts x K x max_tokens of one request", "tokens", "limits of a request", low=1
    )
    max_prompt_tokens: int | None = setting(
        None, "longest prompt; default: as long as the model's context allows", "tokens", "limits of a request", low=1
    )
    max_body_bytes: int = setting(2**20, "largest request body", "bytes", "limits of a request", low=1024)

    max_batch: int = setting(128, "most texts generated at the same time", "texts", "limits of the server", low=1)
    max_cached_tokens: int = setting(
        131072, "size of the KV cache for all running texts and their prompts", "tokens", "limits of the server", low=1
    )
    max_queue: int = setting(
        128,
        "most prompts that wait; further requests are rejected (status 429)",
        "prompts",
        "limits of the server",
        low=1,
    )
    drain_seconds: float = setting(
        30.0, "time to finish running requests after SIGTERM", "seconds", "limits of the server", low=0
    )

    def validate(self) -> None:
        """Raise ValueError with one line that names the flag, the value and the remedy."""
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
                f"--max_thoughts {self.max_thoughts}: more than --max_batch {self.max_batch}, the texts generated "
                "at the same time; lower the first or raise the second"
            )
