"""Signal propagation: responses and gradients by layer, with and without BN.

    python -m experiments.depth                                  first: the runs, 2.5 minutes
    python -m experiments.signal_propagation                     digits, no download: 3 minutes on
                                                                 two CPU cores
    python -m experiments.signal_propagation --parts start       one part: start, end or path
    python -m experiments.signal_propagation --preset cifar10    the runs in runs/depth-paper
    python -m experiments.signal_propagation --preset mnist      the runs in runs/depth-mnist

start  before training, depths 20 to 110, by layer: std of responses, gradient norm, effective rank
       of features; it needs no runs
end    the same after training: figure 7 of He et al. 2015 (arXiv:1512.03385), layers in order and
       ranked
path   gradient norm by layer and step

Expected of the preset quick: without BN, the response of plain-110 vanishes and that of ResNet-110
grows into the thousands. With BN, all have std 1 at the start, while the gradient grows towards the
first layers of plain networks. After training, the responses of residual networks are smaller than
those of plain ones. OUT/table.md has the measurements.

The depth study has no runs without BN. `end` and `path` therefore train one next to each of its
runs, with the same config except for BN and the rate. The rate is that of --rates with the least
training loss in the second half of --trial-steps.

The script writes OUT/table.md and table.csv. Each part has figures, and a JSON line of every layer
and step. The runs without BN are in OUT/without. The same command resumes where it was stopped, and
only draws when everything is measured.
"""
