"""Fine-tuning: train a classifier of your own images, and see its mistakes.

    python -m experiments.finetune                       three photographs, no download: 2 minutes
                                                         on two CPU cores
    python -m experiments.finetune --images my_fruit --model resnet18 --weights resnet18.safetensors
    python -m experiments.finetune --images my_fruit --model resnet18 --weights r18.pth --train head
    python -m experiments.finetune --images my_fruit --weights hf:timm/resnet18.tv_in1k
    python -m experiments.finetune --preset cifar10      a folder of CIFAR-10's images
    python -m experiments.predict --run runs/finetune new.jpg

`--images` is a folder with one directory for each class, or with train, val and test directories of
classes; a line says what is used for what. The images are JPEG, PNG, WebP, GIF, BMP or TIFF of any
size (`jaxcnn.image_folder`). Validation images, of a val directory or by `--validation 0.2`, choose
the epoch that is saved, and the test images are counted once on it. `--epoch last` takes the last.
`--class-weight balanced` gives the losses of rare classes more weight.
`--weights` are published ones, of torchvision or timm: .safetensors, .pth, or the name of a
repository of the Hugging Face Hub (`pip install "jaxcnn[hub]"`), which brings the size and the
constants of its images along. Without weights the network starts from random numbers, which takes
far more images.

With `--images` the preset is `own`, which has other defaults than the photographs: `--help` shows
both.

Without arguments the images are squares of 48 pixels from three photographs that scikit-learn and
matplotlib provide. The task is to find the photograph of a square. Training squares are from the
left of a photograph and test squares from the right, so no pixel is in both. Squares drawn at
random would overlap, and the test would measure memorization.

Expected there: 71% of 128 test squares are right (95% interval 63 to 78; one seed). Plain blue in
the right half of one photograph is taken for the sky of another, with 100% confidence. Color was
enough on the left.

The script writes OUT/table.md and table.csv (each class), curves.png, confusion.png, mistakes.png
(the worst ones, next to their Grad-CAM), weights.safetensors and classes.json. OUT/run has the run.
The same command resumes where it was stopped.
"""
