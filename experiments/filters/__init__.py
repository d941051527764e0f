"""What do the layers of a network do to a picture? Seven figures, computed by `experiments.filters.ops` and ready for a slide.

    python -m experiments.filters                        no download: half a minute on two CPU cores
    python -m experiments.filters --image FILE           on a photograph of your own

filters.png      the 3x3 filters of image processing, each with its numbers
convolution.png  a patch times a kernel is one number; the next patch is the next number
im2col.png       all patches as a matrix: convolution is one product
sizes.png        stride and padding: which windows there are, and how many
pooling.png      maximum against mean
upsampling.png   repeated, interpolated and transposed: where the chequered pattern comes from
lrn.png          local response normalisation: a loud channel quiets its neighbours

The photograph is scikit-learn's china.jpg, by danielbuechele (flickr.com/photos/danielbuechele/6061409035), CC BY 2.0.
"""
