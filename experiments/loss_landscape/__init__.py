"""Does depth make the loss rugged, and do shortcuts smooth it? Li et al. 2018 (arXiv:1712.09913), on the depth study's runs.

    python -m experiments.depth                              first: the runs that are looked at, 2.5 minutes
    python -m experiments.loss_landscape                     digits, no download: 2 minutes on two CPU cores
    python -m experiments.loss_landscape --parts line        one part of it: line, plane, path or sharpness
    python -m experiments.loss_landscape --preset mnist      from runs/depth-mnist
    python -m experiments.loss_landscape --preset cifar10    from runs/depth-paper

line       the loss along random directions, each filter's step as long as the filter (section 4 of the paper)
plane      the loss on the plane of two such directions: contours and a picture in 3-d
path       the way that training took, in the plane of its two principal components (section 7.2)
sharpness  the largest eigenvalue of the training loss's Hessian at the end

Losses are of the same training images for all networks, exact, in test mode: BN by the moving averages of the last state, as in
the authors' code. In the path's plane BN goes by the images themselves: far from the end those averages are another network's.

Expected, quick: plain-56 ends at a loss of about 1.9 with a sharpness of about 120, the others near 0.1 with 8 to 16;
one filter norm away its loss is about 10^5, the others' 30 to 400. Two components hold over 90% of every path.

It writes OUT/table.md and table.csv, and for each part a folder with its table, its figures and what was measured, a file for
each network. The same command goes on where it was stopped, and does nothing but draw when everything is there.
"""
