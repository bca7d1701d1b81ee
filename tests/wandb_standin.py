"""A wandb server on the loopback, as far as the client programs need one: it notes what it is sent and can misbehave.

It answers what ``wandb sweep``, ``wandb agent``, ``wandb sync`` and ``wandb.init`` of version 0.31 ask; suggestions
come from wandb's own engine. A question that it does not know is noted in ``unknown`` and answered with nothing.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

KEY = "0123456789abcdef0123456789abcdef01234567"
ENTITY, PROJECT = "nobody", "grouped-convolution"


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up in the middle is its own business."""


@dataclass
class SentRun:
    """Data that the server received of one run."""

    name: str = ""
    sweep: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    stopped: bool = False

    def metrics(self, name: str) -> list[float]:
        """The history of one metric."""
        return [row[name] for _, row in sorted(self.history.items()) if name in row]


class Standin:
    """The server; ``with Standin() as server`` serves on ``server.url`` until the end of the block.

    Attributes:
        trouble: what every answer is from now on: ``"500"``, ``"slow"``, ``"wrong key"``, or None.
        runs: what was sent, by run id.
        sweeps: content of each sweep's file, by sweep id.
        asked: names of the operations, in order.
        unknown: operations that could not be answered.
        run_cap: how many runs a sweep hands out, whatever its file says.
    """

    def __init__(self, run_cap: int = 100) -> None:
        self.trouble: str | None = None
        self.runs: dict[str, SentRun] = {}
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.unknown: list[str] = []
        self.run_cap = run_cap
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _QuietServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Standin:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Be gone: connections are refused from now on."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: str) -> dict[str, str]:
        """Environment that makes a wandb program a user of this server, with a home of its own."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "HOME": home,
            "WANDB_ENTITY": ENTITY,
            "WANDB_PROJECT": PROJECT,
            "WANDB_ERROR_REPORTING": "false",
            "NETRC": f"{home}/.netrc",
        }

    def hold(self) -> None:
        """Wait as long as a slow server does."""
        self._closing.wait(120)

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The data of one GraphQL operation; None where it is not known."""
        with self._lock:
            self.asked.append(operation)
            known: Callable[[dict[str, Any]], dict[str, Any]] | None = getattr(self, f"_answer_{operation}", None)
            if known is None:
                self.unknown.append(operation)
                return None
            return known(variables)

    def stream(self, run: str, body: dict[str, Any]) -> None:
        """Lines of history and summary of a run, and whether it is complete."""
        with self._lock:
            sent = self.runs.setdefault(run, SentRun())
            files = body.get("files") or {}
            history = files.get("wandb-history.jsonl", {})
            for number, line in enumerate(history.get("content", []), history.get("offset", 0)):
                sent.history[number] = json.loads(line)
            for line in files.get("wandb-summary.json", {}).get("content", []):
                sent.summary |= json.loads(line)
            if body.get("complete"):
                sent.exit_code = body.get("exitcode")

    def keep(self, run: str, name: str, content: bytes) -> None:
        """One uploaded file."""
        with self._lock:
            self.runs.setdefault(run, SentRun()).files[name] = content

    def _answer_Viewer(self, _variables: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY, "availableOrg": None}}]}
        viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": teams}
        return {"viewer": {**viewer, "apiKeys": {"edges": []}, "admin": False, "name": ENTITY, "deletedAt": None}}

    def _answer_ServerFeaturesQuery(self, _variables: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _answer_OrganizationCoreWeaveOrganizationID(self, _variables: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def _answer_UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["name"]
        new = run not in self.runs
        sent = self.runs.setdefault(run, SentRun())
        sent.name = variables.get("displayName") or sent.name
        sent.sweep = variables.get("sweep") or sent.sweep
        config = json.loads(variables.get("config") or "{}")
        sent.config |= {key: entry["value"] for key, entry in config.items()}
        sent.summary |= json.loads(variables.get("summaryMetrics") or "{}")
        bucket = {"id": run, "name": run, "displayName": sent.name, "description": None, "sweepName": sent.sweep}
        bucket |= {"config": json.dumps(config), "historyLineCount": len(sent.history), "project": self._project()}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _answer_RunResumeStatus(self, _variables: dict[str, Any]) -> dict[str, Any]:
        return {"model": {**self._project(), "bucket": None}}

    def _answer_CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _answer_UpsertSweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        sweep = f"sweep{len(self.sweeps)}"
        self.sweeps[sweep] = yaml.safe_load(variables["config"])
        return {"upsertSweep": {"sweep": {"name": sweep, "project": self._project()}, "configValidationWarnings": []}}

    def _answer_SweepWithRuns(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["sweep"]
        sweep = {"id": name, "name": name, "method": self.sweeps[name]["method"], "state": "RUNNING"}
        sweep |= {"config": yaml.safe_dump(self.sweeps[name]), "runs": {"edges": []}}
        return {"project": {"sweep": sweep}}

    def _answer_CreateAgent(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": variables["sweep"]}}}

    def _answer_Heartbeat(self, variables: dict[str, Any]) -> dict[str, Any]:
        sweep, alive = variables["id"], json.loads(variables["runState"])
        commands = self._stops(sweep, alive) if alive else [self._next(sweep)]
        return {"agentHeartbeat": {"agent": {"id": sweep}, "commands": json.dumps(commands)}}

    def _answer_GetDefaultEntity(self, variables: dict[str, Any]) -> dict[str, Any]:
        return self._answer_Viewer(variables)

    def _answer_Runs(self, variables: dict[str, Any]) -> dict[str, Any]:
        sweep = json.loads(variables["filters"])["sweep"]
        edges = [{"node": self._node(run, sent), "cursor": run} for run, sent in self._of_sweep(sweep).items()]
        page = {"endCursor": None, "hasNextPage": False}
        runs = {"edges": edges, "pageInfo": page}
        return {"project": {"internalId": "1", "runCount": len(edges), "readOnly": False, "runs": runs}}

    def _node(self, run: str, sent: SentRun) -> dict[str, Any]:
        state = "killed" if sent.stopped else {None: "running", 0: "finished"}.get(sent.exit_code, "failed")
        config = json.dumps({key: {"value": value} for key, value in sent.config.items()})
        node = {"id": run, "name": run, "displayName": sent.name, "sweepName": sent.sweep, "state": state}
        node |= {"config": config, "summaryMetrics": json.dumps(sent.summary), "systemMetrics": "{}", "tags": []}
        node |= {"createdAt": "2026-01-01T00:00:00Z", "historyKeys": None, "historyLineCount": len(sent.history)}
        empty = ("group", "jobType", "commit", "heartbeatAt", "description", "notes")
        user = {"name": ENTITY, "username": ENTITY}
        return {**node, **dict.fromkeys(empty), "readOnly": False, "projectId": "1", "user": user}

    def _next(self, sweep: str) -> dict[str, Any]:
        """Return the command for an agent that has nothing to do."""
        import random

        import numpy as np
        import sweeps

        random.seed(len(self.runs))
        np.random.seed(len(self.runs))
        begun = self._of_sweep(sweep)
        suggestion = None
        if len(begun) < min(self.run_cap, self.sweeps[sweep].get("run_cap", self.run_cap)):
            suggestion = sweeps.next_run(self.sweeps[sweep], list(self._engine_runs(sweep).values()))
        if suggestion is None:
            return {"type": "exit"}
        run = f"{sweep}run{len(begun)}"
        arguments = json.loads(json.dumps(suggestion.config, default=float))
        self.runs[run] = SentRun(sweep=sweep, config={key: entry["value"] for key, entry in arguments.items()})
        return {"type": "run", "run_id": run, "program": self.sweeps[sweep].get("program"), "args": arguments}

    def _stops(self, sweep: str, alive: dict[str, bool]) -> list[dict[str, Any]]:
        import sweeps

        if "early_terminate" not in self.sweeps[sweep]:
            return []
        stops = []
        for run in sweeps.stop_runs(self.sweeps[sweep], list(self._engine_runs(sweep).values())):
            if run.name in alive:
                self.runs[run.name].stopped = True
                stops.append({"type": "stop", "run_id": run.name})
        return stops

    def _of_sweep(self, sweep: str) -> dict[str, SentRun]:
        return {run: sent for run, sent in self.runs.items() if sent.sweep == sweep}

    def _engine_runs(self, sweep: str) -> dict[str, Any]:
        import sweeps

        return {
            run: sweeps.SweepRun(
                name=run,
                state=sweeps.RunState.running if sent.exit_code is None else sweeps.RunState.finished,
                config={key: {"value": sent.config[key]} for key in self.sweeps[sweep]["parameters"]},
                sampledHistory=[row for _, row in sorted(sent.history.items())],
                summaryMetrics=sent.summary,
            )
            for run, sent in self._of_sweep(sweep).items()
        }

    def _answer_ArtifactType(self, _variables: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}  # no table was sent before

    def _answer_ClientIDMapping(self, _variables: dict[str, Any]) -> dict[str, Any]:
        return {"clientIDMapping": {"serverID": "artifact"}}

    def _answer_CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = {"id": "artifact", "state": "PENDING", "digest": ""}
        return {"createArtifact": {"artifact": {**artifact, "artifactSequence": {"id": "1", "latestArtifact": None}}}}

    def _answer_CreateArtifactManifest(self, _variables: dict[str, Any]) -> dict[str, Any]:
        file = {"id": "1", "uploadUrl": f"{self.url}/upload/artifacts/manifest", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "1", "file": file}}}

    def _answer_CreateArtifactFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for spec in variables["input"]["artifactFiles"]:
            url = f"{self.url}/upload/artifacts/{spec['name']}"
            node = {"storagePath": spec["name"], "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
            nodes.append({"node": {**node, "artifact": {"id": "artifact"}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _answer_CommitArtifact(self, _variables: dict[str, Any]) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": "artifact", "digest": ""}}}

    def _project(self) -> dict[str, Any]:
        return {"id": "1", "name": PROJECT, "entity": {"id": "1", "name": ENTITY}}


def _handler(server: Standin) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self._in_trouble():
                return
            if stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                server.stream(stream[1], json.loads(body))
                self._reply(200, {})
            elif self.path == "/graphql":
                asked = json.loads(body)
                name = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
                operation = name[1] if name else "anonymous"
                data = server.answer(operation, asked.get("variables") or {})
                error = {"errors": [{"message": f"the stand-in does not know {operation}"}], "data": None}
                self._reply(200, error if data is None else {"data": data})
            else:  # telemetry
                self._reply(200, {})

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self._in_trouble():
                return
            _, _, run, name = self.path.split("/", 3)
            server.keep(run, name.split("?")[0], content)
            self._reply(200, {})

        def do_GET(self) -> None:
            if not self._in_trouble():
                self._reply(200, {})

        def _in_trouble(self) -> bool:
            if server.trouble == "slow":
                server.hold()
            if server.trouble == "500":
                self._reply(500, {"error": "the stand-in is out of order"})
            elif server.trouble == "wrong key":
                self._reply(401, {"errors": [{"message": "user is not logged in"}]})
            return server.trouble is not None

        def _reply(self, code: int, content: dict[str, Any]) -> None:
            payload = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
