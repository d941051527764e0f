"""94% on CIFAR-10 in as few seconds as possible, after Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU".

    python -m experiments.speedrun                     on a CPU the short form, on an accelerator the whole task
    python -m experiments.speedrun --preset cifar10    the whole task: 50 runs of 9.9 epochs
    python -m experiments.speedrun --preset short      CIFAR-10 for a CPU: a narrower network, 2 epochs, 2 runs
    python -m experiments.speedrun --preset digits     the same code on digits, no download: 11 seconds on two CPU cores

The task (arXiv:2404.00498): the mean test accuracy of at least 50 runs, each trained from scratch from another seed on the
50,000 training images, is to be 94% or more; the test set is looked at once a run, at its end. A run's seconds go from images
that lie on the device as bytes to the last of the test's answers. Compiling comes before, in a warm-up of its own.

Of the paper: patches whitened by the first layer, which stays as it is; convolutions that begin as the identity; BN whose
scales stay 1 and whose biases learn 64 times as fast; GELU; labels smoothed; Nesterov's momentum with a triangular rate;
lookahead; translation by 2 pixels; images mirrored in every other epoch; a test that averages six views; half precision. Unlike
it: no remainder of an epoch is dropped (484 steps), the whitening subtracts the patches' mean, and BN adds 1e-5 to the
variance where the paper adds 1e-12.

On an accelerator a run is three programs: start, all steps in one scan, test; nothing comes back to the host between. On a
CPU steps follow one another from Python. One device is used, also where there are more.

Expected, digits: 99.5% (n = 5) in 1.3 s a run. Expected, short: 80.6% (80.45 and 80.84, n = 2) in 42 s on two CPU cores
with units for bfloat16. Expected, cifar10: not measured yet.

Beside the published program, on the same card and one after the other: clone https://github.com/KellerJordan/cifar10-airbench,
whose README says what it needs (PyTorch, torchvision) and which script is the fastest, and run that script; then give
`python -m experiments.speedrun --preset cifar10`. Compare its mean accuracy and seconds, which leave out compiling as well,
with those of OUT/table.md; its figures for an A100 are 3.29 s (the paper) and 2.59 s (a later method), both at 94.01%.

Without CIFAR-10 or a network to fetch it, the command ends with one line that says where to put it: it never turns to other
data by itself. It writes OUT/table.md, table.csv, runs.png and runs.jsonl, a line for each run. Ctrl-C gives up the run under
way and keeps those that are over; the same command makes the others. Runs of another machine or of other packages are refused.
"""
