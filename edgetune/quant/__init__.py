"""The quantizer: any FP32 ONNX network and some batches in, the same network with explicit Q/DQ out.

    prepare (graph) -> place (placement | cpu) -> collect (ranges) -> scales -> render (tensorrt | cpu)

It knows nothing of images, recipes or where a network came from. It may import errors, progress, profile,
engines and latency (for statistics).
"""
