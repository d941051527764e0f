"""Loss landscape: how depth and shortcuts shape the loss around a network.

The method is that of Li et al. 2018 (arXiv:1712.09913), on the runs of the depth study.

    python -m experiments.depth                              first: the runs, 2.5 minutes
    python -m experiments.loss_landscape                     digits, no download: 2 minutes on two
                                                             CPU cores
    python -m experiments.loss_landscape --parts line        one part: line, plane, path or
                                                             sharpness
    python -m experiments.loss_landscape --preset mnist      the runs in runs/depth-mnist
    python -m experiments.loss_landscape --preset cifar10    the runs in runs/depth-paper

line       the loss along random directions, each filter's step as long as the filter (section 4 of
           the paper)
plane      the loss on the plane of two such directions: contours, and a 3-d surface
path       the path of training, in the plane of its two principal components (section 7.2)
sharpness  the largest eigenvalue of the training loss's Hessian at the end

Losses are of the same training images for all networks, exact, in test mode. BN uses the moving
averages of the last state, as in the authors' code. In the path's plane BN uses the images' own
moments, because far from the end those averages are another network's.

Expected of the preset quick: plain-56 ends at a loss of about 1.9 with a sharpness of about 120,
the others near 0.1 with 8 to 16. One filter norm away its loss is about 10^5, the others' 30 to
400. Two components hold over 90% of every path.

The script writes OUT/table.md and table.csv. Each part has a folder with its table, its figures,
and a file of measurements for each network. The same command resumes where it was stopped, and
only draws when everything is measured.
"""
