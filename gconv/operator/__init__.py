"""The operator as torch sees it: its ops in torch's library, their derivatives, Inductor, and the call of a kernel.

Users import ``grouped_conv2d`` and ``forced_kernel`` from ``gconv``; the files here are imported one by one.
"""
