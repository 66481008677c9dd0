"""The benchmark behind ``fastmix bench``: what is timed, beside whom, how, and how it is shown.

* ``cases``, ``losses``, ``maps``, ``puzzle``, ``mixing``, ``training``: the registry of cases, from single ops to
  whole training steps;
* ``provider``, ``peers``: who computes a case, and whether the result is right;
* ``clock``, ``run``: how the time, the memory and the machine's own roof are measured;
* ``results``, ``compare``, ``plots``, ``report``: what becomes of the numbers.

The folder ``bench`` beside the package holds scripts for GPU runs and committed results, and is not installed.
"""
