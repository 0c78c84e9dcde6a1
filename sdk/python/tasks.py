"""What programs do with extentd, each as one function."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import BinaryIO, TypeVar
from urllib.parse import quote

from extentd_client import AuthenticatedClient, Client
from extentd_client.api.allocations import create_allocation, delete_allocation, put_allocation_data, update_mappings
from extentd_client.api.data import put_data
from extentd_client.api.extents import get_extents
from extentd_client.api.images import list_images
from extentd_client.models import (
    Allocation, AllocationRequest, Extent, ExtentList, ImageEntry, ImageList,
    MappingTarget, MappingTargetKind, MappingUpdate, MappingUpdates, Problem,
)
from extentd_client.types import UNSET, File, Response

T = TypeVar("T")


def connect(url: str, token: str | None = None) -> Client | AuthenticatedClient:
    if token is None:
        return Client(base_url=url)
    return AuthenticatedClient(base_url=url, token=token)


class Refused(Exception):
    """An answer that is a problem (RFC 9457)."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail} (request {problem.request_id})")
        self.problem = problem


def granted(answer: Response[T | Problem], kind: type[T]) -> T:
    """What an operation has answered, if it is no problem."""
    if isinstance(answer.parsed, Problem):
        raise Refused(answer.parsed)
    if not isinstance(answer.parsed, kind):
        raise RuntimeError(f"an answer that the contract does not know: {answer.status_code}")
    return answer.parsed


def list_all(extentd: Client | AuthenticatedClient) -> Iterator[ImageEntry]:
    """The images, a page at a time."""
    cursor: str = ""
    while True:
        answer = list_images.sync_detailed(client=extentd, cursor=cursor or UNSET)
        page = granted(answer, ImageList)
        yield from page.images
        if not page.next_:
            return
        cursor = page.next_


def map_pages(extentd: Client | AuthenticatedClient, image: str, limit: int = 1000) -> Iterator[Extent]:
    """The whole map in pages, all of them of one generation: if the map changes
    between two, the server refuses the second with precondition-failed."""
    offset, etag = 0, ""
    while True:
        answer = get_extents.sync_detailed(
            image, client=extentd, offset=offset, limit=limit, if_match=etag or UNSET)
        page = granted(answer, ExtentList)
        yield from page.extents
        if not page.next_:
            return
        offset, etag = page.next_, answer.headers["ETag"]


def stream_map(extentd: Client | AuthenticatedClient, image: str) -> Iterator[Extent]:
    """The map as it is walked, one extent a line. A map that cannot be read to
    its end raises httpx.RemoteProtocolError."""
    http = extentd.get_httpx_client()
    path = f"/v1/images/{quote(image)}/extents"
    with http.stream("GET", path, headers={"Accept": "application/x-ndjson"}) as answer:
        if answer.is_error:
            raise Refused(Problem.from_dict(json.loads(answer.read())))
        for line in answer.iter_lines():
            yield Extent.from_dict(json.loads(line))


def read(extentd: Client | AuthenticatedClient, image: str, offset: int, length: int) -> Iterator[bytes]:
    """A range, piece by piece: nothing is held but the piece that is being used."""
    http = extentd.get_httpx_client()
    path = f"/v1/images/{quote(image)}/data"
    with http.stream("GET", path, headers={"Range": f"bytes={offset}-{offset + length - 1}"}) as answer:
        if answer.is_error:
            raise Refused(Problem.from_dict(json.loads(answer.read())))
        if answer.status_code != 206:
            raise RuntimeError("not a part of the image")
        yield from answer.iter_bytes(1 << 20)


def write(extentd: Client | AuthenticatedClient, image: str, offset: int, source: BinaryIO, length: int) -> str:
    """Bytes at an offset; on disk when it returns. The answer is the new ETag."""
    answer = put_data.sync_detailed(
        image, client=extentd, body=File(payload=source), flush=True,
        content_range=f"bytes {offset}-{offset + length - 1}/*")
    if isinstance(answer.parsed, Problem):
        raise Refused(answer.parsed)
    return answer.headers["ETag"]


def publish(extentd: Client | AuthenticatedClient, image: str, offset: int, data: bytes) -> None:
    """Blocks that nobody sees are reserved, filled in parallel, and appear at an
    offset all at once. The length of the data is a multiple of the cluster."""
    length, piece = len(data), 1 << 20
    made = create_allocation.sync_detailed(image, client=extentd, body=AllocationRequest(length=length))
    allocation = granted(made, Allocation)

    def fill(begin: int) -> None:
        part = data[begin:begin + piece]
        answer = put_allocation_data.sync_detailed(
            image, allocation.id, client=extentd, body=File(payload=BytesIO(part)),
            content_range=f"bytes {begin}-{begin + len(part) - 1}/{length}")
        if isinstance(answer.parsed, Problem):
            raise Refused(answer.parsed)

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(fill, range(0, length, piece)))
        target = MappingTarget(kind=MappingTargetKind.DATA, allocation=allocation.id, allocation_offset=0)
        update = MappingUpdate(offset=offset, length=length, target=target)
        mapped = update_mappings.sync_detailed(image, client=extentd, body=MappingUpdates(updates=[update]))
        if isinstance(mapped.parsed, Problem):
            raise Refused(mapped.parsed)
    finally:
        # What is mapped stays, the rest is freed.
        delete_allocation.sync_detailed(image, allocation.id, client=extentd)


def explain(problem: Problem) -> str:
    """What went wrong, as a program tells it apart."""
    match problem.type_:
        case "/problems/not-found":
            return "no such image"
        case "/problems/precondition-failed":
            return "somebody else has written to it: read again"
        case "/problems/misaligned":
            return f"offset and length must be multiples of {problem.minimum}"
        case "/problems/invalid-request":
            return "; ".join(f"{e.field}: {e.detail}" for e in problem.errors or [])
        case _:
            return f"{problem.status} {problem.title}: {problem.detail}"
