"""One file per verb: a stage is a plain function from artifacts to an artifact, or to measures.

A stage never imports a stage. May import what lies below: data, models, engines, training, quant, latency.
"""
