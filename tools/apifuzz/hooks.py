"""Hooks of schemathesis: see scripts/api-fuzz.

What is drawn from the schemas alone seldom gets past the first check: names
that no image has, conditions that never hold, a Content-Range of other bytes
than those that are sent. before_call makes some of it fit together. It keeps
what is meant to be refused as it is, but for what would not fit into memory."""

import atexit
import collections
import json
import os
import random
import re

import schemathesis

# Whether what is reserved comes from a small file system, and may be as much as
# anybody asks for.
CONTAINED = os.environ.get("API_FUZZ_CONTAINED") == "1"
MOST = 16 << 20
CLUSTER = 65536
CONDITIONS = ("If-Match", "If-None-Match", "If-Range")
# The images of scripts/api-fuzz, which stay as small.
SMALL = {
    "disk.raw", "base.raw", "vm.qcow2", "old.qcow2", "wide.qcow2", "packed.qcow2",
    "snap.qcow2", "mine.raw", "mine.qcow2",
}

answers: collections.Counter[tuple[str, int]] = collections.Counter()
allocations: list[tuple[str, str]] = []  # image and id
tickets: list[str] = []


@schemathesis.deserializer("application/x-ndjson", "multipart/byteranges")
def text(ctx, response):
    """What is text, or bytes, to the contract stays that."""
    return response.content.decode("utf-8", "replace")


@schemathesis.hook
def before_call(context, case, kwargs):
    method, path = case.operation.method.upper(), case.operation.path
    if case.meta is None or not case.meta.generation.mode.is_negative:
        fit(case, method, path, random.Random(repr((case.path_parameters, case.query, case.body))))
    # A whole body is held in memory here.
    if method == "GET" and path == "/v1/images/{image}/data" and case.path_parameters.get("image") not in SMALL:
        case.headers["Range"] = "bytes=0-8191"
    if method == "PATCH" and case.path_parameters.get("image") in SMALL:
        bound(case.body)
    if method == "POST" and path == "/v1/images" and not CONTAINED and reserves(case.body):
        bound(case.body)


def fit(case, method, path, choice):
    if choice.random() < 0.7:
        for name in CONDITIONS:
            case.headers.pop(name, None)
    stateful = case.meta is not None and case.meta.phase.name == "stateful"
    if stateful or choice.random() < 0.5:
        # A repeated answer may be about what is gone by now.
        case.headers.pop("Idempotency-Key", None)
    if "{ticket}" in path and tickets and choice.random() < 0.7:
        case.path_parameters["ticket"] = choice.choice(tickets)
    if "{allocation}" in path and allocations and not stateful and choice.random() < 0.7:
        case.path_parameters["image"], case.path_parameters["allocation"] = choice.choice(allocations)
    if method == "PUT" and path.endswith("/data"):
        fit_range(case, choice)
    elif path == "/v1/images" and method == "POST":
        fit_creation(case.body, choice)
    elif path == "/v1/tickets" and isinstance(case.body, dict) and choice.random() < 0.7:
        case.body["ttl"] = choice.choice(["1s", "10m", "24h"])
    elif path.endswith(("/zero", "/trim")) and choice.random() < 0.7:
        inside(case.body, choice)
    elif path.endswith("/mappings") and isinstance(case.body, dict) and choice.random() < 0.8:
        fit_updates(case, choice)
    elif path.endswith("/allocations") and isinstance(case.body, dict) and choice.random() < 0.7:
        case.body.pop("anchored", None)
        case.body["length"] = choice.choice([1, CLUSTER, 3 * CLUSTER])


def fit_range(case, choice):
    body = getattr(case.body, "data", case.body)
    if isinstance(body, bytes) and body and choice.random() < 0.8:
        first = choice.choice([0, 0, 1, 512, CLUSTER, 1 << 20])
        case.headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/*"


def fit_creation(body, choice):
    if not isinstance(body, dict) or not isinstance(body.get("name"), str) or choice.random() < 0.2:
        return
    body["name"] = body["name"][:40] + "." + str(body.get("format"))
    if choice.random() < 0.7:
        body["size"] = choice.choice([0, 1, 65536, 10 << 20, 1 << 40, 1 << 50])
        # Other options go only with some of each other.
        for option in set(body) - {"name", "format", "size", "preallocation"}:
            del body[option]


def inside(body, choice):
    if isinstance(body, dict):
        body["offset"] = choice.choice([0, 1, 4096, CLUSTER])
        body["length"] = choice.choice([1, 512, CLUSTER, 1 << 20])


def fit_updates(case, choice):
    ids = [id for image, id in allocations if image == case.path_parameters.get("image")]
    for update in case.body.get("updates", []):
        update["offset"], update["length"] = CLUSTER * choice.randrange(8), CLUSTER
        target = update["target"]
        if target["kind"] != "data":
            target.pop("allocation", None)
            target.pop("allocation_offset", None)
        elif ids:
            target["allocation"], target["allocation_offset"] = choice.choice(ids), 0
        if target["kind"] != "zero":
            target.pop("anchored", None)


def reserves(body):
    return isinstance(body, dict) and body.get("preallocation") in ("falloc", "full")


def bound(body):
    if isinstance(body, dict) and isinstance(body.get("size"), int):
        body["size"] = min(body["size"], MOST)


@schemathesis.hook
def after_call(context, case, response):
    answers[case.operation.label, response.status_code] += 1
    if response.status_code == 201 and case.operation.path.endswith("/allocations"):
        allocations.append((case.path_parameters["image"], response.json()["id"]))
        del allocations[:-8]
    if response.status_code == 201 and case.operation.path.endswith("/tickets"):
        tickets.append(response.json()["id"])
        del tickets[:-8]


@schemathesis.check
def answers_know_the_request(ctx, response, case):
    """Every answer has an id, and every error is a problem that says the same
    status."""
    assert response.headers.get("x-request-id"), "no X-Request-Id"
    if response.status_code < 400 or case.method.upper() == "HEAD":
        return
    kind = response.headers.get("content-type", [""])[0]
    assert kind == "application/problem+json", f"an error with Content-Type {kind!r}"
    problem = response.json()
    assert problem["status"] == response.status_code, problem
    assert re.fullmatch(r"/problems/[a-z-]+", problem["type"]), problem
    if response.status_code == 507:
        assert problem["type"] == "/problems/no-space", problem


@atexit.register
def report():
    path = os.environ.get("API_FUZZ_ANSWERS")
    if path and answers:
        with open(path, "w", encoding="utf-8") as f:
            json.dump([[label, status, n] for (label, status), n in sorted(answers.items())], f)
