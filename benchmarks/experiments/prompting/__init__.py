"""What a frozen model's states tell of people whose tastes are known, by prompt, pooling and version of the model."""
