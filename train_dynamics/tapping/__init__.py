"""Exact per-example gradients of any loss, each layer kept in the form that suits it.

    layers = find_layers(loss, params, example)          # evaluation: what there is
    names = choose(layers, ["all"])                      # layers
    evaluate(loss, params, examples, {name: "factored" for name in names})

`layers` and `sketch` need no JAX, so that a recording can be read without it; nothing is imported from here itself.
"""
