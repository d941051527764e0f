"""What has a trained network learnt? One run on one page: its curves, mistakes, filters, features, and where it looks.

    python -m experiments.inspect_run                               the depth study's runs/depth/resnet20-seed0: 30 s
    python -m experiments.inspect_run --run runs/mnist/mnist/lenet5-seed0
    python -m experiments.inspect_run --run RUN --images 1000       judge the first 1,000 test images and not 500
    python -m experiments.inspect_run --run RUN --image mine.png    ask about a picture of your own as well
    python -m experiments.inspect_run --run RUN --parts errors heat --stages stage1 stage3

RUN is the folder of a run that any study left, with its checkpoints; nothing is trained, and nothing in it is changed. The
parts of the page are `about` (the network, layer by layer), `curves` (with the turn to overfitting, where there is one),
`errors` (confusion matrix, the surest mistakes, calibration), `filters` (of the first layer, before and after training),
`features` (maps, layer by layer), `channels` (what excites them) and `heat` (Grad-CAM and others, of right and wrong answers).

Expected of the default run: 9 of 360 digits are wrong (2.5%), no turn to overfitting, and a calibration error of 1.0%, which is
no more than chance explains with so few images.

It writes OUT/index.html, which needs no network and no script and holds its figures, the same figures as OUT/*.png, and
OUT/table.md and table.csv: a row with the error and the calibration error of the images judged. OUT is by default
runs/look/<study>-<run>. An own picture is cut to a square and resized to the network's input; its colours are never inverted.
"""
