"""Which criterion finds the units that a model can spare: criteria x models x sparsities x seeds.

    python -m benchmarks.criteria [--model NAME] [--seeds 3] [--threads 1]

runs every model in a process of its own (so that its peak memory is its own) and writes
``docs/benchmarks/criteria.json`` and ``criteria.md``. With ``--model`` only that part is measured again.
"""
