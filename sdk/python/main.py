"""main.py URL does each of the tasks against a server, and fails if one is not
done right. EXTENTD_TOKEN is the bearer token, if the server wants one."""

import os
import sys
from collections.abc import Callable, Iterable
from io import BytesIO

from extentd_client import AuthenticatedClient, Client
from extentd_client.api.images import create_image, delete_image
from extentd_client.models import Extent, Image, ImageCreation, ImageCreationFormat, Problem

import tasks

CLUSTER = 65536
SIZE = 16 << 20
IMAGE = f"python-{os.getpid()}.qcow2"


def refusal(task: Callable[[], Iterable[object]]) -> Problem:
    try:
        for _ in task():
            pass
    except tasks.Refused as refused:
        return refused.problem
    raise AssertionError("not refused")


def covers(extents: list[Extent]) -> None:
    """Fails unless the extents lie side by side, and are the whole image."""
    end = 0
    for extent in extents:
        assert extent.offset == end, extent
        end += extent.length
    assert end == SIZE
    assert any(e.zero for e in extents) and not all(e.zero for e in extents)


def run(extentd: Client | AuthenticatedClient) -> None:
    def content(offset: int, length: int) -> bytes:
        return b"".join(tasks.read(extentd, IMAGE, offset, length))

    names = [entry.name for entry in tasks.list_all(extentd)]
    assert IMAGE in names, names

    written = os.urandom(3 * CLUSTER + 100)
    etag = tasks.write(extentd, IMAGE, 1000, BytesIO(written), len(written))
    assert etag.startswith('"d-'), etag
    assert content(1000, len(written)) == written

    published = os.urandom((2 << 20) + CLUSTER)
    tasks.publish(extentd, IMAGE, 4 << 20, published)
    assert content(4 << 20, len(published)) == published

    pages = list(tasks.map_pages(extentd, IMAGE, limit=2))
    assert list(tasks.stream_map(extentd, IMAGE)) == pages
    covers(pages)

    problem = refusal(lambda: tasks.map_pages(extentd, "missing.qcow2"))
    assert (problem.status, tasks.explain(problem)) == (404, "no such image"), problem
    problem = refusal(lambda: tasks.stream_map(extentd, "missing.qcow2"))
    assert problem.status == 404, problem
    problem = refusal(lambda: tasks.map_pages(extentd, IMAGE, limit=0))
    assert problem.errors and problem.errors[0].field == "limit", problem
    assert tasks.explain(problem).startswith("limit: "), problem
    problem = refusal(lambda: tasks.read(extentd, IMAGE, 2 * SIZE, 10))
    assert (problem.status, problem.size) == (416, SIZE), problem


def main() -> None:
    with tasks.connect(sys.argv[1], os.environ.get("EXTENTD_TOKEN")) as extentd:
        made = create_image.sync_detailed(
            client=extentd, body=ImageCreation(name=IMAGE, format_=ImageCreationFormat.QCOW2, size=SIZE))
        tasks.granted(made, Image)
        try:
            run(extentd)
        finally:
            delete_image.sync_detailed(IMAGE, client=extentd)
    print("all tasks done")


main()
