"""How does training grow with devices? What a step sends on paper, in the compiled program, and on the wire.

    python -m experiments.scaling                      no download: 7 minutes on two CPU cores, 5 of them for the wire
    python -m experiments.scaling --parts arithmetic   one part of it: arithmetic, compiled or wire

arithmetic  ResNet-20 to 152 on 1 to 1,024 devices: bytes of gradient and of BN, multiply-adds, and from these the share of
            a step that the wire takes, for three links; up to how many devices that is below 10%
compiled    every all-reduce of the compiled training step, jit and pmap, on 1, 2, 4 and 8 simulated devices, against the paper
wire        1, 2, 4 and 8 processes on loopback: bytes that the kernel counts and seconds of a step, against the paper

Expected: programs and paper agree tensor by tensor, and bytes on loopback within 1%. With BN over the batch no link and no
network stays below 10% on the wire: what binds, from 2 devices on, is the latency of 2 all-reduces for each BN. With BN
within each device (`bn_group`) there are 2 all-reduces in all; at 128 images each NVLink is then below 10% up to 1,024.

It writes OUT/table.md and table.csv, bytes.png and share.png, and a table for each part. Sources stand in arithmetic.py,
machines.py and wire.py, beside what is from them.
"""
