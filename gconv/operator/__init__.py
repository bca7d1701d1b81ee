"""The operator as torch sees it: ops in torch's library, derivatives, Inductor, and the dispatch to a kernel.

Exports nothing: users import ``grouped_conv2d`` and ``forced_kernel`` from ``gconv``.
"""
