"""What a classifier answers, made from logits."""
