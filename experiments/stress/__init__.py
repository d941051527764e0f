"""Is anything lost when a process is killed or a disk goes bad? Real faults, counted, on the file system that you name.

    python -m experiments.stress                      a few of each: some minutes on two CPU cores
    python -m experiments.stress --preset full        50 kills, 20 signals of each kind, 100 flipped bytes: 25 minutes there
    python -m experiments.stress --out /mnt/scratch/faults

File systems differ in what a rename, a lock or a full disk does, so run it once where your runs are to be kept.

kills      kill -9 of a process that does nothing but save, aimed into a save: a state comes back, bit for bit, at most one
           save old
signals    SIGTERM and Ctrl-C to a training script at random moments, while it compiles too: it saves, its exit code says
           which it was, and the same command ends with the bits of a run that never stopped; a second Ctrl-C ends it at once
damage     bytes flipped and files cut, emptied and removed in the newest step: the file is named, the step before it used

Expected: no promise broken, which is exit code 0; one that is broken is told in one line, with exit code 1.

It writes OUT/table.md, table.csv and trials.jsonl, a line a trial. The same command goes on where it was stopped; trials that
are there are not made again, so delete OUT to begin anew.
"""
