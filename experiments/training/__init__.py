"""Training: ``recipe`` and ``setting`` say how and with what; ``epoch`` and ``run`` have ``learner`` take steps."""
