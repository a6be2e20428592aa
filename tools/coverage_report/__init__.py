"""How many BatchNorms convbn and its peers leave in architectures of timm and torchvision."""
