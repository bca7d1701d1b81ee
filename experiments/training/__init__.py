"""Training of a run. Begin with ``loop``; ``Learner.step`` is the step, ``train_run`` in ``run`` the way in."""
