"""A Hub on this machine: the part of the Hub's HTTP protocol that pushing, listing and loading repositories needs.

The real clients (`huggingface_hub`, `diffusers`, `datasets`) talk to it. [`HubServer.fail`] makes it answer requests
with an error, and [`HubServer.cut`] makes it hang up in the middle of one.
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_SUFFIXES = (".safetensors", ".parquet", ".png")
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0", "other", "unknown"}
PAGE = 1000  # entries of a tree listing


@dataclass
class Commit:
    """A state of a repository: content of each file, and which of them are in large file storage."""

    oid: str
    title: str
    description: str
    files: dict[str, bytes]
    lfs: set[str]


@dataclass
class Repo:
    """A model or data set repository; its last commit is `main`."""

    private: bool
    commits: list[Commit] = field(default_factory=list)
    pull_requests: list[Commit] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1].files

    def commit(self, title: str, description: str, files: dict[str, bytes], lfs: set[str]) -> Commit:
        state = repr((len(self.commits), title, sorted((path, _sha256(data)) for path, data in files.items())))
        self.commits.append(Commit(hashlib.sha1(state.encode()).hexdigest(), title, description, files, lfs))
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        if revision in ("main", "HEAD"):
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.oid == revision), None)


@dataclass
class Fault:
    """A fault that happens to the next `times` requests whose line matches."""

    pattern: re.Pattern
    status: int | None  # None hangs up
    message: str
    times: int
    after_bytes: int = 0
    code: str | None = None


class HubServer:
    """A running Hub; use it as a context manager.

    Attributes:
        url: Its address, for `HF_ENDPOINT`.
        repos: The repositories by type (`"model"` or `"dataset"`) and id.
        tokens: The owner of each token, and whether the token may write.
        requests: The request lines so far.
        chunk_size: Larger objects are uploaded in parts of this many bytes; None for no parts.
    """

    def __init__(self):
        self.tokens = {"hf_writes": ("alice", True), "hf_reads": ("alice", False), "hf_bobs": ("bob", True)}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.chunk_size: int | None = None
        self.faults: list[Fault] = []
        self.requests: deque[str] = deque()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self
        self.lock = threading.RLock()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another host name, as the Hub's storage has: clients follow it only for content, and without their token.
        self.storage_url = f"http://localhost:{self._server.server_port}/lfs-storage"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def fail(self, pattern: str, status: int, message: str = "", times: int = 1, code: str | None = None) -> None:
        """Answer the next `times` requests whose line matches `pattern` with `status`, and the Hub's `code` for it."""
        self.faults.append(Fault(re.compile(pattern), status, message or f"Fault {status}", times, code=code))

    def cut(self, pattern: str, after_bytes: int, times: int = 1) -> None:
        """Read `after_bytes` of the body of the next `times` requests that match `pattern`, and hang up."""
        self.faults.append(Fault(re.compile(pattern), None, "", times, after_bytes))

    def environment(self, cache: Path, **variables: str) -> dict[str, str]:
        """The environment of a process that knows this Hub alone, and has no token unless one is given."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **variables,
        }

    def files(self, repo_id: str, repo_type: str = "model") -> dict[str, bytes]:
        """The files on the branch `main`."""
        return self.repos[repo_type, repo_id].files

    def commits(self, repo_id: str, repo_type: str = "model") -> list[Commit]:
        """The history, without the commit that creates the repository."""
        return self.repos[repo_type, repo_id].commits[1:]

    def edit(self, repo_id: str, path: str, content: bytes, repo_type: str = "model") -> None:
        """Change a file, as a person does on the website."""
        repo = self.repos[repo_type, repo_id]
        repo.commit(f"Update {path}", "", {**repo.files, path: content}, repo.commits[-1].lfs - {path})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._serve()

    def do_HEAD(self):
        self._serve()

    def do_POST(self):
        self._serve()

    def do_PUT(self):
        self._serve()

    # From a request line to a route

    def _serve(self):
        hub: HubServer = self.server.hub
        self.hub = hub
        hub.requests.append(f"{self.command} {self.path}")
        with hub.lock:
            fault = next((f for f in hub.faults if f.times and f.pattern.search(f"{self.command} {self.path}")), None)
            if fault:
                fault.times -= 1
        if fault and fault.status is None:
            self._read_body(limit=fault.after_bytes)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.body = self._read_body()
        if fault:
            self._error(fault.status, fault.message, fault.code)
            return
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        with hub.lock:
            for method, pattern, route in ROUTES:
                match = re.fullmatch(pattern, address.path)
                if match and self.command in method:
                    route(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
                    return
        self._error(404, f"There is no {self.command} {address.path}")

    def _read_body(self, limit: int | None = None) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
                if limit is not None and len(body) >= limit:
                    return body[:limit]
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length if limit is None else min(limit, length))

    # Answers

    def _answer(self, status: int, content: bytes = b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content, status: int = 200, **headers):
        self._answer(status, json.dumps(content).encode(), Content_Type="application/json", **headers)

    def _error(self, status: int, message: str, code: str | None = None, **headers):
        if code:
            headers["X_Error_Code"] = code
        self._json({"error": message}, status, X_Error_Message=message, **headers)

    # Who asks, and for what

    def _user(self) -> tuple[str | None, bool]:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return self.hub.tokens.get(token, (None, False))

    def _find(self, kind: str, repo_id: str, write: bool = False) -> Repo | None:
        """The repository, or None when the request has been answered with an error."""
        user, may_write = self._user()
        if self.headers.get("Authorization") and user is None:
            self._error(401, "Invalid credentials in Authorization header")
            return None
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and user != repo_id.split("/")[0]):
            self._error(404 if user else 401, "Repository not found", "RepoNotFound")
            return None
        if write and not (may_write and user == repo_id.split("/")[0]):
            self._error(403, f"You don't have the rights to write to {repo_id}")
            return None
        return repo

    def _find_commit(self, kind: str, repo_id: str, revision: str) -> tuple[Repo, Commit] | None:
        repo = self._find(kind, repo_id)
        commit = repo and repo.at(revision or "main")
        if repo and commit is None:
            self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return (repo, commit) if commit else None

    # Routes

    def whoami(self):
        user, may_write = self._user()
        if user is None:
            self._error(401, "Invalid credentials in Authorization header")
            return
        role = {"accessToken": {"displayName": "test", "role": "write" if may_write else "read"}}
        self._json({"type": "user", "name": user, "fullname": user, "orgs": [], "auth": role})

    def create(self):
        user, may_write = self._user()
        request = json.loads(self.body)
        kind = request.get("type") or "model"
        owner = request.get("organization") or user
        repo_id = f"{owner}/{request['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        if user is None:
            self._error(401, "Invalid username or password.")
        elif not may_write or owner != user:
            self._error(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        elif (kind, repo_id) in self.hub.repos:
            self._json({"error": f"You already created this {kind} repo", "url": url}, 409)
        else:
            repo = Repo(private=request.get("visibility") == "private" or bool(request.get("private")))
            repo.commit("initial commit", "", {".gitattributes": b"*.safetensors filter=lfs\n"}, set())
            self.hub.repos[kind, repo_id] = repo
            self._json({"url": url, "name": repo_id, "id": "0" * 24})

    def validate_yaml(self):
        errors = _metadata_errors(json.loads(self.body)["content"])
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, kind, repo_id, revision):
        repo = self._find(kind, repo_id, write=True)
        if repo is None:
            return
        answer = []
        asked = json.loads(self.body)
        folders = tuple(line for line in asked.get("gitIgnore", "").splitlines() if line.endswith("/"))
        for file in asked["files"]:
            path = file["path"]
            known = repo.files.get(path)
            lfs = path.endswith(LFS_SUFFIXES)
            oid = None if known is None else _sha256(known) if path in repo.commits[-1].lfs else _git_oid(known)
            mode = "lfs" if lfs else "regular"
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": path.startswith(folders), "oid": oid})
        self._json({"files": answer})

    def lfs_batch(self, kind, repo_id):
        if self._find(kind, repo_id, write=True) is None:
            return
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = self._upload(wanted["oid"], wanted["size"])
            verify = {"href": f"{self.hub.url}/lfs-verify"}
            known = wanted["oid"] in self.hub.objects
            objects.append(wanted if known else {**wanted, "actions": {"upload": upload, "verify": verify}})
        self._json({"transfer": "basic", "objects": objects})

    def _upload(self, oid, size):
        """Where to upload an object to: in one piece, or in parts of `chunk_size` and a request that joins them."""
        url = f"{self.hub.storage_url}/{oid}"
        chunk = self.hub.chunk_size
        if chunk is None or size <= chunk:
            return {"href": url}
        parts = {str(part): f"{url}/{part}" for part in range(1, -(-size // chunk) + 1)}
        return {"href": f"{self.hub.url}/lfs-join", "header": {"chunk_size": str(chunk), **parts}}

    def lfs_put_part(self, oid, part):
        self.hub.parts[oid, int(part)] = self.body
        self._answer(200, ETag=f'"{_sha256(self.body)}"')

    def lfs_join(self):
        asked = json.loads(self.body)
        parts = [self.hub.parts[asked["oid"], part["partNumber"]] for part in asked["parts"]]
        etags = [f'"{_sha256(part)}"' for part in parts]
        whole = b"".join(parts)
        if etags != [part["etag"] for part in asked["parts"]] or _sha256(whole) != asked["oid"]:
            self._error(400, "The parts are not what was announced")
            return
        self.hub.objects[asked["oid"]] = whole
        self._json({})

    def lfs_put(self, oid):
        if _sha256(self.body) != oid:
            self._error(400, "The content is not what was announced")
            return
        self.hub.objects[oid] = self.body
        self._answer(200, ETag=f'"{oid}"')

    def lfs_get(self, oid):
        if oid not in self.hub.objects:
            self._error(404, "No such object")
            return
        self._answer(200, self.hub.objects[oid], ETag=f'"{oid}"')

    def lfs_verify(self):
        asked = json.loads(self.body)
        stored = self.hub.objects.get(asked["oid"])
        if stored is None or len(stored) != asked["size"]:
            self._error(404, "The object has not been uploaded")
            return
        self._json({})

    def commit(self, kind, repo_id, revision):
        repo = self._find(kind, repo_id, write=True)
        if repo is None:
            return
        header, files, lfs = None, dict(repo.files), set(repo.commits[-1].lfs)
        for line in self.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                header = value
                continue
            path = value["path"]
            if key == "file":
                files[path] = base64.b64decode(value["content"])
                lfs.discard(path)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    self._error(400, f"The LFS object of {path} has not been uploaded")
                    return
                files[path] = self.hub.objects[value["oid"]]
                lfs.add(path)
            elif key == "deletedFile":
                if path not in files:
                    self._error(404, "A file with this name doesn't exist", "EntryNotFound")
                    return
                del files[path]
                lfs.discard(path)
            else:
                self._error(400, f"Unknown operation {key}")
                return
        if header.get("parentCommit", repo.commits[-1].oid) != repo.commits[-1].oid:
            self._error(412, "A commit has happened since. Please refresh and try again.")
            return
        address = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        answer = {"success": True, "hookOutput": ""}
        if self.query.get("create_pr") == ["1"]:
            branch = Repo(repo.private, list(repo.commits))
            made = branch.commit(header["summary"], header["description"], files, lfs)
            repo.pull_requests.append(made)
            answer["pullRequestUrl"] = f"{address}/discussions/{len(repo.pull_requests)}"
        else:
            made = repo.commit(header["summary"], header["description"], files, lfs)
        self._json({**answer, "commitOid": made.oid, "commitUrl": f"{address}/commit/{made.oid}"})

    def info(self, kind, repo_id, revision=""):
        found = self._find_commit(kind, repo_id, revision)
        if found is None:
            return
        repo, commit = found
        card = _metadata(commit.files.get("README.md", b"").decode())
        answer = {"_id": "0" * 24, "id": repo_id, "author": repo_id.split("/")[0], "sha": commit.oid}
        answer |= {"private": repo.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
        answer |= {"tags": card.get("tags") or [], "cardData": card, "lastModified": "2026-01-01T00:00:00.000Z"}
        answer |= {"siblings": [{"rfilename": path} for path in sorted(commit.files)]}
        if kind == "model":
            answer |= {name: card[name] for name in ("library_name", "pipeline_tag") if name in card}
        self._json(answer)

    def tree(self, kind, repo_id, revision, path=""):
        found = self._find_commit(kind, repo_id, revision)
        if found is None:
            return
        entries = _entries(found[1], path, self.query.get("recursive", ["false"])[0].lower() in ("true", "1"))
        if path and not entries:
            self._error(404, f"{path} does not exist", "EntryNotFound")
            return
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if len(entries) > start + PAGE:
            query = {name: values[0] for name, values in self.query.items()} | {"cursor": str(start + PAGE)}
            address = urlsplit(self.path).path + "?" + "&".join(f"{name}={value}" for name, value in query.items())
            headers["Link"] = f'<{self.hub.url}{address}>; rel="next"'
        self._json(entries[start : start + PAGE], **headers)

    def paths_info(self, kind, repo_id, revision):
        found = self._find_commit(kind, repo_id, revision)
        if found is None:
            return
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        known = {entry["path"]: entry for entry in _entries(found[1], "", recursive=True)}
        self._json([known[path.strip("/")] for path in paths if path.strip("/") in known])

    def refs(self, kind, repo_id):
        repo = self._find(kind, repo_id)
        if repo is not None:
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1].oid}
            self._json({"branches": [main], "tags": [], "converts": []})

    def resolve(self, kind, repo_id, revision, path):
        found = self._find_commit(kind, repo_id, revision)
        if found is None:
            return
        commit = found[1]
        if path not in commit.files:
            self._error(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
            return
        content = commit.files[path]
        if path in commit.lfs:
            oid = _sha256(content)
            linked = {"X_Linked_Size": len(content), "X_Linked_Etag": f'"{oid}"', "X_Repo_Commit": commit.oid}
            self._answer(302, Location=f"{self.hub.storage_url}/{oid}", **linked)
        else:
            self._answer(200, content, X_Repo_Commit=commit.oid, ETag=f'"{_git_oid(content)}"')


_API = r"/api/(?P<kind>model|dataset)s/(?P<repo_id>[^/]+/[^/]+)"
_PAGE = r"/(?P<repo_id>[^/]+/[^/]+)"


def _of(kind: str, route):
    return lambda handler, **values: route(handler, kind, **values)


ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", _API + r"/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", _API + r"/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", _API + r"/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("GET", _API + r"/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", _Handler.tree),
    ("GET", _API + r"/refs", _Handler.refs),
    ("GET", _API + r"(/revision/(?P<revision>[^/]+))?", _Handler.info),
    ("GET", r"/api/(?P<kind>model|dataset)s/(?P<repo_id>[^/]+)", _Handler.info),  # of which there are none
    ("PUT", r"/lfs-storage/(?P<oid>\w+)", _Handler.lfs_put),
    ("PUT", r"/lfs-storage/(?P<oid>\w+)/(?P<part>\d+)", _Handler.lfs_put_part),
    ("POST", r"/lfs-join", _Handler.lfs_join),
    ("GET HEAD", r"/lfs-storage/(?P<oid>\w+)", _Handler.lfs_get),
    ("POST", r"/lfs-verify", _Handler.lfs_verify),
    ("POST", r"/datasets" + _PAGE + r"\.git/info/lfs/objects/batch", _of("dataset", _Handler.lfs_batch)),
    ("POST", _PAGE + r"\.git/info/lfs/objects/batch", _of("model", _Handler.lfs_batch)),
    ("GET HEAD", r"/datasets" + _PAGE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _of("dataset", _Handler.resolve)),
    ("GET HEAD", _PAGE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _of("model", _Handler.resolve)),
]


def _entries(commit: Commit, path: str, recursive: bool) -> list[dict]:
    """The files and folders below `path`, as the tree listing has them."""
    prefix = f"{path.strip('/')}/" if path else ""
    entries = {}
    for name, content in sorted(commit.files.items()):
        if not name.startswith(prefix):
            continue
        parts = name[len(prefix) :].split("/")
        for depth in range(1, len(parts)) if recursive else range(1, min(2, len(parts))):
            folder = prefix + "/".join(parts[:depth])
            entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": _git_oid(folder.encode())}
        if recursive or len(parts) == 1:
            entry = {"type": "file", "path": name, "size": len(content), "oid": _git_oid(content)}
            if name in commit.lfs:
                entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
            entries[name] = entry
    return list(entries.values())


def _metadata(readme: str) -> dict:
    match = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", readme, re.DOTALL)
    return (yaml.safe_load(match[1]) if match else {}) or {}


def _metadata_errors(readme: str) -> list[dict]:
    """The errors that the Hub reports for the metadata of a card, by a few of its rules."""
    try:
        card = _metadata(readme)
    except yaml.YAMLError as error:
        return [{"message": f"YAML Metadata Error: {error}"}]
    errors = []
    if "license" in card and card["license"] not in LICENSES:
        errors.append({"message": f'"license" must be one of {sorted(LICENSES)}'})
    for name, kind in (("tags", list), ("datasets", list), ("library_name", str), ("pipeline_tag", str)):
        if name in card and not isinstance(card[name], kind):
            errors.append({"message": f'"{name}" must be a {kind.__name__}'})
    for name in card.get("datasets") or []:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
            errors.append({"message": f'"datasets[0]" with value "{name}" is not valid.'})
    if any(not isinstance(tag, str) for tag in card.get("tags") or []):
        errors.append({"message": '"tags" must be strings'})
    return errors


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
