"""Asks the Hugging Face Hub for a model's config.json: one small file, five seconds at most, nothing executed."""

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from typing import IO
from urllib.parse import urlsplit

from estimators.config_json import LARGEST_CONFIG_BYTES, parse_config
from estimators.errors import BadInput
from estimators.models import HUB_ID

TIMEOUT_SECONDS = 5.0
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def fetch_config(hub_id: str, offline: bool = False) -> dict[str, object]:
    """The config.json of `hub_id`, parsed strictly. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured.

    Raises:
        BadInput: no such model, no leave to read it, no connection, or no config that parses.
    """
    if not HUB_ID.fullmatch(hub_id):
        raise BadInput(f"{hub_id[:80]!a} is not a Hub id such as owner/name")
    if offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise BadInput(f"{hub_id} is not in the catalogue, and the Hub is not asked offline")
    url = f"{_endpoint()}/{hub_id}/resolve/main/config.json"
    try:
        return parse_config(_download(url), hub_id)
    except urllib.error.HTTPError as error:
        with error:
            raise BadInput(f"{hub_id}: {_explain(error.code)}") from None
    except urllib.error.URLError as error:
        raise BadInput(f"{hub_id}: the Hub cannot be reached ({_one_line(error.reason)})") from None
    except (OSError, http.client.HTTPException) as error:
        raise BadInput(f"{hub_id}: the Hub cannot be reached ({type(error).__name__})") from None


def _endpoint() -> str:
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    # urllib would open file: and ftp: as well.
    if not re.fullmatch(r"https?://[^\s/@]+(/[^\s@]*)?", endpoint):
        raise BadInput("HF_ENDPOINT must start with https:// or http:// and a host")
    return endpoint.rstrip("/")


def _explain(status: int) -> str:
    if status in (401, 403, 404):  # the Hub answers 401 for what it does not have, too
        return f"no such model on the Hub, or one that HF_TOKEN may not read (HTTP {status})"
    return f"the Hub answered HTTP {status}"


def _one_line(reason: object) -> str:
    return ascii(str(reason))[1:-1][:80]


def _download(url: str) -> bytes:
    """The body of `url`, cut one byte after the largest config; the whole takes no longer than the timeout."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    request = urllib.request.Request(url)
    _authorize(request)
    opener = urllib.request.build_opener(_SameHostToken)
    with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
        body = b""
        while len(body) <= LARGEST_CONFIG_BYTES and (part := response.read1(65536)):
            body += part
            if time.monotonic() > deadline:
                raise TimeoutError
        return body[: LARGEST_CONFIG_BYTES + 1]


def _authorize(request: urllib.request.Request) -> None:
    """Adds the token, never in clear text over a network."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        return
    if not re.fullmatch(r"[\x21-\x7e]+", token):  # urllib's own refusal would print it
        raise BadInput("HF_TOKEN holds characters that no token has")
    if request.type == "https" or urlsplit(request.full_url).hostname in _LOOPBACK:
        request.add_unredirected_header("Authorization", f"Bearer {token}")


class _SameHostToken(urllib.request.HTTPRedirectHandler):
    """Follows redirects as usual, and sends the token again only to the host that it was meant for."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urlsplit(newurl)[:2] == urlsplit(req.full_url)[:2]:
            _authorize(request)
        return request
