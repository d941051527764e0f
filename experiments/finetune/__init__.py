"""A classifier of your own pictures: train it, see what it gets wrong and where it looks, and keep it.

    python -m experiments.finetune                       three photographs, no download: 2 minutes on two CPU cores
    python -m experiments.finetune --images my_fruit --model resnet18 --weights resnet18.safetensors
    python -m experiments.finetune --images my_fruit --model resnet18 --weights resnet18.pth --train head
    python -m experiments.finetune --preset cifar10      a folder of CIFAR-10's pictures
    python -m experiments.predict --run runs/finetune new.jpg

`--images` is a folder with one directory for each class, or with train, val and test directories of classes; the pictures are
JPEG, PNG, WebP, GIF, BMP or TIFF of any size (`jaxcnn.image_folder`). `--weights` are published ones, of torchvision or timm,
.safetensors or .pth; without them the network starts from random numbers, which takes far more pictures.

With no arguments the pictures are squares of 48 pixels from three photographs that scikit-learn and matplotlib bring along,
and the question is which one a square comes from. Training squares are from the left of a photograph and test squares from
the right, so no pixel is in both: squares drawn at random would overlap, and the test would ask what was learnt by heart.

Expected there: 71% of 128 test squares are right (95% interval 63 to 78; one seed). What is wrong is telling: plain blue of
the right half of one photograph is taken for the sky of another, with 100% confidence. Colour was enough on the left.

It writes OUT/table.md and table.csv (each class), curves.png, confusion.png, mistakes.png (the worst ones, with Grad-CAM
beside), weights.safetensors and classes.json, and in OUT/run the run. The same command goes on where it was stopped.
"""
