"""The settings of `mot serve`. Starts without torch."""

from dataclasses import dataclass

from mot.runtime.flags import check_ranges, setting


@dataclass
class ServeSettings:
    """The flags of `serve_mot.py`."""

    model: str | None = setting(None, "a directory that train_mot.py wrote, or any causal language model", group="what")
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0: all of this machine", group="what")
    port: int = setting(8000, "port to listen on; 0: any free port", group="what", low=0, high=65535)
    api_key_file: str | None = setting(
        None, "file of API keys, one per line; default: MOT_API_KEY, else the API is open", group="what"
    )
    log_prompts: bool = setting(False, "write prompts to the log", group="what")
    engine: str = setting(
        "transformers", "what computes: transformers, in this process, or vllm, a server", group="what"
    )
    vllm_url: str | None = setting(None, "address of the vLLM server; its key is in VLLM_API_KEY", group="what")

    max_thoughts: int = setting(64, "largest K, texts from one prompt", "texts", "limits of a request", low=1)
    max_tokens: int = setting(1024, "longest text", "tokens", "limits of a request", low=1)
    max_request_tokens: int = setting(
        16384, "prompts x K x max_tokens of one request", "tokens", "limits of a request", low=1
    )
    max_prompt_tokens: int | None = setting(
        None, "longest prompt; default: the model's context", "tokens", "limits of a request", low=1
    )
    max_body_bytes: int = setting(2**20, "largest body of a request", "bytes", "limits of a request", low=1024)

    max_batch: int = setting(128, "texts that are generated at the same time", "texts", "limits of the server", low=1)
    max_cached_tokens: int = setting(
        131072, "size of the KV cache for all running texts, prompts included", "tokens", "limits of the server", low=1
    )
    max_queue: int = setting(
        128, "prompts that wait; further requests get 429", "prompts", "limits of the server", low=1
    )
    drain_seconds: float = setting(
        30.0, "time to finish running requests after SIGTERM", "seconds", "limits of the server", low=0
    )

    def validate(self) -> None:
        """Raise ValueError with one line that names the flag, the value and the way out."""
        check_ranges(self)
        if self.model is None:
            raise ValueError("--model: missing; e.g. --model outputs/run")
        if self.engine not in ("transformers", "vllm"):
            raise ValueError(f"--engine {self.engine}: must be transformers or vllm")
        if self.engine == "vllm" and self.vllm_url is None:
            raise ValueError("--vllm_url: missing with --engine vllm; e.g. --vllm_url http://127.0.0.1:8001")
        if self.engine != "vllm" and self.vllm_url is not None:
            raise ValueError(f"--vllm_url {self.vllm_url}: needs --engine vllm; add that, or leave it out")
        if self.max_thoughts > self.max_batch:
            raise ValueError(
                f"--max_thoughts {self.max_thoughts}: more than --max_batch {self.max_batch}, the texts generated at "
                "the same time; lower the first or raise the second"
            )
