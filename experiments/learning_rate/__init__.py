"""Effects of the learning rate, measured next to what theory predicts.

    python -m experiments.learning_rate                     digits, no download: 2.5 minutes on two
                                                            CPU cores
    python -m experiments.learning_rate --parts edge        one part of it: theory, sweep, finder,
                                                            schedules or edge
    python -m experiments.learning_rate --preset mnist      LeNet-5 on MNIST: 15 minutes there, next
                                                            to other work
    python -m experiments.learning_rate --preset cifar10    the finder on ResNet-20: 4.5 minutes

theory     gradient descent on a straight line's loss: stable below 2 / L, with momentum m below
           2 (1 + m) / L
sweep      final loss and error against the rate, for several batch sizes, and the largest stable
           rate
finder     the range test (Smith 2017, arXiv:1506.01186): one short run at a rising rate
schedules  eight shapes of the rate at an equal budget of steps and of trials
edge       sharpness rises to 2 / rate and hovers there (Cohen et al. 2021, arXiv:2103.00065)

It writes OUT/table.md and table.csv (predicted and measured, side by side). Each part has a folder
with its own table, figures and runs. The same command resumes an experiment that was stopped. When
all runs are finished, it only draws.
"""
