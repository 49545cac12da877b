#!/bin/sh
# Builds fp16.plan, an engine in FP16, of fp16.onnx: for TensorRT 8.2.1, by its own program alone.
set -eu
cd -- "$(dirname -- "$0")"
trtexec=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)
"$trtexec" --onnx=fp16.onnx --saveEngine=fp16.plan.partial --fp16 --explicitBatch --workspace=1024 --buildOnly
mv fp16.plan.partial fp16.plan
