"""How quality comes back: ways to prune x budgets x distillation, on networks that were trained first.

    python -m benchmarks.recovery --study fashion|minilm|digits|overhead|interrupted [--seeds 0 1 2]

measures the cells of one study that ``docs/benchmarks/recovery_*.json`` does not hold yet, one after the
other, and writes the file after each of them, so that a run may be stopped at any time and goes on where it
was; every cell names the commit it was measured with. The Markdown pages are made from the JSON files alone.
Parents are trained once and kept beside the fetched assets.
"""
