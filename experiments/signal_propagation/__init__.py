"""Depth, explained: what passes through a network's layers, forward and backward, with and without BN and shortcuts.

    python -m experiments.depth                                  first: the runs that are looked at, 2.5 minutes
    python -m experiments.signal_propagation                     digits, no download: 3 minutes on two CPU cores
    python -m experiments.signal_propagation --parts start       one part of it, which needs no runs: start, end or path
    python -m experiments.signal_propagation --preset cifar10    the paper's networks, from runs/depth-paper
    python -m experiments.signal_propagation --preset mnist      from runs/depth-mnist

start  before training, depths 20 to 110: std of layer responses, gradient norm and effective rank of features, by layer
end    the same after training: figure 7 of He et al. 2015 (arXiv:1512.03385), layers in order and ranked
path   gradient norm by layer and step

Expected, quick: without BN the response of plain-110 vanishes and that of ResNet-110 grows into the thousands; with BN all
have std 1 at the start, while the gradient grows towards the first layers of plain networks; after training the responses
of residual networks are smaller than those of plain ones. What was measured stands in OUT/table.md.

The depth study has no runs without BN: `end` and `path` train one beside each of its runs, with its recipe but for BN and
the rate, which is that of --rates with the least training loss in the second half of --trial-steps.

It writes OUT/table.md and table.csv, for each part figures and a JSON line of every layer and step, and the runs without BN in
OUT/without. The same command goes on where it was stopped, and does nothing but draw when everything is there.
"""
