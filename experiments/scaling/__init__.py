"""Scaling of training with devices, in theory and as measured.

    python -m experiments.scaling                      all parts, no download
    python -m experiments.scaling --parts arithmetic   one part: arithmetic, compiled or wire

The first command takes 7 minutes on two CPU cores, 5 of them for the part "wire".

- arithmetic: ResNet-20 to 152 on 1 to 1,024 devices. It computes bytes of the gradient and of BN,
  and multiply-adds. From these it derives the share of a step that communication takes, for three
  links. It also derives the number of devices up to which that share is below 10%.
- compiled: every all-reduce of the compiled training step, compared with the arithmetic. The
  strategies are jit and pmap, on 1, 2, 4 and 8 simulated devices.
- wire: 1, 2, 4 and 8 processes on loopback. The bytes that the kernel counts and the seconds of a
  step are compared with the arithmetic.

Expected: the programs agree with the arithmetic tensor by tensor, and bytes on loopback within 1%.
With BN over the batch no link and no network stays below 10%. The limit, from 2 devices on, is the
latency of 2 all-reduces for each BN. With BN within each device (`bn_group`) there are 2
all-reduces in all. At 128 images each, NVLink is then below 10% up to 1,024 devices.

It writes OUT/table.md and table.csv, bytes.png and share.png, and a table for each part. Sources
are given in analytic.py and traffic.py, next to the numbers taken from them.
"""
