"""Exact per-example gradients of any loss, each layer stored in the form that suits it.

    layers = find_layers(loss, params, example)          # evaluation: what there is
    names = choose(layers, ["all"])                      # recording.layers
    evaluate(loss, params, examples, {name: "factored" for name in names})

How a layer is described, its factors are multiplied and a sketch is made is in `recording`, which needs no JAX.
"""
