"""What the online experiment is made of: people who act on answers, days of serving, and estimates from logs."""
