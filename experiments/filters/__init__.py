"""Filters: seven figures of layers at work, ready for a slide.

They are computed by `experiments.filters.ops`.

    python -m experiments.filters                        no download: half a minute on two CPU cores
    python -m experiments.filters --image FILE           on a photograph of your own

filters.png      the 3x3 filters of image processing, each with its numbers
convolution.png  a patch times a kernel is one number; the next patch is the next number
im2col.png       all patches as a matrix: convolution is one product
sizes.png        stride and padding: which windows there are, and how many
pooling.png      maximum against mean
upsampling.png   repeated, interpolated and transposed: the cause of the checkerboard pattern
lrn.png          local response normalization: a loud channel suppresses its neighbors

The photograph is scikit-learn's china.jpg, by danielbuechele
(flickr.com/photos/danielbuechele/6061409035), CC BY 2.0.
"""
