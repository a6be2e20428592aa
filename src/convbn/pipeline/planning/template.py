"""The plan that ``convbn run --init`` writes: every key, with what it means."""

from __future__ import annotations

__all__ = ["TEMPLATE"]

TEMPLATE = """\
# A plan of `convbn run`: models, what is made of them, what is measured. Paths are relative to this file or URLs.
# `convbn run PLAN.toml --list` says what would run and why.

output = "out"               # folder for what is made; it mirrors the models' names
# store = ".convbn-store"    # folder for results of steps: what is there is not done again; may be deleted
# name = "nightly"           # for reports; this file's name without
# seed = 0                   # of random inputs

# Models: files, folders, globs with * and **, or hf-hub:ORG/NAME. One table for all that are read alike.
[[models]]
path = "models/**/*.onnx"

# [[models]]
# path = "checkpoints/resnet50.pth"
# name = "resnet50"                       # for an entry of one model
# arch = "torchvision:resnet50"           # or timm:NAME, package.module:callable
# arch_args = ["num_classes=10"]
# checkpoint_key = "state_dict"           # where in a checkpoint the weights lie
# input_shapes = ["x:1x3x224x224"]
# inputs = "samples.npz"                  # to compare on, in place of random ones
# calibration = "calibration/"            # for int8
# trust_checkpoint = false                # run the code in a pickle, .pt2 or TorchScript file

# [fold]
# only = ["conv"]                         # rules to use, or with skip not to use
# freeze = false
# strict = true                           # fail where there would only be a warning

# Targets: each list makes one file for every one of its values, in all combinations.
[[targets]]
kind = "onnx"                             # the folded model itself

# [[targets]]
# kind = "engine"                         # onnx, engine or pt2
# name = "engine"                         # part of the file's name; the kind without
# models = ["resnet*"]                    # names or patterns; all models without
# precision = ["fp16", "int8"]
# backend = "tensorrt-rtx"                # or auto, tensorrt
# profiles = ["x=1x3x224x224:8x3x224x224:32x3x224x224"]
# compute_capability = ["8.6", "8.9"]
# options = ["--optimization-level", "3"] # further words of `convbn export`
# gpus = 1                                # on a Ray cluster: GPUs that a step takes,
# accelerator = "H100"                    # their kind,
# resources = {rtx4090 = 1}               # or a custom resource

# Benches: original against folded. Nothing else runs on the machine meanwhile.
# [[benches]]
# name = "bench"
# runtimes = ["onnxruntime-cpu"]
# batches = [1, 8]
# precisions = ["fp32"]
# threads = [1]
# budget = 10                             # seconds for each runtime of each case
# options = ["--blocks", "30"]            # further words of `convbn bench`

# [gates]
# fail_if = ["ratio > 1.02"]
# allow_not_measured = false

# [reports]
# json = "out/run.json"
# junit = "out/run.xml"
# markdown = "out/run.md"
# html = "out/run.html"

# [run]
# workers = 2                             # processes at once; one a processor without
# memory = "16GiB"                        # for all together; 80 % of what is free without
# retries = 1                             # of a step whose process died
"""
