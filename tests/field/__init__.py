"""Coverage against the field: convbn beside its peers on architectures of timm and torchvision."""
