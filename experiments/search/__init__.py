"""Search of hyperparameters: successive halving and Hyperband against random search.

    python -m experiments.search                   digits, no download: 102 seconds on two cores
    python -m experiments.search --preset mnist    MNIST: not yet measured

A configuration has a depth, a width, an optimizer, a learning rate and an augmentation, all drawn
at random. All methods have the same budget of training steps, that of Hyperband (Li et al. 2018,
arXiv:1603.06560, algorithm 1). Random search trains few configurations to the end. Successive
halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) starts many, and of eta of them the best one
continues, to eta times as many steps. Hyperband divides its budget over several such halvings, of
which the last stops nothing and is random search.
random-2x is random search with twice the budget.

Every configuration is one run of --num-steps steps, with a cosine schedule of that length. It
pauses at each rung and resumes from its checkpoint. So all errors at a rung are of networks with
the same schedule, and what continues is what was compared. At early rungs the rate is still high.

The methods of a seed draw the same sequence of configurations, and share the runs of equal ones. A
method is charged for all its steps. Configurations are compared by the validation error alone. The
choice of a method is that of the lowest validation error among those that it trained to the end.
Its test error is computed once, after the search.

Expected, quick (5 seeds): test errors of 5.2 +- 2.7% (random), 3.6 +- 2.2% (random-2x), 1.9 +- 0.6%
(halving) and 2.7 +- 1.0% (hyperband). Paired by seed, halving is 3.3 +- 3.1 points below random,
and hyperband 2.5 +- 3.1. A third of the seconds of training is compilation.

It writes OUT/table.md, OUT/table.csv, OUT/chosen.md, OUT/chosen.csv, OUT/budget.png,
OUT/brackets.png, OUT/space.png, OUT/search.json, OUT/trials.jsonl and a folder for every run.
The same command resumes a study that was stopped.
"""
