"""Small files that processes leave for each other, read with the same care whoever wrote them.

Everything that another process or another user can write is data.  ``guarded`` reads a file:
bounded, regular files only, never waiting.  ``strict_json`` parses it.  ``printable`` makes text
from outside fit for a terminal, and ``log`` for a log.  ``heartbeat`` (``alive.json``), ``ended``
(``ended.json``) and ``memory`` (``codistill.json``) are the files themselves.

Imports neither torch nor fairseq, so that the command-line tools start at once.
"""

from fairseq_codistill.records.ended import Ended, read_ended, write_ended
from fairseq_codistill.records.guarded import Unreadable, read_file, read_object, write_file
from fairseq_codistill.records.heartbeat import Alive, parse_alive, read_alive_file
from fairseq_codistill.records.log import get_logger
from fairseq_codistill.records.memory import Memory
from fairseq_codistill.records.printable import printable
from fairseq_codistill.records.strict_json import is_plain, is_text, is_whole, parse_object

__all__ = [
    "Alive",
    "Ended",
    "Memory",
    "Unreadable",
    "get_logger",
    "is_plain",
    "is_text",
    "is_whole",
    "parse_alive",
    "parse_object",
    "printable",
    "read_alive_file",
    "read_ended",
    "read_file",
    "read_object",
    "write_ended",
    "write_file",
]
