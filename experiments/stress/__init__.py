"""Stress tests: killed processes and damaged disks may lose nothing.

    python -m experiments.stress                  a few of each: some minutes on two CPU cores
    python -m experiments.stress --preset full    50 kills, 20 signals of each kind, 100 flipped
                                                  bytes: 25 minutes there
    python -m experiments.stress --out /mnt/scratch/faults

The faults are real, and are counted. File systems differ in the effects of a rename, a lock or a
full disk, so run it once where your runs are to be kept. `experiments.stress.soak` is a script of
its own: hundreds of runs in one process.

kills      kill -9 of a process that only saves, aimed into a save. Expected: a state is restored,
           bit for bit, at most one save old
signals    SIGTERM and Ctrl-C to a training script at random moments, and while it compiles.
           Expected: it saves, its exit code names the signal, and the same command ends with the
           bits of a run that never stopped; a second Ctrl-C ends it at once
damage     bytes flipped and files cut, emptied and removed in the newest step. Expected: the file
           is named, and the step before it is used

Expected: no promise broken, which is exit code 0. A broken promise is reported in one line, with
exit code 1.

It writes OUT/table.md, table.csv, signals.png (how soon signals end a process) and trials.jsonl, a
line a trial. The same command resumes where
it was stopped. Trials in OUT are not repeated, so delete OUT to start from scratch.
"""
