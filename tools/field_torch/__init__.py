"""Networks of other libraries than timm and torchvision's classifiers: folded, proven and written in every form."""
