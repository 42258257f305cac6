"""The exit statuses of training processes and of ``codistill launch``."""

import signal

FINISHED = 0
FAILED = 1
# Settings, which a restart would not change; argparse ends with it too.
CONFIG = 2
# Of launch alone: all groups have finished, and one that was to have peers never had a live one.
NO_PEERS = 3
# What a shell reports for a process that SIGTERM has ended.
TERMINATED = 128 + signal.SIGTERM
