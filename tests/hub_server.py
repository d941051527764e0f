"""A Hugging Face Hub on loopback: what `huggingface_hub` asks of one to download files, and its errors."""

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"


@dataclass
class Repo:
    """A repository: files by path, at one commit that every revision in `revisions` names."""

    files: dict
    revisions: tuple = ("main",)
    gated: bool = False
    commit: str = COMMIT
    earlier: dict = field(default_factory=dict)
    """Commit -> the files that it had, before the revisions moved on."""

    def move(self, commit, files):
        """Let the revisions name another commit."""
        self.earlier[self.commit] = self.files
        self.commit, self.files = commit, files


@dataclass
class Hub:
    """What the server holds, what it was asked, and how it breaks."""

    repos: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)
    tokens: list = field(default_factory=list)
    sent: dict = field(default_factory=dict)
    """File -> bytes that are sent for it, instead of those that were announced."""
    truncated: bool = False
    """Send half of every large file, then close the connection."""
    status: int | None = None
    """Answer everything with this status."""
    after: Any = None
    """Function of a request's command and path that is called after its answer."""
    address: str = ""


def etag(path, content):
    """The hub's: SHA-256 of large files, Git's digest of the others."""
    if path.endswith("config.json"):
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def serve():
    """A running hub, which ends with the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.respond(body=False)

        def do_GET(self):
            self.respond(body=True)

        def respond(self, body):
            self.answer(body)
            if hub.after is not None:
                hub.after(self.command, self.path)

        def send(self, status, headers=(), content=b"", body=True):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
                self.send_header(name, value)
            self.end_headers()
            if body and self.command == "GET":
                self.wfile.write(content)

        def fail(self, status, code):
            self.send(status, {"X-Error-Code": code, "X-Error-Message": code})

        def answer(self, body):
            hub.requests.append((self.command, self.path))
            hub.tokens.append(self.headers.get("Authorization"))
            parts = self.path.split("?")[0].strip("/").split("/")
            if hub.status:
                return self.send(hub.status)
            if parts[0] == "cdn":
                return self.content("/".join(parts[1:3]), parts[3], "/".join(parts[4:]))
            is_api = parts[:2] == ["api", "models"]
            name = "/".join(parts[2:4] if is_api else parts[:2])
            repo = hub.repos.get(name)
            if repo is None:
                return self.fail(401 if is_api else 404, "RepoNotFound")
            if repo.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.fail(403, "GatedRepo")
            if is_api:
                files = [{"rfilename": path} for path in repo.files]
                info = {"id": name, "sha": repo.commit, "siblings": files, "tags": []}
                return self.send(
                    200, {"Content-Type": "application/json"}, json.dumps(info).encode()
                )
            revision, path = parts[3], "/".join(parts[4:])
            if revision not in (*repo.revisions, repo.commit, *repo.earlier):
                return self.fail(404, "RevisionNotFound")
            commit = revision if revision in repo.earlier else repo.commit
            files = repo.earlier.get(commit, repo.files)
            if path not in files:
                return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            content, headers = files[path], {"X-Repo-Commit": commit}
            if path.endswith("config.json"):
                headers["ETag"] = f'"{etag(path, content)}"'
                return self.send(200, headers, content)
            # Large files are on another host, as on the hub.
            headers |= {"X-Linked-ETag": f'"{etag(path, content)}"'}
            headers |= {"X-Linked-Size": str(len(content))}
            headers |= {
                "Location": f"http://localhost:{server.server_port}/cdn/{name}/{commit}/{path}"
            }
            return self.send(302, headers)

        def content(self, name, commit, path):
            repo = hub.repos[name]
            content = hub.sent.get(path) or repo.earlier.get(commit, repo.files)[path]
            if not hub.truncated:
                return self.send(200, {}, content)
            self.close_connection = True
            if "Range" not in self.headers:
                self.send(200, {"Content-Length": str(len(content))}, b"", body=False)
                self.wfile.write(content[: len(content) // 2])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def environment(hub, folder, monkeypatch):
    """`huggingface_hub` asks `hub` alone, and stores in `folder`."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    disable_progress_bars()
    try:
        yield hub
    finally:
        huggingface_hub.close_session()
        enable_progress_bars()
