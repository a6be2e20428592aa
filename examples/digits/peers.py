"""Other quantisers on the same model and data: onnxruntime, and AIMET and ModelOpt in environments of their own.

AIMET and ModelOpt pin other versions of onnx and onnxruntime, so each runs by the Python that the variable
``AIMET_PYTHON`` or ``MODELOPT_PYTHON`` names:

    python -m venv aimet && aimet/bin/pip install aimet-onnx torch
    python -m venv modelopt && modelopt/bin/pip install 'nvidia-modelopt[onnx]' torch
    AIMET_PYTHON=aimet/bin/python MODELOPT_PYTHON=modelopt/bin/python make precision-table
"""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

_AIMET = """
import sys, numpy as np, onnx
from aimet_onnx import QuantizationSimModel, int8
from aimet_onnx.cross_layer_equalization import equalize_model
source, data, target, name = sys.argv[1:]
model = onnx.load(source)
if {equalise}:
    equalize_model(model)
sim = QuantizationSimModel(model, param_type=int8, activation_type=int8)
sim.compute_encodings([{{name: batch}} for batch in np.load(data)])
onnx.save(sim.to_onnx_qdq(), target)
"""
_MODELOPT = """
import sys, numpy as np
from modelopt.onnx.quantization import quantize
source, data, target, name = sys.argv[1:]
quantize(source, quantize_mode="int8", calibration_data={name: np.concatenate(np.load(data))}, output_path=target,
         calibration_method="{method}", calibration_eps=["cpu"], high_precision_dtype="fp32")
"""
_PROGRAMS = {
    "AIMET": ("AIMET_PYTHON", _AIMET.format(equalise=False)),
    "AIMET, equalised": ("AIMET_PYTHON", _AIMET.format(equalise=True)),
    "ModelOpt": ("MODELOPT_PYTHON", _MODELOPT.replace("{method}", "entropy")),
    "ModelOpt, max": ("MODELOPT_PYTHON", _MODELOPT.replace("{method}", "max")),
}
PEERS = ("onnxruntime, defaults", "onnxruntime, best", *_PROGRAMS)


def quantised_by(peer: str, model: onnx.ModelProto, batches: list[np.ndarray]) -> onnx.ModelProto | str:
    """The int8 model that a peer makes, or in a few words why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        source, data, target = (Path(folder) / name for name in ("in.onnx", "data.npy", "out.onnx"))
        onnx.save(model, source)
        if peer in _PROGRAMS:
            variable, program = _PROGRAMS[peer]
            python = os.environ.get(variable)
            if python is None:
                return f"{variable} names no Python"
            np.save(data, np.stack(batches))
            call = [python, "-c", program, str(source), str(data), str(target), model.graph.input[0].name]
            done = subprocess.run(call, capture_output=True, text=True, cwd=folder, check=False)
            if done.returncode or not target.exists():
                return (done.stderr.strip().splitlines() or ["no model"])[-1][:160]
        else:
            _quantize_static(source, target, model.graph.input[0].name, batches, best="best" in peer)
        return onnx.load(target)


def _quantize_static(source: Path, target: Path, name: str, batches: list[np.ndarray], *, best: bool) -> None:
    """onnxruntime's, as its documents advise: with its preparation and by channel, or as it comes."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        samples = iter([{name: batch} for batch in batches])

        def get_next(self) -> Any:
            return next(self.samples, None)

    logging.disable(logging.WARNING)
    try:
        if best:
            prepared = source.with_name("prepared.onnx")
            quant_pre_process(str(source), str(prepared))
            source = prepared
        quantization.quantize_static(str(source), str(target), Reader(), per_channel=best)
    finally:
        logging.disable(logging.NOTSET)
