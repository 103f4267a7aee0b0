"""An http server and a bucket for tests of remote paths.

with web_server(tmp_path / "web") as web: ...     web.url, web.root, web.asked, web.status, web.broken, web.hold
put("run/a.json", b"{}")                          into the emulated bucket
"""

import functools
import http.server
import threading
import time
from contextlib import contextmanager
from pathlib import Path

BUCKET = "gs://bucket"


@contextmanager
def web_server(root: Path):
    """An http server of a folder `root`. `broken`: bytes after which bodies are cut. `status`: the only answer."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            super().do_GET()

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(server.status)

        def send_head(self):
            if server.status:
                return self.send_error(server.status)
            return super().send_head()

        def copyfile(self, source, target):
            target.write(source.read(server.broken))
            target.flush()
            server.sent.set()
            if server.hold:
                time.sleep(server.hold)

        def log_message(self, *_):
            pass

    root.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(root)))
    server.daemon_threads = True
    server.asked, server.status, server.broken, server.hold, server.sent = [], 0, -1, 0, threading.Event()
    server.root, server.url = root, f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def put(name: str, data: bytes) -> None:
    import fsspec

    with fsspec.open(f"{BUCKET}/{name}", "wb") as file:
        file.write(data)


def leftovers(directory: Path) -> list[Path]:
    return [p for p in directory.rglob("*") if p.is_file()] if directory.exists() else []
