"""Benchmark of training speed against the machine's own limits and PyTorch.

    python -m experiments.benchmark                 four small networks, no download
    python -m experiments.benchmark --preset full   eleven networks
    python -m experiments.benchmark --networks resnet20 --batch-size 64 --dtype bfloat16

The first command takes 5 minutes 29 on two busy cores. The full preset goes up to ResNet-110 and,
at 224x224, ResNet-50. All measurements of one run are made in turns.

For each network it reports:

- Images a second of `train`, as median and quartiles over the rounds.
- The time that the library adds to a bare jitted step (goal: under 3%).
- The share of a step that making its inputs takes (goal: under 5%).
- Seconds of initialization and to the first step, with an empty cache of programs and a full one.
- Memory.
- GFLOP/s, as a share of the fastest matrix product and of the roofline.

Images are noise. Where PyTorch is installed (`pip install torch`), the same network in PyTorch is
measured in the same rounds. Its forms are eager, channels_last and compile. The median ratio to the
best form is shown.

It writes OUT/table.md, table.csv and roofline.png after every network. Ctrl-C ends it after a
round. It does not resume, because numbers that are compared must be measured in one run.
"""
