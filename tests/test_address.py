"""The address of an exchange: what is refused before anything is opened, and what is shown."""

import subprocess
import sys

import pytest

from fairseq_codistill.records.address import (
    check_address,
    is_uri,
    resolved,
    scheme_of,
    without_secret,
)

SECRET = "hUsH42"


@pytest.mark.parametrize(
    "uri",
    [
        *["runs/x/exchange", "/data/x", "~/x", "./a:b", "/data/user:name@host/x", "x", " x "],
        *["C:\\x", "c://x", "C:/x", "/data/x?token=a", "/data/ä\n/x", "/data/\udcff/x"],
        *["file:///data/x", "local://x", "file:///data/a@b:c/x?sig=1"],
        *["s3://bucket/x", "s3a://bucket/x", "gs://b", "gcs://b/x", "az://container@account/x"],
        "abfs://container@account.dfs.core.windows.net/x",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/me@home",
        *["s3://bucket/a:b@c", "s3://bucket/x?versionId=3", "s3://bucket/x?region=eu#part"],
        *["sftp://user@host:22/x", "sftp://user:@host/x", "hdfs://node:8020/user@home/x"],
        *["webdav://host/x", "smb://host/share", "ftp://host/x", "https://host:443/x"],
        *["hf://datasets/a/b@main/x", "pigeon://loft", "s3://bucket/x?monkey=1&keyboard=2"],
    ],
)
def test_welcome_addresses(uri):
    check_address(uri)
    assert without_secret(uri) == uri


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        *[("memory://x", "one process"), ("MEMORY://x", "one process"), ("memory://", "process")],
        *[("data:,x", "written"), ("data://x", "written"), ("reference://x", "written")],
        *[("github://org:repo@main/x", "written"), ("git://x", "written"), ("gist://x", "written")],
        *[("zip://x.zip", "single file"), ("tar://x", "single file"), ("libarchive://x", "single")],
        *[("dir://x", "wraps"), ("simplecache://x", "wraps"), ("filecache://x", "wraps")],
        *[("generic://x", "wraps"), ("asyncwrapper://x", "wraps"), ("blockcache://x", "wraps")],
    ],
)
def test_stores_that_no_groups_can_share(uri, says):
    with pytest.raises(ValueError, match=says):
        check_address(uri)


@pytest.mark.parametrize(
    "uri",
    [
        *["reference::s3://bucket/refs.json", "dir::file:///x", "simplecache::s3://bucket/x"],
        *["zip://x::s3://bucket/y.zip", "/data/a::b", "::", "a::", "::memory://x", "s3://a::b"],
        "reference::data:,%7B%22version%22%3A1%7D",
    ],
)
def test_chains(uri):
    with pytest.raises(ValueError, match="chain of stores") as refused:
        check_address(uri)
    assert "without '::'" in str(refused.value)


def test_a_directory_whose_name_looks_like_a_chain(tmp_path):
    path = tmp_path / "a::b"
    path.mkdir()
    with pytest.raises(ValueError, match="rename the directory, or make a symbolic link"):
        check_address(str(path))


@pytest.mark.parametrize(
    "uri",
    [
        *[f"ftp://me:{SECRET}@host/x", f"s3://AKIA0:{SECRET}@bucket/x", f"sftp://:{SECRET}@host"],
        *[f"webdav://me:a/{SECRET}@host/x", f"ftp://me:a?{SECRET}#b@host", f"ftp://m:a@{SECRET}@h"],
        *[f"ftp://me:a::{SECRET}@host/x", f"https://{SECRET}@host/x", f"HTTPS://{SECRET}@host"],
        *[f"simplecache::ftp://me:{SECRET}@host/x", f"zip://x::ftp://me:{SECRET}@host/y.zip"],
        *[f"az://c/x?sv=2024&sig={SECRET}&se=1", f"https://host/x?to%6ben={SECRET}"],
        *[f"s3://b/x?X-Amz-Signature={SECRET}", f"s3://b/x?AWSAccessKeyId=1&aws_secret={SECRET}"],
        *[f"abfs://c@a/x?account_key={SECRET}", f"smb://host/x;password={SECRET}"],
        *[f"gs://b/x#access_token={SECRET}", f"az://c?connection-string=a={SECRET}==;x=1"],
        *[f"memory://x?Token={SECRET}", f"ftp://me:{SECRET}\n@host/x", f"ftp://[x:{SECRET}@y/x"],
        *[f"jupyter://host/x?key={SECRET}", f"file:///x::https://{SECRET}@host"],
    ],
)
def test_no_secret_is_taken_or_said(uri):
    with pytest.raises(ValueError, match=r"\*\*\*") as refused:
        check_address(uri)
    assert SECRET not in str(refused.value)
    assert str(refused.value).isprintable()
    assert SECRET not in without_secret(uri)


def test_what_is_hidden_and_what_is_not():
    uri = f"s3://me:{SECRET}@bucket/run?region=eu&token={SECRET}"
    assert without_secret(uri) == "s3://me:***@bucket/run?region=eu&token=***"
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY"):
        check_address(uri)


def test_a_null_byte():
    with pytest.raises(ValueError, match="null byte"):
        check_address("a\0b")


def test_an_address_that_would_write_lines_of_its_own():
    with pytest.raises(ValueError, match="one process") as refused:
        check_address("memory://\x1b[2J\ncodistill: all is well")
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("named", "scheme"),
    [
        *[("S3://b", "s3"), ("s3a+x://b", "s3a+x"), ("c://x", None), ("a/b://c", None)],
        *[("data:x", "data"), ("s3:/b", None), ("x", None), ("://x", None)],
    ],
)
def test_schemes(named, scheme):
    assert scheme_of(named) == scheme
    assert is_uri(named) == (scheme is not None)


def test_resolved_addresses(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    there = str(tmp_path / "there")
    for named in ("there", "./there/", there, f"file://{there}", "file://there", "a/../there"):
        assert resolved(named) == there
    assert resolved("there", tmp_path / "other") == str(tmp_path / "other/there")
    assert resolved("~nobody-of-this-name") == str(tmp_path / "~nobody-of-this-name")
    assert resolved("~/x") == str(tmp_path / "home/x")
    assert resolved("s3://bucket/x") == "s3://bucket/x"


def test_neither_torch_nor_fsspec_is_imported():
    code = (
        "import sys, fairseq_codistill.records.address; "
        "sys.exit(bool({'torch', 'fairseq', 'fsspec'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
