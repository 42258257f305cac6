"""``codistill status``: what can be read off an exchange, and off the folder of a launch.

``places`` finds out what the user named, ``survey`` reads it, within ``limits``, ``table`` and
``document`` say it, ``show`` ties them together.  Nothing here writes anything anywhere.
"""

# For --help, which loads none of the modules here.
KEYS = """\
As clocks may differ, the heartbeat of another host is watched until it changes, for
12 s at most; one of this host that is at most a minute old is believed.

keys of the JSON document (a time is in seconds since 1970; what is not known is null):
  format, time     1; when this was read
  exchange         path or URI
  launch           null, or of an OUT: out, run_id, groups, time (ISO), launches
  problems         sentences about files that could not be read, or are not obeyed
  runs             the one heard of last first, each:
    run_id, time   its name; when it was last heard of
    groups         each:
      group, seed, epoch, update, restarts
      state        running, finished, stopped (ended before its end), silent (says it
                   runs, but its heartbeat does not change any more), past (only
                   snapshots are left), absent (launched, nothing has come from it yet)
      silence      age of its heartbeat by this clock, in seconds; null if it comes
                   from the future
      peers        those in use, each: group, update (of the snapshot in use),
                   staleness (own update minus that)
      ended        its orderly end, told by an OUT: update, reason
      trained_alone  whether it ended without ever having had a live peer
      snapshot     its newest: update, epoch, bytes, dtype, age (seconds)
"""
