"""What every route of the app sees: `request.app.state.mot`."""

import time
from dataclasses import dataclass, field

from mot.serving.engine import Engine
from mot.serving.logprobs import LogprobFormat
from mot.serving.metrics import Metrics
from mot.serving.settings import ServeSettings


@dataclass
class State:
    """`draining`: no new request starts. `active`: the number of requests that are not fully answered.

    `most_active`: beyond it, requests with a body are rejected, so that connections are left for others.
    """

    engine: Engine
    settings: ServeSettings
    metrics: Metrics
    name: str
    logprobs: LogprobFormat
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    active: int = 0
    most_active: int = 2**31
