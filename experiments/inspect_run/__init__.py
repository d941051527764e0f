"""Inspect a run on one page: curves, mistakes, filters, features, attribution.

    python -m experiments.inspect_run                               runs/depth/resnet20-seed0, 30 s
    python -m experiments.inspect_run --run runs/mnist/mnist/lenet5-seed0
    python -m experiments.inspect_run --run RUN --images 1000       the 1,000 test images, not 500
    python -m experiments.inspect_run --run RUN --image mine.png    an image of your own as well
    python -m experiments.inspect_run --run RUN --parts errors heat --stages stage1 stage3

RUN is the folder of a run of any study, with its checkpoints. The default is one of the depth
study. Nothing is trained, and nothing in the folder is changed. The parts of the page are

about     the network, layer by layer
curves    learning curves, with the turn to overfitting where there is one
errors    confusion matrix, the most confident mistakes, calibration
filters   filters of the first layer, before and after training
features  feature maps, layer by layer
channels  images that excite the channels
heat      Grad-CAM and other attributions, of correct and wrong predictions

Expected of the default run: 9 of 360 digits are wrong (2.5%). There is no turn to overfitting. The
calibration error is 1.0%, no more than chance explains with so few images.

The script writes OUT/index.html, which needs no network and no script and holds its figures. It
also writes the figures as OUT/*.png, and OUT/table.md and table.csv with one row: the error and the
calibration error of the evaluated images. OUT is runs/look/<study>-<run> by default. An image of
your own is cut to a square and resized to the network's input. Its colors are never inverted.
"""
