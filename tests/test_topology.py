"""Who listens to whom."""

import pytest

from fairseq_codistill.codistillation import CodistillationConfig, ConfigError
from fairseq_codistill.codistillation.topology import listens_to


@pytest.mark.parametrize(
    ("topology", "groups", "expected"),
    [
        ("all", 1, [[]]),
        ("all", 3, [[1, 2], [0, 2], [0, 1]]),
        ("ring", 1, [[]]),
        ("ring", 2, [[1], [0]]),
        ("ring", 4, [[3], [0], [1], [2]]),
        ("star", 2, [[1], [0]]),
        ("star", 4, [[1, 2, 3], [0], [0], [0]]),
    ],
)
def test_who_listens_to_whom(topology, groups, expected):
    assert [listens_to(topology, groups, group) for group in range(groups)] == expected


def test_a_file_says_so(tmp_path):
    path = tmp_path / "who"
    path.write_text("# two teachers\n\n 2 : 1 0  # learns\n0:\n1:0\n")
    assert [listens_to(str(path), 3, group) for group in range(3)] == [[], [0], [0, 1]]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_file_may_begin_with_a_byte_order_mark(tmp_path, newline):
    """Notepad and PowerShell write one."""
    path = tmp_path / "who"
    path.write_bytes(b"\xef\xbb\xbf" + newline.join(["0: 1", "1:", ""]).encode())
    assert [listens_to(str(path), 2, group) for group in range(2)] == [[1], []]


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "who"
    path.write_bytes("0: 1\n1:\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"no file to read \(it is no text\)"):
        listens_to(str(path), 2, 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0: 1\n1 0\n", "line 2, '1 0': write GROUP: PEERS, as in 2: 0 1"),
        ("0: one\n", "line 1, '0: one': write GROUP: PEERS, as in 2: 0 1"),
        ("0 1: 2\n", "line 1, '0 1: 2': write GROUP: PEERS, as in 2: 0 1"),
        ("0: 1: 2\n", "line 1, '0: 1: 2': write GROUP: PEERS, as in 2: 0 1"),
        ("0: 1\n1: 2\n", "line 2, '1: 2': there is no group 2, only 0 to 1"),
        ("-1: 0\n", "line 1, '-1: 0': there is no group -1, only 0 to 1"),
        ("0: 1\n0: 1\n", "line 2, '0: 1': group 0 has a line already"),
        ("0: 0\n", "line 1, '0: 0': a group cannot listen to itself"),
        ("0: 1 1\n", "line 1, '0: 1 1': a peer stands there twice"),
        (
            "1: 0\n",
            "it has no line for group 0; a group that listens to nobody has nothing after the "
            "colon",
        ),
        ("", "it has no line for group 0;"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path, text, says):
    path = tmp_path / "who"
    path.write_text(text)
    settings = CodistillationConfig(
        codistill_dir="x", codistill_num_groups=2, codistill_topology=str(path)
    )
    with pytest.raises(ConfigError) as caught:
        settings.listens_to()
    assert str(caught.value).startswith(f"--codistill-topology {path}: {says}")


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_bytes(b"\xff\xfe")])
def test_what_is_no_topology(tmp_path, make):
    path = tmp_path / "rnig"
    make(path)
    with pytest.raises(ValueError, match="none of all, ring, star, and no file to read"):
        listens_to(str(path), 2, 0)


def test_a_model_is_loaded_without_the_file_it_was_trained_with():
    """``check`` is asked for that too, with the settings of the checkpoint."""
    CodistillationConfig(
        codistill_dir="x", codistill_num_groups=2, codistill_topology="gone.txt"
    ).check()
