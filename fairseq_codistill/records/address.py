"""The address of an exchange, checked before anything is opened or written down.

Any path is welcome, and any URI that is not a chain of stores, that other processes can open too,
and that holds no secret.  Whether a store works is found out by using it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

from fairseq_codistill.records.printable import printable

HIDDEN = "***"

# Stores of fsspec that cannot be an exchange, whatever follows.
_PRIVATE = "exists in one process only, so that groups cannot share it"
_FIXED = "cannot be written to"
_ARCHIVE = "is a single file, which several processes cannot write at the same time"
_WRAPPER = "only wraps another store; name that one itself"
_REFUSED = {
    "memory": _PRIVATE,
    **dict.fromkeys(("data", "gist", "git", "github", "reference"), _FIXED),
    **dict.fromkeys(("libarchive", "tar", "zip"), _ARCHIVE),
    **dict.fromkeys(
        (
            *("async_wrapper", "asyncwrapper", "chained", "dir", "generic"),
            *("blockcache", "cached", "filecache", "simplecache"),
        ),
        _WRAPPER,
    ),
}
_LOCAL = ("file", "local")

# fsspec takes one letter for a drive of Windows.
_SCHEME = re.compile(r"([^:/\s]{2,})://", re.DOTALL)

# The names of parameters that hold secrets: the whole name, or a part of it.
_WHOLE_NAMES = {"auth", "key", "pass", "pat", "pw", "sas", "sig"}
_PARTS = (
    *("accesskey", "accountkey", "apikey", "authorization", "connectionstring", "credential"),
    *("passphrase", "passwd", "password", "privatekey", "pwd", "secret", "signature", "token"),
)
_PARAMETER = re.compile(r"(?<=[?&;#])([^?&;#=]+)=([^?&;#]+)", re.DOTALL)


def check_address(uri: str) -> None:
    """Make sure that ``uri`` may be the address of an exchange.

    Nothing is opened.  A path of this machine passes, whatever characters are in it, but for
    ``::``, which fsspec takes for a chain.

    Args:
        uri: a path or a URI.

    Raises:
        ValueError: if it may not; the message begins with the address, with every secret left
            out, and says what to do.
    """
    shown = printable(without_secret(uri))
    if "\0" in uri:
        raise ValueError(f"{shown} holds a null byte; name a path or a URI without")
    if "::" in uri:
        if is_uri(uri) or not os.path.lexists(uri):
            raise ValueError(
                f"{shown} is a chain of stores (it holds '::'), and an exchange is a single one; "
                "name a path or a URI without '::'"
            )
        raise ValueError(
            f"{shown} has '::' in its name, which fsspec takes for a chain of stores; rename the "
            "directory, or make a symbolic link to it and name that"
        )
    scheme = scheme_of(uri)
    if scheme in _REFUSED:
        raise ValueError(
            f"{shown} cannot be an exchange: a store of the kind {scheme} {_REFUSED[scheme]}"
            + ("" if _REFUSED[scheme] == _WRAPPER else "; name a directory or an object store")
        )
    if any(_secrets(uri)):
        raise ValueError(
            f"{shown} holds a secret, which would be written to launch.json, logs and the list of "
            "processes; leave it out, and give it by the environment or the configuration files "
            "that the store reads (AWS_SECRET_ACCESS_KEY for s3, say, or fsspec's own ~/.config/"
            "fsspec)"
        )


def without_secret(uri: str) -> str:
    """Return ``uri`` with ``***`` in place of passwords and keys, fit to be shown.

    Rather too much is left out than too little.
    """
    spans = sorted(_secrets(uri))
    parts, position = [], 0
    for start, end in spans:
        if end <= position:
            continue
        parts += [uri[position : max(start, position)], HIDDEN]
        position = end
    return "".join([*parts, uri[position:]])


def is_uri(named: str) -> bool:
    """Whether fsspec takes ``named`` for a URI rather than for a path."""
    return scheme_of(named) is not None


def scheme_of(named: str) -> str | None:
    """Return the scheme of a URI in small letters, or None for a path."""
    # fsspec asks for no slashes after this one.
    if named.startswith("data:"):
        return "data"
    match = _SCHEME.match(named)
    return None if match is None else match[1].lower()


def resolved(named: str, directory: str | os.PathLike[str] = ".") -> str:
    """Return an address that means the same wherever it is read.

    A path, and a URI of this machine, becomes an absolute path; any other URI stays as it is.

    Args:
        named: a path or a URI.
        directory: what a relative path is relative to.
    """
    if scheme_of(named) in _LOCAL:
        named = named.partition("://")[2]
    elif is_uri(named):
        return named
    return os.path.abspath(os.path.join(directory, os.path.expanduser(named)))


def _secrets(uri: str) -> Iterator[tuple[int, int]]:
    """Find the places of secrets in ``uri``, or in the URIs of a chain."""
    if "://" not in uri or (scheme_of(uri) in _LOCAL and "::" not in uri):
        return
    for scheme in _SCHEME.finditer(uri):
        yield from _password(uri, scheme.end(), scheme[1].lower())
    yield from (match.span(2) for match in _PARAMETER.finditer(uri) if _is_secret(match[1]))


def _password(uri: str, start: int, scheme: str) -> Iterator[tuple[int, int]]:
    """Find the password in front of a host; ``start`` is where the authority begins."""
    # To the slash only: a password that was not quoted may hold ? and #.
    authority = uri[start:].partition("/")[0]
    user, at, _ = authority.rpartition("@")
    if at:
        name, colon, password = user.partition(":")
        if colon and password:
            yield start + len(name) + 1, start + len(user)
        elif name and scheme in ("http", "https"):
            # A name without a password is a token there.
            yield start, start + len(user)
        return
    # Or a slash; a port is a number, and a colon may be in the name of an access point of S3.
    name, colon, port = authority.partition(":")
    last = uri.rfind("@")
    if colon and port and not port.isdecimal() and name != "arn" and last > start:
        yield start + len(name) + 1, last


def _is_secret(parameter: str) -> bool:
    name = re.sub(r"[^a-z0-9]", "", unquote(parameter).lower())
    return name in _WHOLE_NAMES or any(part in name for part in _PARTS)
