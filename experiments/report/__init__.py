"""Reports of a study: tables, their summary on the terminal, verdicts on claims, and the record that is kept."""
