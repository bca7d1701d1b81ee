"""Training: ``recipe`` and ``run_context`` say how and with what; ``epoch`` and ``run`` have ``learner`` take steps."""
