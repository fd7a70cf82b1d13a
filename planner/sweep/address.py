"""The address of a study: where it is stored, and how it is shown, which is never with its password."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from estimators.errors import BadInput

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

HIDDEN = "***"
SQLITE = "sqlite"
_SECRET_KEY = re.compile(r"pass|secret|token|key|pwd|credential", re.IGNORECASE)
_SCHEME = re.compile(r"(sqlite|postgresql|mysql|mariadb)(\+[a-z0-9_]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a study is stored."""

    url: str = field(repr=False)
    """As SQLAlchemy takes it, password and all."""

    @property
    def shown(self) -> str:
        """The address without what nobody else may read: the password, also one among the parameters."""
        url = _parsed(self.url)
        parameters = {name: HIDDEN if _SECRET_KEY.search(name) else value for name, value in url.query.items()}
        return url.set(query=parameters).render_as_string(hide_password=True).replace(quote(HIDDEN), HIDDEN)

    @property
    def path(self) -> Path | None:
        """The file, of SQLite."""
        if not self.url.startswith(SQLITE):
            return None
        return Path(unquote(self.url.partition("://")[2].partition("?")[0].removeprefix("/")))

    @property
    def driver(self) -> str:
        """The library that connects, also where the URL leaves it to SQLAlchemy."""
        return _parsed(self.url).get_driver_name()

    @property
    def parameters(self) -> frozenset[str]:
        """The names of what the user says to the driver."""
        return frozenset(_parsed(self.url).query)

    def clean(self, text: str) -> str:
        """A text, such as a library's own message, with every secret of the address taken out."""
        for secret in sorted(self._secrets(), key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return text.replace(self.url, self.shown)

    def _secrets(self) -> set[str]:
        url, rest = _parsed(self.url), self.url.partition("://")[2]
        typed = rest.partition("@")[0].partition(":")[2] if url.password else ""
        pairs = (part.partition("=") for part in rest.partition("?")[2].split("&"))
        raw = [typed, url.password or "", *(value for name, _, value in pairs if _SECRET_KEY.search(name))]
        return {text for one in raw for text in (one, unquote(one)) if text}


def _parsed(url: str) -> "URL":
    """As SQLAlchemy reads it: a password may hold what a URL of the web may not."""
    from sqlalchemy.engine import make_url

    return make_url(url)


def address_of(text: str | None, folder: Path) -> Address:
    """The address that a user gave, or a file in the sweep's folder.

    Raises:
        BadInput: it is no address of a database that a sweep can use.
    """
    if text is None:
        return Address(url=f"{SQLITE}:///{folder.absolute() / 'study.sqlite'}")
    scheme = text.partition("://")[0]
    if "://" not in text or not _SCHEME.fullmatch(scheme):
        raise BadInput("--storage must be a URL such as sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE")
    if scheme.startswith(SQLITE) and not text.partition("://")[2].strip("/"):
        raise BadInput("--storage sqlite: needs a file, for a study in memory cannot be resumed")
    try:
        _parsed(text)
    except ValueError:  # a port that is no number
        raise BadInput("--storage has a port that is no number") from None
    return Address(url=text)
