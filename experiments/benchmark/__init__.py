"""How fast is training, against the machine's own limit and against PyTorch? Measured in turns in one run.

    python -m experiments.benchmark                        four small networks, no download: 5 minutes 29 on two busy cores
    python -m experiments.benchmark --preset full          eleven networks, up to ResNet-110 and, at 224x224, ResNet-50
    python -m experiments.benchmark --networks resnet20 --batch 64 --dtype bfloat16

For each network: images a second of `train` (median and quartiles over the rounds), what the library adds to a bare jitted step
(goal: under 3%), the share of a step that making its inputs takes (goal: under 5%), seconds of initialisation and to the first
step with an empty cache of programs and with a full one, memory, and GFLOP/s as a share of the fastest matrix product and of
the roofline. Images are noise. Where PyTorch is installed (`pip install torch`), the same network in it, in its forms eager,
channels_last and compile, is measured in the same rounds, and the median ratio to the best form shown.

It writes OUT/table.md, table.csv and roofline.png after every network. Ctrl-C ends it after a round; it does not go on where it
was, since what is compared must be measured in one run.
"""
